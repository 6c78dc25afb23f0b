"""The offset in front of a Q goes into the bias of the layer before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.converters.passes.fold_factor import FoldFactor
from edgesmith.converters.passes.fold_offset import FoldOffset
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.passes.lint import require_clean

Floats = NDArray[np.float32]
CHAIN = """
g (float[1, 3, 9, 9] x) => (float[1, 5, 9, 9] y) <float zero = {0.0}, float six = {6.0}>
{
  [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  ACTIVATION
  [two] y = Conv (r, w2, b2)
}
"""
SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (5, 4, 1, 1), "b2": (5,)}
QUANTIZERS = {"x": Quantizer(scale=0.03), "r": Quantizer(scale=0.02, shift=128)}
IMAGE = np.random.default_rng(0).normal(0, 1, (1, 3, 9, 9)).astype(np.float32)


def quantized(
    parsed: Callable[..., ir.Model], activation: str, **changes: object
) -> tuple[ir.Model, ir.Model]:
    text = CHAIN.replace("ACTIVATION", activation)
    made = [parsed(text, **{**SHAPES, **changes}) for _ in range(2)]
    InsertQdq(QUANTIZERS, ["one", "two"])(made[1])
    return made[0], made[1]


@pytest.mark.parametrize(
    ("activation", "limits"),
    [
        ("r = Relu (a)", [-2.56]),
        ("r = Clip (a, zero, six)", [-2.56, 3.44]),
        ("r = Clip (a, zero)", [-2.56]),
        ("r = Clip (a, , six)", [None, 3.44]),
    ],
    ids=["relu", "relu6", "lower limit", "upper limit"],
)
def test_the_integers_and_the_answers_stay(
    parsed: Callable[..., ir.Model],
    ran: Callable[[ir.Model, Floats], list[Floats]],
    bare: Callable[[ir.Model], ir.Model],
    on_grid: Callable[..., ir.Model],
    activation: str,
    limits: list[float | None],
) -> None:
    exact, model = quantized(parsed, activation)
    before = ran(model, IMAGE)[0]
    result = FoldOffset()(model)
    assert (result.changes, result.declined) == (1, ())
    assert "Add" not in [node.op_type for node in model.graph]
    require_clean(model)
    (clip,) = [node for node in model.graph if node.op_type == "Clip"]
    found = [
        None if v is None or v.const_value is None else float(v.const_value.numpy()) for v in clip.inputs[1:]
    ]
    assert found == [None if one is None else pytest.approx(one, abs=1e-6) for one in limits]
    span = float(np.ptp(before))
    # A value in the middle between two integers may go either way: one step of one input, if at all.
    assert float(np.abs(ran(model, IMAGE)[0] - before).max()) < 0.02 * span
    assert float(np.abs(ran(model, IMAGE)[0] - before).mean()) < 1e-4 * span
    expected = ran(on_grid(exact, QUANTIZERS), IMAGE)[0]
    assert float(np.abs(ran(bare(model), IMAGE)[0] - expected).max()) < 1e-5 * span


def test_a_layer_without_an_activation_function_or_bias(
    parsed: Callable[..., ir.Model], ran: Callable[[ir.Model, Floats], list[Floats]]
) -> None:
    text = CHAIN.replace("ACTIVATION", "").replace("(r,", "(a,").replace(", b1)", ")")
    model = parsed(text, w1=SHAPES["w1"], w2=SHAPES["w2"], b2=SHAPES["b2"])
    InsertQdq({"a": Quantizer(scale=0.02, shift=10)}, ["two"])(model)
    before = ran(model, IMAGE)[0]
    assert FoldOffset()(model).changes == 1
    assert [node.op_type for node in model.graph][:2] == ["Conv", "QuantizeLinear"]
    assert float(np.abs(ran(model, IMAGE)[0] - before).mean()) < 1e-4 * float(np.ptp(before))


def test_a_matrix_product_before_a_matrix_product(
    parsed: Callable[..., ir.Model], ran: Callable[[ir.Model, Floats], list[Floats]]
) -> None:
    """Gemm's beta goes into its bias."""
    text = """g (float[4, 6] x) => (float[4, 5] y)
    { [one] a = Gemm <beta = 0.5> (x, w1, b1) r = Relu (a) [two] y = Gemm <transB = 1> (r, w2, b2) }"""
    model = parsed(text, w1=(6, 7), b1=(7,), w2=(5, 7), b2=(5,))
    InsertQdq({"r": Quantizer(scale=0.02, shift=128, factor=(1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0))}, ["two"])(
        model
    )
    image = np.random.default_rng(1).normal(0, 1, (4, 6)).astype(np.float32)
    before = ran(model, image)[0]
    assert (FoldFactor()(model).changes, FoldOffset()(model).changes) == (1, 1)
    assert {"Mul", "Add"}.isdisjoint(node.op_type for node in model.graph)
    assert float(np.abs(ran(model, image)[0] - before).max()) < 0.02 * float(np.ptp(before))


def test_a_second_time_changes_nothing(parsed: Callable[..., ir.Model]) -> None:
    model = FoldOffset()(quantized(parsed, "r = Relu (a)")[1]).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    again = FoldOffset()(model)
    assert (again.changes, again.declined) == (0, ())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert all(value.uses() for value in model.graph.initializers.values())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("ACTIVATION", "r = LeakyRelu (a)", "LeakyRelu does more than limit"),
        ("ACTIVATION", "s = Sigmoid (a) r = Mul (a, s)", "r is made by Mul, not by a layer"),
        ("ACTIVATION", "low = Relu (six) r = Clip (a, low)", "are computed in the graph"),
    ],
    ids=["leaky", "SiLU", "computed limit"],
)
def test_declined_with_a_reason(parsed: Callable[..., ir.Model], old: str, new: str, reason: str) -> None:
    model = parsed(CHAIN.replace(old, new), **SHAPES)
    InsertQdq(QUANTIZERS, ["one", "two"])(model)
    result = FoldOffset()(model)
    assert result.changes == 0
    assert len(result.declined) == 1
    assert reason in result.declined[0].reason


def test_what_a_layer_pads_with_must_stay_zero(parsed: Callable[..., ir.Model]) -> None:
    text = CHAIN.replace("ACTIVATION", "r = Relu (a)").replace(
        "y = Conv (r", "y = Conv <pads = [1, 1, 1, 1]> (r"
    )
    model = parsed(text, **{**SHAPES, "w2": (5, 4, 3, 3)})
    InsertQdq(QUANTIZERS, ["one", "two"])(model)
    (declined,) = FoldOffset()(model).declined
    assert declined.node == "two/in/Add"
    assert "pads with zeros" in declined.reason


def test_a_factor_that_stays_in_front_keeps_the_offset_there(parsed: Callable[..., ir.Model]) -> None:
    text = CHAIN.replace("ACTIVATION", "r = Clip (a, zero, six)")
    model = parsed(text, **SHAPES)
    quantizer = Quantizer(scale=0.02, shift=128, factor=(1.0, 9.0, 1.0, 1.0))
    InsertQdq({"x": QUANTIZERS["x"], "r": quantizer}, ["one", "two"])(model)
    assert not FoldFactor()(model).modified
    (declined,) = FoldOffset()(model).declined
    assert declined.reason == "a factor stands between the layer before and the addition"
