"""The factor in front of a Q goes into the layer before it; the integers stay the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images, tensors
from edgesmith.calibration.scale_table import Activation, Quantizer
from edgesmith.calibration.sites import sites_of
from edgesmith.converters.passes.fold_factor import FoldFactor
from edgesmith.converters.passes.fold_offset import FoldOffset
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.passes.lint import require_clean
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.bundle import Bundle

Floats = NDArray[np.float32]
FACTOR = (0.25, 1.0, 3.0, 0.7)
CHAIN = """
g (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y)
{
  [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  ACTIVATION
  [two] c = Conv <pads = [1, 1, 1, 1], group = 4> (r, w2, b2)
  y = Relu (c)
}
"""
SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,)}
ACTIVATIONS = {
    "none": "r = Identity (a)",
    "relu": "r = Relu (a)",
    "leaky": "r = LeakyRelu <alpha = 0.1> (a)",
    "prelu": "r = PRelu (a, slope)",
}
QUANTIZERS = {"x": Quantizer(scale=0.03), "r": Quantizer(scale=1 / 127, factor=FACTOR)}
IMAGE = np.random.default_rng(0).normal(0, 1, (1, 3, 9, 9)).astype(np.float32)


def quantized(
    parsed: Callable[..., ir.Model], activation: str, quantizer: Quantizer | None = None
) -> tuple[ir.Model, ir.Model]:
    """The float graph, and the graph with the factor in front of the second layer."""
    text = CHAIN.replace("ACTIVATION", ACTIVATIONS.get(activation, activation))
    constants = dict(SHAPES)
    if activation == "prelu":
        constants["slope"] = (4, 1, 1)
    if activation == "none":  # no node at all between the layers
        text = text.replace("r = Identity (a)", "").replace("(r,", "(a,")
    made = parsed(text, **constants), parsed(text, **constants)
    name = "a" if activation == "none" else "r"
    quantizers = {"x": QUANTIZERS["x"], name: quantizer or QUANTIZERS["r"]}
    InsertQdq(quantizers, ["one", "two"])(made[1])
    return made


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_integers_and_the_answers_stay(
    parsed: Callable[..., ir.Model],
    ran: Callable[[ir.Model, Floats], list[Floats]],
    bare: Callable[[ir.Model], ir.Model],
    on_grid: Callable[..., ir.Model],
    activation: str,
) -> None:
    exact, model = quantized(parsed, activation)
    before = ran(model, IMAGE)[0]
    assert kinds(model).count("Mul") == 1
    result = FoldFactor()(model)
    assert (result.changes, result.declined) == (1, ())
    assert "Mul" not in kinds(model)
    require_clean(model)
    # Rounded: the same integers, so the same answers but for the order of two multiplications.
    span = float(np.ptp(before))
    assert float(np.abs(ran(model, IMAGE)[0] - before).max()) < 1e-5 * span
    # Before rounding: what the float graph computes.
    quantizers = {"x": QUANTIZERS["x"], "a" if activation == "none" else "r": QUANTIZERS["r"]}
    expected = ran(on_grid(exact, quantizers), IMAGE)[0]
    assert float(np.abs(ran(bare(model), IMAGE)[0] - expected).max()) < 1e-5 * span


def test_a_second_time_changes_nothing(parsed: Callable[..., ir.Model]) -> None:
    model = FoldFactor()(quantized(parsed, "relu")[1]).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    again = FoldFactor()(model)
    assert (again.changes, again.declined) == (0, ())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_changed_tensors_do_not_keep_their_names(parsed: Callable[..., ir.Model]) -> None:
    """What calibration measured under a name must not be taken for what now lies there."""
    model = FoldFactor()(quantized(parsed, "relu")[1]).model
    names = {output.name for node in model.graph for output in node.outputs}
    assert {"a", "r"}.isdisjoint(names)
    assert {"a/folded", "r/folded"} < names


def test_constants_are_replaced_not_left_behind(parsed: Callable[..., ir.Model]) -> None:
    model = FoldFactor()(quantized(parsed, "relu")[1]).model
    assert all(value.uses() for value in model.graph.initializers.values())


RELU6 = "r = Clip (a, zero, six)"


@pytest.mark.parametrize(
    ("high", "folds"), [((1.0, 6.0, 3.0, 0.5), True), ((1.0, 9.0, 3.0, 0.5), False)], ids=["inside", "past"]
)
@pytest.mark.parametrize("shift", [0, 128])
def test_a_limit_that_no_channel_reaches_before_its_last_integer(
    parsed: Callable[..., ir.Model],
    ran: Callable[[ir.Model, Floats], list[Floats]],
    high: tuple[float, ...],
    folds: bool,
    shift: int,
) -> None:
    """ReLU6 with factors that are the channels' largest values: the Clip cuts where the integers end."""
    text = CHAIN.replace("ACTIVATION", RELU6).replace(
        "(float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y)",
        "(float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y) <float zero = {0.0}, float six = {6.0}>",
    )
    constants = {**SHAPES, "w1": np.random.default_rng(1).normal(0, 2, (4, 3, 3, 3)).astype(np.float32)}
    model = parsed(text, **constants)
    scale = 1 / 127 if shift == 0 else 1 / 255
    quantizers = {"x": QUANTIZERS["x"], "r": Quantizer(scale=scale, shift=shift, factor=high)}
    InsertQdq(quantizers, ["one", "two"])(model)
    before = ran(model, IMAGE)[0]
    result = FoldFactor()(model)
    if not folds:
        assert result.changes == 0
        assert "another for each channel" in result.declined[0].reason
        return
    assert result.changes == 1
    after = ran(model, IMAGE)[0]
    assert float(np.abs(after - before).max()) < 1e-4 * float(np.ptp(before))
    (clip,) = [node for node in model.graph if node.op_type == "Clip"]
    assert clip.inputs[2] is not None
    assert clip.inputs[2].const_value is not None
    assert float(clip.inputs[2].const_value.numpy()) == pytest.approx(1.0, abs=1e-6)


ALSO_READ = CHAIN.replace("ACTIVATION", "r = Relu (a)").replace("y = Relu (c)", "y = Add (c, r)")
AN_OUTPUT = (
    CHAIN.replace("ACTIVATION", "r = Relu (a)")
    .replace("=> (float[1, 4, 9, 9] y)", "=> (float[1, 4, 9, 9] y, float[1, 4, 9, 9] r)")
)  # fmt: skip
AN_INNER_OUTPUT = AN_OUTPUT.replace("float[1, 4, 9, 9] r)", "float[1, 4, 9, 9] a)")
NO_LAYER = CHAIN.replace("ACTIVATION", "s = Sigmoid (a) r = Mul (a, s)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALSO_READ, "r is also read elsewhere"),
        (AN_OUTPUT, "r is an output of the graph"),
        (AN_INNER_OUTPUT, "a is also read elsewhere"),
        (NO_LAYER, "r is made by Mul, not by a layer"),
    ],
    ids=["another reader", "an output", "an inner output", "SiLU"],
)
def test_declined_with_a_reason(parsed: Callable[..., ir.Model], text: str, reason: str) -> None:
    model = parsed(text, **SHAPES)
    InsertQdq(QUANTIZERS, ["one", "two"])(model)
    result = FoldFactor()(model)
    assert result.changes == 0
    assert [place.reason for place in result.declined] == [reason]
    assert result.declined[0].node == "two/in/Mul"


