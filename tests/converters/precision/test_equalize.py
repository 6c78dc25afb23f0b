"""Ranges follow their tensors through equalization; no image is read again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.converters.precision.equalize import equalized
from edgesmith.converters.runners import graph_runner

Floats = NDArray[np.float32]


def test_rescaled_ranges_are_those_of_the_equalized_graph(
    graph: onnx.ModelProto, tensors: list[Floats], table_of: Callable[..., ScaleTable]
) -> None:
    table = table_of(graph, tensors)
    other, rescaled = equalized(graph, table)
    measured = table_of(other, tensors)
    changed = {name for name in table.activations if rescaled.activations[name] != table.activations[name]}
    assert changed == {"rf"}  # the one tensor with a layer before it and only layers behind it
    for name, activation in measured.activations.items():
        found = rescaled.activations[name]
        np.testing.assert_allclose(found.channel_high, activation.channel_high, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.channel_low, activation.channel_low, rtol=1e-4, atol=1e-5)
        assert found.symmetric["minmax"] == pytest.approx(activation.symmetric["minmax"], rel=1e-4)
        assert found.asymmetric["minmax"] == pytest.approx(activation.asymmetric["minmax"], rel=1e-4)
    before, after = table.activations["rf"], rescaled.activations["rf"]
    share = before.symmetric["mse"][1] / before.high
    assert after.symmetric["mse"][1] / after.high == pytest.approx(share)


def test_the_graph_still_computes_the_same(
    graph: onnx.ModelProto, tensors: list[Floats], table_of: Callable[..., ScaleTable]
) -> None:
    other, _ = equalized(graph, table_of(graph, tensors))
    for tensor in tensors[:4]:
        expected, got = (graph_runner(model)(tensor)["logits"] for model in (graph, other))
        np.testing.assert_allclose(got, expected, atol=1e-4 * float(np.ptp(expected)))
