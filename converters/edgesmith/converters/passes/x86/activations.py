"""SiLU (Elfwing et al. 2018, x * sigmoid(x)) in integers: a table lookup and an integer product.

The sigmoid lies on the grid of 1/256. Its argument needs no more than the values that change an integer of
the product: where the SiLU of all lower values rounds to zero they are cut off, which leaves finer steps to
the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.converters.passes.x86.draft import Array, Draft, Grid, only_reader

SIGMOID = Grid(1 / 256, 0)
SATURATED = 8.0  # beyond it a sigmoid is within a tenth of its step of 0 or 1
LOWEST = -1.2784645  # the argument of SiLU's least value
SHARES = np.linspace(1.0, 0.2, 17)  # of the range below zero
BELOW = np.linspace(LOWEST, -16.0, 1024)
SILU_BELOW = BELOW / (1 + np.exp(-BELOW))


@dataclass(frozen=True)
class Silu:
    """``result = linear * sigmoid(gate)``; both come from one layer, and no other node reads either."""

    layer: ir.Node
    linear: ir.Value
    sigmoid: ir.Node
    product: ir.Node

    @property
    def result(self) -> ir.Value:
        """The product."""
        return self.product.outputs[0]


def silu_of(draft: Draft, product: ir.Node) -> Silu | None:
    """The SiLU that ends in this node, where a quantized layer feeds it and nothing else reads its parts."""
    if product.op_type != "Mul":
        return None
    for linear, gate in (product.inputs, product.inputs[::-1]):
        sigmoid = gate.producer() if gate is not None else None
        layer = linear.producer() if linear is not None else None
        if linear is None or gate is None or sigmoid is None or layer is None:
            continue
        if sigmoid.op_type != "Sigmoid" or sigmoid.inputs[0] is not linear or layer not in draft.layers:
            continue
        readers = {user for user, _ in linear.uses()}
        if only_reader(gate, product) and not linear.is_graph_output() and readers == {sigmoid, product}:
            return Silu(layer, linear, sigmoid, product)
    return None


def quantize_silu(draft: Draft, silu: Silu) -> None:
    """Grids for the parts of a SiLU, by that of its result; its factor goes into the layer in front.

    x / f comes out of the layer, and the sigmoid reads f * (x / f): sigmoid(x) * x / f is the result
    divided by the factor.
    """
    result, linear = silu.result, silu.linear
    grid, found = draft.grids.get(result), draft.ranges.get(linear.name or "")
    if grid is None or found is None:
        return
    factor = draft.factors.get(result)
    divisor = np.ones(1) if factor is None else factor
    low = np.maximum(found.low, [_lowest(grid.scale * one) for one in divisor]) / divisor
    high = np.minimum(found.high / divisor, grid.high)
    if factor is not None:
        draft.divide(silu.layer, factor)
        whole = draft.times(linear, factor, f"{linear.name}/whole")
        silu.sigmoid.replace_input_with(0, whole)
        ends = max(float(found.low.min()), -SATURATED), min(float(found.high.max()), SATURATED)
        draft.grids[whole] = Grid.between(*ends)
    sample = None if found.sample is None else found.sample / divisor
    draft.grids[linear] = _nearest(
        float(low.min()), float(high.max()), sample, lambda x: x / (1 + np.exp(-x * divisor))
    )
    draft.grids[silu.sigmoid.outputs[0]] = SIGMOID


def limit_leaky(draft: Draft, node: ir.Node) -> None:
    """A grid for what a LeakyReLU reads by that of its result, where nothing else reads it."""
    inner, result = node.inputs[0], node.outputs[0]
    if inner is None or not only_reader(inner, node) or inner.producer() not in draft.layers:
        return
    grid, found = draft.grids.get(result), draft.ranges.get(inner.name or "")
    slope = node.attributes.get_float("alpha", 0.01)
    if grid is None or found is None or slope <= 0:
        return
    low = max(float(found.low.min()), grid.low / slope)
    high = min(float(found.high.max()), grid.high)
    draft.grids[inner] = _nearest(low, high, found.sample, lambda x: np.maximum(x, slope * x))


def _nearest(low: float, high: float, sample: Array | None, function: Callable[[Array], Array]) -> Grid:
    """The grid up to ``high``, of which the function's results differ least from the exact ones.

    Low values, of which the function makes little, are cut off where finer steps are worth more.
    """
    if sample is None or low >= 0:
        return Grid.between(low, high)
    exact = function(sample)
    grids = [Grid.between(low * share, high) for share in SHARES]
    losses = [float(np.square(function(grid(sample)) - exact).mean()) for grid in grids]
    return grids[int(np.argmin(losses))]


def _lowest(step: float) -> float:
    """Below which argument SiLU rounds to zero on a grid of this step."""
    over = np.flatnonzero(np.abs(SILU_BELOW) > step / 2)
    return float(BELOW[over[-1]]) if over.size else 0.0
