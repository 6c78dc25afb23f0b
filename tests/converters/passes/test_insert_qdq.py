"""Where the pairs go, and that the arithmetic around them changes nothing before the rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.sdk.errors import CalibrationError

Arrays = Mapping[str, NDArray[np.float32]]


def exact_weight(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """A weight that 8-bit integers hold exactly, whatever power of two multiplies an input channel."""
    weight = rng.integers(-127, 128, shape).astype(np.float32)
    weight.reshape(shape[0], -1)[:, 0] = 127
    return weight / np.float32(256)


def model_of(text: str, constants: Arrays) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto = onnx.shape_inference.infer_shapes(proto)
    return ir.serde.deserialize_model(proto)


def run(model: ir.Model, image: NDArray[np.float32]) -> list[NDArray[Any]]:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {session.get_inputs()[0].name: image}))


def without_rounding(model: ir.Model) -> ir.Model:
    """The quantized graph with each activation's Q and DQ taken out: only the arithmetic is left."""
    model = ir.serde.deserialize_model(ir.to_proto(model))
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear":
            (use,) = node.outputs[0].uses()
            source = node.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(use.node.outputs[0], source)
            model.graph.remove([use.node, node], safe=True)
    return model


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


DENSE = """
agraph (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y)
{ [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }
"""
DEPTHWISE = """
agraph (float[1, 3, 9, 9] x) => (float[1, 6, 5, 5] y)
{ [conv] y = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = 3> (x, w, b) }
"""
POINTWISE = """
agraph (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y)
{ [conv] y = Conv (x, w) }
"""
GEMM = "agraph (float[2, 6] x) => (float[2, 5] y) { [conv] y = Gemm <transB = 1, beta = 0.5> (x, w, b) }"
MATMUL = "agraph (float[2, 6] x) => (float[2, 5] y) { [conv] y = MatMul (x, w) }"
POWERS = (0.5, 1.0, 4.0)


@pytest.mark.parametrize(
    ("text", "shape", "quantizer"),
    [
        (DENSE, (4, 3, 3, 3), Quantizer(scale=0.02)),
        (DENSE, (4, 3, 3, 3), Quantizer(scale=0.02, shift=128)),
        (DENSE, (4, 3, 3, 3), Quantizer(scale=0.02, shift=-40)),
        (DEPTHWISE, (6, 1, 3, 3), Quantizer(scale=0.01, factor=POWERS)),
        (DEPTHWISE, (6, 1, 3, 3), Quantizer(scale=0.01, shift=100, factor=POWERS)),
        (POINTWISE, (4, 3, 1, 1), Quantizer(scale=0.02, shift=77)),
        (GEMM, (5, 6), Quantizer(scale=0.02, shift=9)),
        (MATMUL, (6, 5), Quantizer(scale=0.02, shift=9)),
    ],
    ids=["plain", "offset", "offset below", "factor", "factor and offset", "1x1", "gemm", "matmul"],
)
def test_the_arithmetic_alone_changes_nothing(
    text: str, shape: tuple[int, ...], quantizer: Quantizer
) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": exact_weight(rng, *shape), "b": rng.normal(0, 1, shape[0]).astype(np.float32)}
    if text == MATMUL:
        constants = {"w": exact_weight(rng, 5, 6).T.copy()}
    model = model_of(text, constants)
    size = (2, 6) if text in (GEMM, MATMUL) else (1, 3, 9, 9)
    image = rng.normal(0, 1, size).astype(np.float32)
    (expected,) = run(model, image)
    result = InsertQdq({"x": quantizer}, ["conv"])(model)
    assert result.changes == 1
    assert result.declined == ()
    (got,) = run(without_rounding(result.model), image)
    span = float(np.ptp(expected))
    assert float(np.abs(got - expected).max()) < 1e-5 * span
    # With the rounding the answer is near and not the same: the pairs do something.
    small = np.clip(image, 0, 0.5)  # inside every window
    (rounded,) = run(result.model, small)
    (clipped,) = run(model_of(text, constants), small)
    error = float(np.abs(rounded - clipped).max()) / span
    assert 0 < error < 0.05


def test_a_smoothing_factor_is_exact_for_dense_layers_too() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    model = model_of(DENSE, {"w": weight, "b": np.zeros(4, np.float32)})
    image = rng.normal(0, 1, (1, 3, 9, 9)).astype(np.float32)
    (expected,) = run(model, image)
    result = InsertQdq({"x": Quantizer(scale=0.05, factor=(0.3, 1.0, 2.5))}, ["conv"])(model)
    (got,) = run(without_rounding(result.model), image)
    # The weights themselves were rounded: that error stays, and no other.
    assert float(np.abs(got - expected).max()) < 0.02 * float(np.ptp(expected))


