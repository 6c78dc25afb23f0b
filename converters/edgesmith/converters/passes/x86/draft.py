"""The graph between its int8 pairs and its uint8 ones: float tensors, and the grid of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined
from edgesmith.converters.passes.constants import add_constant

Array = NDArray[np.float64]
LEAST_RANGE = 1e-6


@dataclass(frozen=True, eq=False)
class TensorRange:
    """What was measured of a tensor: least and largest value ``(C,)``, and some of its values ``(S, C)``."""

    low: Array
    high: Array
    sample: Array | None = None

    def times(self, factor: Array) -> TensorRange:
        """The range of the tensor times a positive factor by channel."""
        sample = None if self.sample is None else self.sample * factor
        return TensorRange(self.low * factor, self.high * factor, sample)


Ranges = Mapping[str, TensorRange]


@dataclass(frozen=True)
class Grid:
    """The uint8 grid of a tensor: ``x ~ (u - zero) * scale``."""

    scale: float
    zero: int

    @property
    def low(self) -> float:
        """The least value that it holds."""
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        """The largest value that it holds."""
        return (255 - self.zero) * self.scale

    def __call__(self, values: Array) -> Array:
        """The values as the integers give them back."""
        integers = np.clip(np.rint(values / self.scale) + self.zero, 0, 255)
        return np.asarray((integers - self.zero) * self.scale)

    @classmethod
    def between(cls, low: float, high: float) -> Grid:
        """The grid from ``low`` to ``high``, zero among its values."""
        low, high = min(0.0, low), max(0.0, high)
        scale = max(high - low, LEAST_RANGE) / 255
        return cls(scale, round(-low / scale))


class Draft:
    """A graph in rewriting.

    Attributes:
        grids: the grid of each tensor that will be in integers.
        factors: by what a tensor that has a grid is divided, by channel, before its Q.
        apart: tensors that stay in float, since a factor stands between them and the Q of their readers.
        layers: quantized layers, and what each reads.
        declined: what stays in float.
    """

    def __init__(self, model: ir.Model, ranges: Ranges) -> None:
        self.graph = model.graph
        self.ranges = dict(ranges)
        self.grids: dict[ir.Value, Grid] = {}
        self.factors: dict[ir.Value, Array] = {}
        self.apart: set[ir.Value] = set()
        self.layers: dict[ir.Node, ir.Value] = {}
        self.declined: list[Declined] = []

    def measured(self, value: ir.Value) -> Grid | None:
        """A grid from the measured range, None where there is none."""
        found = self.ranges.get(value.name or "")
        return None if found is None else Grid.between(float(found.low.min()), float(found.high.max()))

    def give(self, node: ir.Node, result: ir.Value) -> None:
        """Give a tensor the grid of its measured range, or decline what makes it."""
        grid = self.measured(result)
        if grid is None:
            self.declined.append(Declined(node.name or "", f"{result.name} has no range: it stays in float"))
        else:
            self.grids[result] = grid

    def divide(self, layer: ir.Node, factor: Array) -> None:
        """Divide a convolution's output by a factor by channel: Q(w / f) and b / f; the integers stay."""
        dequantize = layer.inputs[1].producer() if layer.inputs[1] is not None else None
        assert dequantize is not None
        scale = constant(dequantize.inputs[1]).astype(np.float64) / factor
        stem = layer.name
        dequantize.replace_input_with(1, self.constant(f"{stem}/scale_folded", scale.astype(np.float32)))
        if len(layer.inputs) > 2 and layer.inputs[2] is not None:
            bias = constant(layer.inputs[2]).astype(np.float64) / factor
            layer.replace_input_with(2, self.constant(f"{stem}/bias_folded", bias.astype(np.float32)))
        self.note_divided(layer.outputs[0], factor)

    def note_divided(self, value: ir.Value, factor: Array) -> None:
        """A tensor is divided by a factor from now on: its name and its range say so."""
        found = self.ranges.get(value.name or "")
        value.name = f"{value.name}/divided"
        if found is not None:
            self.ranges[value.name] = found.times(1 / factor)

    def times(self, value: ir.Value, factor: Array, name: str) -> ir.Value:
        """A tensor times a factor by channel, in integers: a depthwise convolution of one weight a channel.

        It is exact but for the rounding to its result's grid; an integer product would round the factor.
        """
        weight = self.constant(f"{name}/weight", np.full((factor.size, 1, 1, 1), 127, np.int8))
        scale = self.constant(f"{name}/weight_scale", (factor / 127).astype(np.float32))
        zero = self.constant(f"{name}/weight_zero_point", np.zeros(factor.size, np.int8))
        held = ir.node(
            "DequantizeLinear", [weight, scale, zero], attributes={"axis": 0}, name=f"{name}/DequantizeLinear"
        )
        held.outputs[0].name = f"{name}/weight_float"
        layer = ir.node("Conv", [value, held.outputs[0]], attributes={"group": factor.size}, name=name)
        layer.outputs[0].name = f"{name}_output"
        self.place(layer, value, before=[held])
        self.layers[layer] = value
        self._note_times(layer.outputs[0], value, factor)
        return layer.outputs[0]

    def times_float(self, value: ir.Value, factor: Array, name: str) -> ir.Value:
        """A tensor times a factor by channel, in float."""
        rank = 4 if value.shape is None else len(value.shape)
        held = self.constant(f"{name}/factor", factor.astype(np.float32).reshape(-1, *[1] * (rank - 2)))
        node = ir.node("Mul", [value, held], name=name)
        node.outputs[0].name = f"{name}_output"
        self.place(node, value)
        self._note_times(node.outputs[0], value, factor)
        return node.outputs[0]

    def _note_times(self, value: ir.Value, like: ir.Value, factor: Array) -> None:
        found = self.ranges.get(like.name or "")
        if found is not None:
            self.ranges[value.name or ""] = found.times(factor)

    def place(self, node: ir.Node, behind: ir.Value, before: list[ir.Node] | None = None) -> None:
        """Insert a node directly behind what makes a tensor; its output is typed as that tensor."""
        result, maker = node.outputs[0], behind.producer()
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), behind.shape
        nodes = [*(before or []), node]
        if maker is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(maker, nodes)

    def constant(self, name: str, data: NDArray[Any] | np.generic) -> ir.Value:
        """A new constant; the name gets a number where it is taken."""
        return add_constant(self.graph, name, data)


def constant(value: ir.Value | None) -> NDArray[Any]:
    """The array of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def only_reader(value: ir.Value, node: ir.Node) -> bool:
    """Whether no other node reads a tensor, and the graph does not give it out."""
    return not value.is_graph_output() and all(user is node for user, _ in value.uses())
