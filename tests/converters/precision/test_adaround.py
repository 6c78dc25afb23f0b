"""Weights round up or down so that each layer's answers come nearest to the float layer's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer, ScaleTable
from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.passes.insert_qdq import InsertQdq, quantized_weight
from edgesmith.converters.precision.adaround import (
    Layer,
    Moments,
    Settings,
    Unrounded,
    learned_rounding,
    moments_of,
    rounded_rows,
)
from edgesmith.converters.precision.agreement import decibels
from edgesmith.converters.precision.lockstep import LayerOutputs, channel_means, lockstep
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.precision.trial import Way, Workbench
from edgesmith.sdk.bundle import Bundle

Floats = NDArray[np.float32]
LAYERS = ("stem", "left", "right", "depthwise", "point", "last")
BITS = 4  # of the test's weights: few integers make the choice matter


@pytest.fixture
def unrounded(
    graph: onnx.ModelProto, tensors: list[Floats], sites: dict[str, Site], table_of: Callable[..., ScaleTable]
) -> tuple[onnx.ModelProto, dict[str, Unrounded]]:
    """The quantized graph, offsets and factors in it, and what its weights were rounded from."""
    chosen = quantizers_for(
        table_of(graph, tensors), list(sites.values()), method="minmax", repairs={"factor", "offset"}
    )
    model = InsertQdq(chosen, LAYERS)(ir.serde.deserialize_model(graph)).model
    found = {}
    for name, site in sites.items():
        weight, scale = quantized_weight(site, chosen[site.activation].factor)
        found[name] = Unrounded(weight / scale, chosen[site.activation].offset)
    return ir.to_proto(model), found


def test_outputs_after_a_change_of_weights_are_those_of_the_graph_with_them(
    graph: onnx.ModelProto,
    tensors: list[Floats],
    sites: dict[str, Site],
    table_of: Callable[..., ScaleTable],
    unrounded: tuple[onnx.ModelProto, dict[str, Unrounded]],
) -> None:
    """What the steps compute by themselves, and what the finished graph computes, are the same."""
    proto, layers = unrounded
    found = learned_rounding(graph, proto, layers, tensors[:4], correct=False, settings=Settings(ridge=0.0))
    chosen = quantizers_for(
        table_of(graph, tensors), list(sites.values()), method="minmax", repairs={"factor", "offset"}
    )
    model = InsertQdq(chosen, LAYERS, found.weights)(ir.serde.deserialize_model(graph)).model
    again = {
        step.name: decibels(step.exact, step.quantized)
        for step in lockstep(graph, ir.to_proto(model), LAYERS, tensors[:4])
    }
    for name, ratio in found.ratios.items():
        assert ratio == pytest.approx(again[name], abs=0.05), name
    assert set(found.weights) == set(LAYERS)
    assert all(np.abs(weight - np.rint(weight)).max() == 0 for weight in found.weights.values())


def test_no_layer_gets_worse_and_the_whole_gets_better(
    graph: onnx.ModelProto, tensors: list[Floats], unrounded: tuple[onnx.ModelProto, dict[str, Unrounded]]
) -> None:
    proto, layers = unrounded
    found = learned_rounding(graph, proto, layers, tensors[:8], settings=Settings(ridge=0.1))
    assert all(share <= 1.0 for share in found.losses.values())
    assert np.mean(list(found.losses.values())) < 0.97
    for name, one in layers.items():
        # Up or down, never further.
        assert np.abs(found.weights[name] - one.weight).max() < 1.0 + 1e-6
        assert np.abs(found.weights[name]).max() <= 127


def test_the_same_seed_gives_the_same_weights(
    graph: onnx.ModelProto, tensors: list[Floats], unrounded: tuple[onnx.ModelProto, dict[str, Unrounded]]
) -> None:
    def learned(seed: int) -> dict[str, NDArray[np.int8]]:
        settings = Settings(positions=20, seed=seed)
        return learned_rounding(graph, *unrounded, tensors[:3], settings=settings).weights

    first, second, other = learned(1), learned(1), learned(2)
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def coarse(weight: Floats) -> Layer:
    """A pointwise layer whose weights have few integers."""
    limit = 2 ** (BITS - 1) - 1
    scale = np.abs(weight).max(1, keepdims=True) / limit
    node = ir.node("Conv", [None, None], name="layer")
    target = (weight / scale).astype(np.float32)
    return Layer(node, (*weight.shape, 1, 1), np.rint(target), target, scale.astype(np.float32), 0.0, 1)


def correlated(random: np.random.Generator, channels: int) -> tuple[Moments, Floats]:
    """Moments of inputs that move together, where rounding to nearest is far from the best."""
    noise = random.normal(0, 0.1, (4000, channels))
    x = random.normal(0, 1, (4000, 3)) @ random.normal(0, 1, (3, channels)) + noise
    weight = random.normal(0, 1, (8, channels))
    y = x @ weight.T
    second = (x.T @ x / len(x)).astype(np.float32)[None]
    cross, power = (y.T @ x / len(x)).astype(np.float32), (y * y).mean(0).astype(np.float32)
    return Moments(second, cross, power), weight.astype(np.float32)


def test_correlated_inputs_are_where_it_pays() -> None:
    moments, weight = correlated(np.random.default_rng(0), 24)
    layer = coarse(weight)
    rows, share = rounded_rows(layer, moments, Settings(ridge=0.0))
    assert share < 0.25
    before, after = moments.loss(layer.nearest * layer.scale), moments.loss(rows * layer.scale)
    assert (after <= before).all()
    assert share == pytest.approx(after.sum() / before.sum())


def test_the_ridge_holds_weights_at_nearest() -> None:
    moments, weight = correlated(np.random.default_rng(0), 24)
    layer = coarse(weight)
    turned = [
        int((rounded_rows(layer, moments, Settings(ridge=ridge))[0] != layer.nearest).sum())
        for ridge in (0.0, 1.0, 1e4)
    ]
    assert turned[0] > turned[1] > turned[2] == 0


def test_no_single_turn_is_left_that_would_help() -> None:
    """What is found is a minimum: every other choice of one weight loses."""
    moments, weight = correlated(np.random.default_rng(4), 12)
    layer = coarse(weight)
    rows, _ = rounded_rows(layer, moments, Settings(ridge=0.0))
    reached = moments.loss(rows * layer.scale)
    for column in range(12):
        turned = rows.copy()
        up, down = np.ceil(layer.target[:, column]), np.floor(layer.target[:, column])
        turned[:, column] = np.clip(up + down - rows[:, column], -127, 127)
        assert (moments.loss(turned * layer.scale) >= reached - 1e-5 * moments.power).all()


def test_with_independent_inputs_nearest_is_best() -> None:
    random = np.random.default_rng(1)
    weight = random.normal(0, 1, (8, 12)).astype(np.float32)
    layer = coarse(weight)
    moments = Moments(np.eye(12, dtype=np.float32)[None], weight, (weight * weight).sum(1))
    rows, share = rounded_rows(layer, moments, Settings())
    np.testing.assert_array_equal(rows, layer.nearest)
    assert share == 1.0


@pytest.mark.parametrize("group", [1, 2, 4])
def test_moments_are_those_of_what_the_layer_reads(group: int) -> None:
    """Strides, dilations and uneven padding: y = W x holds with the columns as they are gathered."""
    random = np.random.default_rng(2)
    weight = random.normal(0, 1, (8, 4 // group, 3, 2)).astype(np.float32)
    text = f"""<ir_version: 9, opset_import: ["" : 20]> g (float[1, 4, 9, 8] x) => (float[1, 8, 4, 9] y)
    {{ [c] y = Conv <group = {group}, pads = [2, 1, 0, 3], strides = [2, 1], dilations = [1, 2]> (x, w) }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    node = next(iter(ir.serde.deserialize_model(proto).graph))
    value = random.normal(0, 1, (1, 4, 9, 8)).astype(np.float32)
    (found,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": value})
    answer = np.asarray(found, np.float32)
    rows = weight.reshape(8, -1)
    layer = Layer(node, weight.shape, rows, rows, np.ones((8, 1), np.float32), 0.0, group)
    step = LayerOutputs("c", [answer], [answer], [value])
    moments = moments_of(layer, step, np.zeros(8, np.float32), 10**6, random, False)
    assert moments.loss(rows).max() < 1e-3 * moments.power.max()
    some = moments_of(layer, step, np.zeros(8, np.float32), 7, random, True)
    assert some.loss(rows).max() < 1e-3 * moments.power.max()


def test_biases_take_the_means_afterwards(
    graph: onnx.ModelProto, tensors: list[Floats], unrounded: tuple[onnx.ModelProto, dict[str, Unrounded]]
) -> None:
    proto, layers = unrounded
    found = learned_rounding(graph, proto, layers, tensors[:8], settings=Settings())
    assert set(found.deltas) == set(LAYERS)
    first = next(iter(lockstep(graph, graph, LAYERS, tensors[:8])))
    assert found.deltas["stem"].shape == channel_means(first.exact).shape


def test_as_a_repair_it_brings_the_answers_nearer(bench: Workbench) -> None:
    names = frozenset({"factor", "offset", "bias"})
    without = bench.try_way(Way(names, "mse"))
    learned = bench.try_way(Way(names | {"adaround"}, "mse"))
    assert learned.agreement.decibels > without.agreement.decibels
    assert set(learned.weights) == set(learned.layer_db)
    # A layer given back to float leaves the others' learned weights in place.
    graph = bench.without(learned, {"left"})
    kept = {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer}
    np.testing.assert_array_equal(kept["point/weight"], learned.weights["point"])
    assert "left_w" in kept


@pytest.mark.assets
@pytest.mark.slow
def test_on_a_trained_layer_the_error_falls(asset_bundle: Callable[..., object]) -> None:
    """The first layers of the trained ResNet-20, on noise of the images' range."""
    bundle = Bundle.open(asset_bundle("resnet20_cifar", precision__mode="fp32"))  # type: ignore[arg-type]
    exact = onnx.load_from_string(bundle.read(bundle.manifest.variants["float"].member))
    model = ir.serde.deserialize_model(exact)
    random = np.random.default_rng(3)
    tensors = [random.normal(0, 1, (1, 3, 32, 32)).astype(np.float32) for _ in range(16)]
    chosen = [site for site in sites_of(model) if site.node.op_type == "Conv"][:3]
    found = {}
    for site in chosen:
        weight, scale = quantized_weight(site, None)
        found[site.name] = Unrounded(weight / scale)
    quantizers = {site.activation: Quantizer(scale=0.05) for site in chosen}
    proto = ir.to_proto(InsertQdq(quantizers, list(found))(model).model)
    losses = learned_rounding(exact, proto, found, tensors).losses
    assert set(losses) == set(found)
    assert max(losses.values()) < 1.0