def test_only_what_is_needed_stands_in_front() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": exact_weight(rng, 4, 3, 3, 3), "b": np.zeros(4, np.float32)}
    plain = InsertQdq({"x": Quantizer(scale=0.1)}, ["conv"])(model_of(DENSE, constants)).model
    assert kinds(plain) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]
    shifted = InsertQdq({"x": Quantizer(scale=0.1, shift=5)}, ["conv"])(model_of(DENSE, constants)).model
    assert kinds(shifted) == ["Pad", "Add", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]


TWO_READERS = """
agraph (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] a, float[1, 4, 9, 9] b)
{
  [one] a = Conv (x, w1)
  [two] b = Conv (x, w2)
}
"""


def test_readers_of_one_tensor_share_one_pair() -> None:
    rng = np.random.default_rng(0)
    constants = {"w1": exact_weight(rng, 4, 3, 1, 1), "w2": exact_weight(rng, 4, 3, 1, 1)}
    result = InsertQdq({"x": Quantizer(scale=0.1, shift=3)}, ["one", "two"])(model_of(TWO_READERS, constants))
    assert kinds(result.model).count("QuantizeLinear") == 1
    image = rng.normal(0, 1, (1, 3, 9, 9)).astype(np.float32)
    for got, expected in zip(
        run(without_rounding(result.model), image), run(model_of(TWO_READERS, constants), image), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


RELU = """
agraph (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y)
{
  [one] a = Conv (x, w1)
  r = Relu (a)
  [two] y = Conv (r, w2)
}
"""


def test_nothing_stands_between_a_layer_and_its_activation_function() -> None:
    rng = np.random.default_rng(0)
    constants = {"w1": exact_weight(rng, 4, 3, 1, 1), "w2": exact_weight(rng, 4, 4, 1, 1)}
    quantizers = {"x": Quantizer(scale=0.1), "r": Quantizer(scale=0.1, shift=128)}
    model = InsertQdq(quantizers, ["one", "two"])(model_of(RELU, constants)).model
    (relu,) = [node for node in model.graph if node.op_type == "Relu"]
    assert relu.inputs[0] is not None
    producer = relu.inputs[0].producer()
    assert producer is not None
    assert producer.op_type == "Conv"


def test_a_second_time_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": exact_weight(rng, 4, 3, 3, 3), "b": np.zeros(4, np.float32)}
    once = InsertQdq({"x": Quantizer(scale=0.1)}, ["conv"])
    model = once(model_of(DENSE, constants)).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    again = once.apply(model)
    assert not again.modified
    assert [d.node for d in again.declined] == ["conv"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_float_weights_do_not_stay_behind() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": exact_weight(rng, 4, 3, 3, 3), "b": np.zeros(4, np.float32)}
    model = InsertQdq({"x": Quantizer(scale=0.1)}, ["conv"])(model_of(DENSE, constants)).model
    assert "w" not in model.graph.initializers
    assert all(value.uses() for value in model.graph.initializers.values())


CHAIN = """
agraph (float[2, 6] x) => (float[2, 4] y)
{
  [one] a = MatMul (x, w1)
  [two] y = MatMul (a, w2)
}
"""


def test_a_shifted_product_hands_on_its_bias() -> None:
    rng = np.random.default_rng(0)
    constants = {"w1": exact_weight(rng, 5, 6).T.copy(), "w2": exact_weight(rng, 4, 5).T.copy()}
    quantizers = {"x": Quantizer(scale=0.02, shift=30), "a": Quantizer(scale=0.02, shift=-20)}
    result = InsertQdq(quantizers, ["one", "two"])(model_of(CHAIN, constants))
    image = rng.normal(0, 1, (2, 6)).astype(np.float32)
    (got,), (expected,) = run(without_rounding(result.model), image), run(model_of(CHAIN, constants), image)
    np.testing.assert_allclose(got, expected, atol=1e-5)


SCALED = "g (float[2, 6] x) => (float[2, 5] y) { [conv] y = Gemm <transB = 1, alpha = 2.0> (x, w) }"
AUTOMATIC = """
g (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y)
{ [conv] y = Conv <auto_pad = "SAME_UPPER"> (x, w) }
"""


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        (SCALED, ["conv"], "alpha"),
        (AUTOMATIC, ["conv"], "auto_pad"),
        (DENSE, ["nobody"], "no layer of this name"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_declined_with_a_reason(
    text: str, names: Sequence[str], reason: str
) -> None:
    shape = (5, 6) if "Gemm" in text else (4, 3, 3, 3)
    constants = {"w": np.ones(shape, np.float32), "b": np.zeros(4, np.float32)}
    if "Gemm" in text or "auto_pad" in text:
        constants.pop("b")
    result = InsertQdq({"x": Quantizer(scale=0.1)}, names)(model_of(text, constants))
    assert not result.modified
    assert reason in result.declined[0].reason


def test_a_layer_without_a_range_is_an_error() -> None:
    constants = {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.zeros(4, np.float32)}
    with pytest.raises(CalibrationError, match="layer conv reads x, which has no range"):
        InsertQdq({}, ["conv"])(model_of(DENSE, constants))
