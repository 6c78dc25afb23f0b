"""Layers whose few channels INT8 kernels cannot fill are named, not left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.precision.advice import few_channels


def sites(*layers: tuple[int, int, int, tuple[int, int]]) -> list[Site]:
    """One layer each of (channels in, channels out, groups, kernel)."""
    found = []
    for number, (inputs, outputs, group, kernel) in enumerate(layers):
        text = f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, {inputs}, 16, 16] x) => (float[1, {outputs}, a, b] y)
        {{ [layer{number}] y = Conv <group = {group}> (x, w) }}"""
        proto = onnx.parser.parse_model(text)
        weight = np.ones((outputs, inputs // group, *kernel), np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        found += sites_of(ir.serde.deserialize_model(proto))
    return found


FIRST = (3, 16, 1, (3, 3))


@pytest.mark.parametrize(
    ("layer", "advised"),
    [
        ((16, 16, 1, (1, 1)), False),
        ((8, 16, 1, (3, 3)), False),
        ((8, 8, 1, (3, 3)), True),
        ((12, 9, 1, (3, 3)), True),
        ((8, 32, 1, (1, 3)), True),
        ((32, 32, 32, (3, 3)), False),
        ((12, 12, 12, (3, 3)), True),
        ((32, 32, 32, (1, 3)), True),
    ],
)
def test_the_rule(layer: tuple[int, int, int, tuple[int, int]], advised: bool) -> None:
    found = few_channels(sites(FIRST, layer))
    assert [one.node for one in found] == (["layer1"] if advised else [])
    for one in found:
        assert "channels" in one.why


def test_the_first_layer_may_read_three_channels() -> None:
    def advised(*layers: tuple[int, int, int, tuple[int, int]]) -> Sequence[str]:
        return [one.node for one in few_channels(sites(*layers))]

    assert advised((3, 8, 1, (3, 3))) == []
    assert advised((3, 7, 1, (3, 3))) == ["layer0"]
    assert advised(FIRST, (3, 8, 1, (3, 3))) == ["layer1"]
