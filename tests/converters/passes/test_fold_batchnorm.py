"""BatchNorm folded: the same answers from fewer nodes, and a reason wherever it stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.converters.passes.fold_batchnorm import FoldBatchNorm
from edgesmith.converters.runners import graph_runner

RANDOM = np.random.default_rng(5)


def graph(text: str, constants: dict[str, tuple[int, ...]], opset: int = 20) -> onnx.ModelProto:
    """A model in ONNX's text form, with seeded constants; variances are positive."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    for name, shape in constants.items():
        values: NDArray[np.float32] = RANDOM.normal(0, 1, shape).astype(np.float32)
        if name.startswith("var"):
            values = np.abs(values) + np.float32(0.3)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    return model


def folded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str], int, list[str]]:
    result = FoldBatchNorm()(ir.from_proto(model))
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto)
    kinds = [node.op_type for node in proto.graph.node]
    return proto, kinds, result.changes, [place.reason for place in result.declined]


def runs(model: onnx.ModelProto, shape: tuple[int, ...]) -> NDArray[Any]:
    images = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    return next(iter(graph_runner(model, optimised=False)(images).values()))


NORM = {"gamma": (6,), "beta": (6,), "mean": (6,), "var": (6,)}


@pytest.mark.parametrize(
    ("layer", "constants", "shape"),
    [
        ("Conv <pads = [1, 1, 1, 1]> (x, w)", {"w": (6, 4, 3, 3)}, (2, 4, 7, 7)),
        ("Conv (x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}, (2, 4, 7, 7)),
        ("Conv <group = 2> (x, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}, (2, 4, 7, 7)),
        ("ConvTranspose <strides = [2, 2]> (x, w)", {"w": (4, 6, 3, 3)}, (2, 4, 7, 7)),
        ("ConvTranspose <group = 2> (x, w, b)", {"w": (4, 3, 3, 3), "b": (6,)}, (2, 4, 7, 7)),
        ("Gemm (x, w)", {"w": (4, 6)}, (3, 4)),
        ("Gemm <transB = 1> (x, w, b)", {"w": (6, 4), "b": (6,)}, (3, 4)),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", {"w": (4, 6), "b": (6,)}, (3, 4)),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", {"w": (4, 6), "b": (1,)}, (3, 4)),
    ],
)
def test_same_answers_without_the_norm(
    layer: str, constants: dict[str, tuple[int, ...]], shape: tuple[int, ...]
) -> None:
    dims = ",".join(map(str, shape))
    rank = ",".join("abcd"[: len(shape)])
    model = graph(
        f"g (float[{dims}] x) => (float[{rank}] y) {{ c = {layer} "
        "y = BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, var) }",
        {**constants, **NORM},
    )
    after, kinds, changes, declined = folded(model)
    assert kinds == [layer.split()[0]]
    assert (changes, declined) == (1, [])
    assert len(after.graph.initializer) == 2
    np.testing.assert_allclose(runs(after, shape), runs(model, shape), rtol=2e-5, atol=2e-5)


def test_a_weight_that_two_layers_share_stays_for_the_other() -> None:
    model = graph(
        "g (float[1,6,5,5] x) => (float[a,b,c,d] y, float[e,f,g,h] z) { c = Conv (x, w) "
        "y = BatchNormalization (c, gamma, beta, mean, var) z = Conv (x, w) }",
        {"w": (6, 6, 1, 1), **NORM},
    )
    after, kinds, _, _ = folded(model)
    assert kinds == ["Conv", "Conv"]
    images = RANDOM.normal(0, 1, (1, 6, 5, 5)).astype(np.float32)
    before, now = graph_runner(model)(images), graph_runner(after)(images)
    for name in ("y", "z"):
        np.testing.assert_allclose(now[name], before[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "r = Relu (x) y = BatchNormalization (r, gamma, beta, mean, var)",
            "no convolution or matrix product",
        ),
        ("y = BatchNormalization (x, gamma, beta, mean, var)", "no convolution or matrix product"),
        (
            "c = Conv (x, w) n = BatchNormalization (c, gamma, beta, mean, var) y = Add (c, n)",
            "c is also read elsewhere",
        ),
        (
            "c = Conv (x, w) g2 = Abs (gamma) y = BatchNormalization (c, g2, beta, mean, var)",
            "a weight of it is computed in the graph",
        ),
    ],
)
def test_what_cannot_be_folded_stays_with_a_reason(body: str, reason: str) -> None:
    model = graph(f"g (float[1,6,5,5] x) => (float[a,b,c,d] y) {{ {body} }}", {"w": (6, 6, 1, 1), **NORM})
    after, kinds, changes, declined = folded(model)
    assert "BatchNormalization" in kinds
    assert changes == 0
    assert len(declined) == 1
    assert reason in declined[0]
    assert np.array_equal(runs(after, (1, 6, 5, 5)), runs(model, (1, 6, 5, 5)))


def test_a_chain_is_folded_from_the_front() -> None:
    model = graph(
        "g (float[1,6,5,5] x) => (float[a,b,c,d] y) { c = Conv (x, w) "
        "n = BatchNormalization (c, gamma, beta, mean, var) "
        "y = BatchNormalization (n, gamma, beta, mean, var) }",
        {"w": (6, 6, 1, 1), **NORM},
    )
    after, kinds, changes, _ = folded(model)
    assert (kinds, changes) == (["Conv"], 2)
    np.testing.assert_allclose(runs(after, (1, 6, 5, 5)), runs(model, (1, 6, 5, 5)), rtol=5e-5, atol=5e-5)
