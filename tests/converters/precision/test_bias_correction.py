"""The mean error of each channel is taken off, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.calibration.sites import Site
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.precision.bias_correction import AddToBias, bias_corrections
from edgesmith.converters.precision.lockstep import channel_means, lockstep
from edgesmith.converters.precision.quantizers import quantizers_for

Floats = NDArray[np.float32]
LAYERS = ("stem", "left", "right", "depthwise", "point", "last")


@pytest.fixture
def quantized(
    graph: onnx.ModelProto, tensors: list[Floats], sites: dict[str, Site], table_of: Callable[..., ScaleTable]
) -> onnx.ModelProto:
    """Without the factor: the depthwise layer's small channels lose most of their values."""
    chosen = quantizers_for(table_of(graph, tensors), list(sites.values()), method="mse", repairs=())
    return ir.to_proto(InsertQdq(chosen, LAYERS)(ir.serde.deserialize_model(graph)).model)


def corrected(model: onnx.ModelProto, deltas: dict[str, NDArray[np.float64]]) -> onnx.ModelProto:
    result = AddToBias(deltas)(ir.serde.deserialize_model(model))
    assert result.changes == len(deltas)
    assert result.declined == ()
    return ir.to_proto(result.model)


def mean_errors(
    graph: onnx.ModelProto, other: onnx.ModelProto, tensors: list[Floats]
) -> dict[str, NDArray[np.float64]]:
    """By layer: the mean error of each channel, as a share of the layer's spread."""
    return {
        step.name: np.abs(channel_means(step.quantized) - channel_means(step.exact)) / np.std(step.exact)
        for step in lockstep(graph, other, LAYERS, tensors)
    }


def test_after_the_correction_every_channels_mean_is_the_float_mean(
    graph: onnx.ModelProto, quantized: onnx.ModelProto, tensors: list[Floats]
) -> None:
    before = mean_errors(graph, quantized, tensors)
    deltas, _ = bias_corrections(graph, quantized, LAYERS, tensors)
    after = mean_errors(graph, corrected(quantized, deltas), tensors)
    assert max(error.max() for error in before.values()) > 0.01
    for name, error in after.items():
        assert error.max() < 1e-4, name


def test_measured_all_at_once_the_corrections_do_not_fit_one_another(
    graph: onnx.ModelProto, quantized: onnx.ModelProto, tensors: list[Floats]
) -> None:
    """What the strict order is for: one pass without shifts counts the errors before a layer twice."""
    at_once, _ = bias_corrections(graph, quantized, LAYERS, tensors, correct=False)
    in_order, _ = bias_corrections(graph, quantized, LAYERS, tensors)
    np.testing.assert_allclose(at_once["stem"], in_order["stem"])
    assert not np.allclose(at_once["point"], in_order["point"], rtol=0.05)
    wrong = mean_errors(graph, corrected(quantized, at_once), tensors)
    right = mean_errors(graph, corrected(quantized, in_order), tensors)
    for name in ("depthwise", "point", "last"):
        assert wrong[name].max() > 20 * right[name].max(), name


def test_the_ratios_are_those_of_the_layers(
    graph: onnx.ModelProto, quantized: onnx.ModelProto, tensors: list[Floats]
) -> None:
    _, measured = bias_corrections(graph, quantized, LAYERS, tensors, correct=False)
    for step in lockstep(graph, quantized, LAYERS, tensors):
        signal = sum(float((v.astype(np.float64) ** 2).sum()) for v in step.exact)
        noise = sum(
            float(((a.astype(np.float64) - b) ** 2).sum())
            for a, b in zip(step.exact, step.quantized, strict=True)
        )
        assert measured[step.name] == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    _, repaired = bias_corrections(graph, quantized, LAYERS, tensors)
    assert repaired["last"] > measured["last"]


def test_a_shared_bias_changes_for_the_named_layer_alone() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y, float[1, 1, 2, 2] z)
        <float[1, 1, 1, 1] w = {1.0}, float[1] b = {2.0}>
        { [one] y = Conv (x, w, b) [two] z = Conv (x, w, b) [bare] q = Conv (x, w) }"""
    )
    result = AddToBias({"one": np.array([0.5]), "bare": np.array([1.0]), "nowhere": np.array([1.0])})(
        ir.serde.deserialize_model(model)
    )
    assert result.changes == 1
    assert {place.node: place.reason for place in result.declined} == {
        "bare": "it has no constant bias", "nowhere": "no layer nowhere",
    }  # fmt: skip
    biases = [
        None if node.inputs[2:] == () else np.asarray(node.inputs[2].const_value.numpy()).tolist()  # type: ignore[union-attr]
        for node in result.model.graph
    ]
    assert biases[:2] == [[2.5], [2.0]]