def test_a_multiplication_that_stands_in_front_of_no_rounding_is_let_be(
    parsed: Callable[..., ir.Model],
) -> None:
    text = """g (float[1, 3, 9, 9] x) => (float[1, 4, 9, 9] y) <float half = {0.5}>
    { [one] a = Conv (x, w) y = Mul (a, half) }"""
    model = parsed(text, w=(4, 3, 1, 1))
    assert not FoldFactor()(model).modified


def test_a_layer_in_float_takes_it_into_its_weights(
    parsed: Callable[..., ir.Model], ran: Callable[[ir.Model, Floats], list[Floats]]
) -> None:
    model = parsed(CHAIN.replace("ACTIVATION", "r = Relu (a)"), **SHAPES)
    InsertQdq({"r": QUANTIZERS["r"]}, ["two"])(model)
    before = ran(model, IMAGE)[0]
    assert FoldFactor()(model).changes == 1
    np.testing.assert_allclose(ran(model, IMAGE)[0], before, atol=1e-5 * float(np.ptp(before)))


@pytest.mark.slow
def test_nothing_becomes_float(
    parsed: Callable[..., ir.Model], placed: Callable[..., dict[str, str]]
) -> None:
    text = CHAIN.replace("ACTIVATION", "r = Relu (a)").replace("[1, 4,", "[1, 16,")
    text = text.replace("group = 4", "group = 16").replace("[1, 3, 9, 9]", "[1, 16, 9, 9]")
    constants = {"w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,)}
    model = parsed(text, **constants)
    factor = tuple(np.geomspace(0.1, 4, 16).tolist())
    InsertQdq({"x": QUANTIZERS["x"], "r": Quantizer(scale=1 / 127, factor=factor)}, ["one", "two"])(model)
    assert FoldFactor()(model).changes == 1
    assert placed(model, ["one", "two"]) == {"one": "Int8", "two": "Int8"}


def with_room(activation: Activation) -> Activation:
    """Half as much again as each channel reached, up to where a ReLU6 ends."""
    high = [min(1.5 * value + 0.2, 6.0) for value in activation.channel_high]
    return replace(activation, channel_high=tuple(high), high=max(high))


@pytest.mark.assets
@pytest.mark.slow
def test_the_trained_mobilenet_computes_the_same(
    asset_recipe: Callable[..., Recipe],
    asset_bundle: Callable[..., object],
    bare: Callable[[ir.Model], ir.Model],
    on_grid: Callable[..., ir.Model],
    placed: Callable[..., dict[str, str]],
) -> None:
    """ReLU6 everywhere, depthwise and pointwise in turn: before rounding, within 1e-4 of the float range."""
    recipe = asset_recipe("mobilenet_v1_025")
    bundle = Bundle.open(asset_bundle("mobilenet_v1_025", precision__mode="fp32"))  # type: ignore[arg-type]
    exact = onnx.load_from_string(bundle.read(bundle.manifest.variants["float"].member))
    assert recipe.data.calibration is not None
    images = Images.open(recipe.resolve(recipe.data.calibration)).sample(12, 0)
    table = collect(exact.SerializeToString(), images, recipe.preprocess()).table()
    # Rounded weights give values past the measured ones, which a Q cuts off and a folded Clip too: room.
    room = {name: with_room(activation) for name, activation in table.activations.items()}
    table = replace(table, activations={**room, "images": table.activations["images"]})
    sites = [s for s in sites_of(ir.serde.deserialize_model(exact)) if s.node.op_type == "Conv"]
    quantizers = quantizers_for(table, sites, method="minmax", repairs={"fold"})
    model = ir.serde.deserialize_model(exact)
    InsertQdq(quantizers, [site.name for site in sites])(model)
    folds = FoldFactor()(model).changes, FoldOffset()(model).changes
    assert folds == (13, 13)
    assert {"Mul", "Pad"}.isdisjoint(node.op_type for node in model.graph)
    assert not any(node.op_type == "Add" for node in model.graph)
    require_clean(model)
    rounded = on_grid(ir.serde.deserialize_model(exact), quantizers)
    run, other = (graph_runner(ir.to_proto(m), optimised=False) for m in (rounded, bare(model)))
    assert placed(model, [site.name for site in sites]) == dict.fromkeys((s.name for s in sites), "Int8")
    for tensor in tensors(images, recipe.preprocess()):
        expected, got = run(tensor)["logits"], other(tensor)["logits"]
        assert float(np.abs(got - expected).max()) < 1e-4 * float(np.ptp(expected))
