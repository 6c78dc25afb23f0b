"""The quantized graph as an x86 CPU wants it: uint8 activations, and a Q behind each layer as well.

onnxruntime computes a layer in integers only where a Q follows it, has fast kernels on x86 for uint8
activations alone, and takes a ReLU in where the zero point is 0. What stands in front of the Q for TensorRT's
sake becomes the zero point:

    x -> Mul(1 / f) -> Pad(0) -> Add(-c) -> Q(int8, 0)     q = round(x / (f s)) - shift,  c = shift * s
    x -> Q(uint8, 128 - shift)                             u = round(x / (f s)) + 128 - shift = q + 128

Behind a ReLU ``shift`` is 128, so the zero point is 0. Padding goes back into the convolution, which pads
with the zero point, and the compensation comes off its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined, Pass, PassResult

Array = NDArray[np.float64]
Ranges = Mapping[str, tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]]
MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Split", "Slice", "Resize", "Flatten"})
ARITHMETIC = frozenset({"Add", "Concat", "LeakyRelu"})
LIMITERS = frozenset({"Relu", "Clip"})
LEAST_RANGE = 1e-6
LEAST_FACTOR = 1e-4  # of the largest: a channel that hardly moves is not blown up
LIMIT_SLACK = 1e-3  # of a step: the last integer and a Clip's limit may differ by rounding


@dataclass(frozen=True)
class Grid:
    """The uint8 grid of a tensor: ``x ~ (u - zero) * scale * factor``.

    ``folded``: the tensor in the graph is divided by the factor already, by its producer's weights.
    """

    scale: float
    zero: int
    factor: Array | None = None
    folded: bool = False

    @property
    def low(self) -> Array:
        """The least value that it holds, by channel where there is a factor."""
        return np.asarray(-self.zero * self.scale * (1.0 if self.factor is None else self.factor))

    @property
    def high(self) -> Array:
        """The largest value that it holds."""
        return np.asarray((255 - self.zero) * self.scale * (1.0 if self.factor is None else self.factor))


class X86(Pass):
    """Rewrite a graph with int8 Q/DQ pairs for onnxruntime on an x86 CPU.

    Tensors that calibration did not measure, those that no quantized layer reads, get their grid from
    ``ranges``: least and largest value by channel, by tensor name. Where a tensor has none, what makes it
    stays in float and is declined.
    """

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges

    def apply(self, model: ir.Model) -> PassResult:
        """Rewrite; a graph whose activations are uint8 already is left alone."""
        rewrite = _Rewrite(model, self.ranges)
        count = rewrite.take_pairs()
        if count:
            rewrite.absorb_limits()
            rewrite.fold_factors()
            rewrite.spread()
            rewrite.write_pairs()
            rewrite.integer_biases()
            drop_unused(model)
        return PassResult(model, count, tuple(rewrite.declined))


class _Rewrite:
    def __init__(self, model: ir.Model, ranges: Ranges) -> None:
        self.graph = model.graph
        self.ranges = ranges
        self.grids: dict[ir.Value, Grid] = {}
        self.layers: dict[ir.Node, ir.Value] = {}  # quantized layers, and what each reads
        self.declined: list[Declined] = []

    def take_pairs(self) -> int:
        """Take each int8 pair out with the arithmetic in front of it, and note its grid."""
        count = 0
        for quantize in [n for n in self.graph if n.op_type == "QuantizeLinear"]:
            zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
            if zero is None or zero.dtype != ir.DataType.INT8:
                continue
            scale = float(constant(quantize.inputs[1]))
            source, chain = quantize.inputs[0], [quantize]
            shift, factor, pads = 0, None, None
            for kind in ("Add", "Pad", "Mul"):
                node = source.producer() if source is not None else None
                held = node.inputs[1] if node is not None and node.op_type == kind else None
                ours = node is not None and (node.name or "").endswith(f"/in/{kind}")
                if node is None or held is None or held.const_value is None or not ours:
                    continue
                if kind == "Add":
                    shift = round(-float(held.const_value.numpy()) / scale)
                elif kind == "Pad":
                    pads = [int(v) for v in held.const_value.numpy()]
                else:
                    factor = 1 / held.const_value.numpy().astype(np.float64).reshape(-1)
                chain.append(node)
                source = node.inputs[0]
            assert source is not None
            products = [
                n.name
                for d in quantize.outputs[0].consumers()
                for n in d.outputs[0].consumers()
                if n.op_type == "MatMul"
            ]
            if products and shift:
                why = "its offset is compensated behind it: it stays as it is"
                self.declined += [Declined(name or "", why) for name in products]
                continue
            self.grids[source] = self._grid(source, scale, shift, factor)
            for dequantize in list(quantize.outputs[0].consumers()):
                for layer in list(dequantize.outputs[0].consumers()):
                    self._restore(layer, shift * scale, pads)
                    self.layers[layer] = source
                ir.convenience.replace_all_uses_with(dequantize.outputs[0], source)
                self.graph.remove(dequantize, safe=True)
            for node in chain:
                if not node.outputs[0].uses():
                    self.graph.remove(node, safe=True)
            count += 1
        return count

    def _grid(self, source: ir.Value, scale: float, shift: int, factor: Array | None) -> Grid:
        """The uint8 grid of an int8 quantizer.

        Behind a ReLU an unshifted quantizer uses no integer below zero: they are taken as they are, so that
        the zero point is 0, and values past 127 are no longer cut off.
        """
        maker = source.producer()
        plain = shift == 0 and maker is not None and maker.op_type in LIMITERS and _limits(maker)[0] >= 0
        return Grid(scale, 0 if plain else 128 - shift, factor)

    def _restore(self, layer: ir.Node, offset: float, pads: list[int] | None) -> None:
        """The layer as it reads the tensor itself: its own padding, no compensation in the bias."""
        if pads is not None:
            half = len(pads) // 2
            layer.attributes["pads"] = ir.AttrInt64s("pads", [*pads[2:half], *pads[half + 2 :]])
        if offset and layer.op_type in ("Conv", "Gemm"):
            weight, _ = _weight(layer)
            axis = _axis(layer)
            total = weight.sum(axis=tuple(a for a in range(weight.ndim) if a != axis))
            bias = constant(layer.inputs[2]).astype(np.float64) - offset * total
            layer.replace_input_with(2, self._constant(f"{layer.name}/bias", bias.astype(np.float32)))

    def absorb_limits(self) -> None:
        """Drop a ReLU or Clip whose limits the integers behind it keep by themselves."""
        for node in [n for n in self.graph if n.op_type in LIMITERS]:
            source, result = node.inputs[0], node.outputs[0]
            maker = source.producer() if source is not None else None
            if source is None or maker is None or len(source.uses()) > 1 or result.is_graph_output():
                continue
            if maker not in self.layers and maker.op_type != "Add":
                continue
            grid = self.grids.get(result) or self._measured(result)
            if grid is None:
                continue
            least, most = _limits(node)
            slack = LIMIT_SLACK * grid.scale
            if (grid.low < least - slack).any() or (grid.high > most * (1 + 1e-6) + slack).any():
                continue
            self.grids.pop(result, None)
            self.grids[source] = grid
            for layer in [name for name, read in self.layers.items() if read is result]:
                self.layers[layer] = source
            ir.convenience.replace_all_uses_with(result, source)
            self.graph.remove(node, safe=True)

    def fold_factors(self) -> None:
        """Divide a layer's output by the factor of its grid, or by that of the LeakyReLU behind it.

        Q(w / f) and b / f: the scale of each output channel's weights takes it, the integers stay.
        """
        for value, grid in list(self.grids.items()):
            if grid.factor is None or value.is_graph_output():
                continue
            maker = value.producer()
            leaky = None
            if maker is not None and maker.op_type == "LeakyRelu":
                inner = maker.inputs[0]
                if inner is None or len(inner.uses()) > 1 or inner.is_graph_output():
                    continue
                leaky, maker = inner, inner.producer()
            if maker is None or maker not in self.layers or maker.op_type != "Conv":
                continue
            if leaky is not None:
                own = self._measured(leaky, grid.factor)
                if own is None:
                    continue
                self.grids[leaky] = own
            self._divide(maker, grid.factor)
            self.grids[value] = replace(grid, folded=True)

    def _divide(self, layer: ir.Node, factor: Array) -> None:
        dequantize = layer.inputs[1].producer() if layer.inputs[1] is not None else None
        assert dequantize is not None
        scale = constant(dequantize.inputs[1]).astype(np.float64) / factor
        bias = constant(layer.inputs[2]).astype(np.float64) / factor
        name = layer.name
        dequantize.replace_input_with(
            1, self._constant(f"{name}/weight_scale_folded", scale.astype(np.float32))
        )
        layer.replace_input_with(2, self._constant(f"{name}/bias_folded", bias.astype(np.float32)))

    def _measured(self, value: ir.Value, factor: Array | None = None) -> Grid | None:
        """A grid from the measured range; one that lies behind a factor holds every channel divided by it."""
        found = self.ranges.get(value.name or "")
        if found is None:
            return None
        divisor = 1.0 if factor is None else factor
        low = min(0.0, float((np.asarray(found[0], np.float64) / divisor).min()))
        high = max(0.0, float((np.asarray(found[1], np.float64) / divisor).max()))
        scale = max(high - low, LEAST_RANGE) / 255
        return Grid(scale, round(-low / scale))

    def spread(self) -> None:
        """Grids for what integer operators make of tensors that have one, in execution order."""
        for layer in self.layers:
            result = layer.outputs[0]
            if result in self.grids or result.is_graph_output():
                continue
            if layer.op_type == "Conv" and not any(
                n.op_type in MOVES | ARITHMETIC for n in result.consumers()
            ):
                self._give_channels(layer, result)
            else:
                self._give(layer, result)
        for node in self.graph:
            if node.op_type not in MOVES and node.op_type not in ARITHMETIC:
                continue
            data = [v for v in node.inputs if v is not None and v.const_value is None]
            grids = [self.grids[v] for v in data if v in self.grids]
            own = [self.grids.get(v) for v in node.outputs]
            apart = node.op_type != "LeakyRelu" and any(g.factor is not None for g in grids)
            alone = node.op_type == "Add" and len(data) < 2
            if not data or len(grids) < len(data) or apart or alone or all(own):
                continue
            for result in node.outputs:
                if result in self.grids or result.is_graph_output() or not result.uses():
                    continue
                if node.op_type in MOVES:
                    self.grids[result] = grids[0]
                else:
                    self._give(node, result)

    def _give_channels(self, layer: ir.Node, result: ir.Value) -> None:
        """A grid that every channel fills, for what is read in float: the layer's weights take the factor."""
        found = self.ranges.get(result.name or "")
        if found is None:
            self._give(layer, result)
            return
        low, high = np.minimum(found[0], 0.0), np.maximum(found[1], 0.0)
        reach = np.maximum(np.maximum(high, -low).astype(np.float64), LEAST_RANGE)
        factor = np.maximum(reach, reach.max() * LEAST_FACTOR)
        grid = self._measured(result, factor)
        assert grid is not None
        self._divide(layer, factor)
        self.grids[result] = replace(grid, factor=factor, folded=True)

    def _give(self, node: ir.Node, result: ir.Value) -> None:
        grid = self._measured(result)
        if grid is None:
            self.declined.append(Declined(node.name or "", f"{result.name} has no range: it stays in float"))
        else:
            self.grids[result] = grid

    def write_pairs(self) -> None:
        """A Q behind each tensor that has a grid, and DQs for those that read it."""
        for value, grid in self.grids.items():
            readers = [(user, index) for user, index in value.uses() if user.op_type != "QuantizeLinear"]
            if not readers:
                continue
            stem = f"{value.name}/uint8"
            zero = self._constant(f"{stem}/zero_point", np.uint8(grid.zero))
            scale = self._constant(f"{stem}/scale", np.float32(grid.scale))
            wide, zeros = scale, zero
            if grid.factor is not None:
                wide = self._constant(f"{stem}/scales", (grid.factor * grid.scale).astype(np.float32))
                zeros = self._constant(f"{stem}/zero_points", np.full(grid.factor.size, grid.zero, np.uint8))
            plain = grid.folded or grid.factor is None
            integers = self._behind(
                value, "QuantizeLinear", [value, *((scale, zero) if plain else (wide, zeros))], stem, plain
            )
            integers.type, integers.shape = ir.TensorType(ir.DataType.UINT8), value.shape
            for kind in ("layer", "other"):
                chosen = [(u, i) for u, i in readers if (u in self.layers and i == 0) == (kind == "layer")]
                if not chosen:
                    continue
                single = kind == "layer" or grid.factor is None
                inputs = [integers, *((scale, zero) if single else (wide, zeros))]
                result = self._behind(integers, "DequantizeLinear", inputs, f"{stem}/{kind}", single)
                result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
                for user, index in chosen:
                    user.replace_input_with(index, result)

    def integer_biases(self) -> None:
        """Biases as int32 in steps of the layer's activation scale times its weight scales."""
        for layer, source in self.layers.items():
            if layer.op_type not in ("Conv", "Gemm") or len(layer.inputs) < 3 or layer.inputs[2] is None:
                continue
            _, steps = _weight(layer)
            scale = (self.grids[source].scale * steps).astype(np.float32)
            bias = constant(layer.inputs[2]).astype(np.float64)
            integers = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
            stem = f"{layer.name}/bias"
            inputs = [
                self._constant(f"{stem}_int32", integers),
                self._constant(f"{stem}_scale", scale),
                self._constant(f"{stem}_zero_point", np.zeros(scale.size, np.int32)),
            ]
            node = ir.node(
                "DequantizeLinear", inputs, attributes={"axis": 0}, name=f"{stem}/DequantizeLinear"
            )
            node.outputs[0].name = f"{stem}/float"
            self.graph.insert_before(layer, [node])
            layer.replace_input_with(2, node.outputs[0])

    def _behind(
        self, value: ir.Value, kind: str, inputs: list[ir.Value], stem: str, single: bool
    ) -> ir.Value:
        node = ir.node(kind, inputs, attributes={} if single else {"axis": 1}, name=f"{stem}/{kind}")
        node.outputs[0].name = f"{stem}/{kind}_output"
        maker = value.producer()
        if maker is None:
            self.graph.insert_before(self.graph[0], [node])
        else:
            self.graph.insert_after(maker, [node])
        return node.outputs[0]

    def _constant(self, name: str, data: NDArray[Any] | np.generic) -> ir.Value:
        free, number = name, 1
        while free in self.graph.initializers:
            free, number = f"{name}_{number}", number + 1
        array = np.asarray(data)
        value = ir.Value(
            name=free,
            const_value=ir.tensor(array, name=free),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
        )
        self.graph.initializers[free] = value
        return value


def constant(value: ir.Value | None) -> NDArray[Any]:
    """The array of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def drop_unused(model: ir.Model) -> None:
    """Take out constants that no node reads any more."""
    held = model.graph.initializers
    for name in [n for n, v in held.items() if not v.uses() and not v.is_graph_output()]:
        del held[name]


def _axis(layer: ir.Node) -> int:
    return 0 if layer.op_type == "Conv" or layer.attributes.get_int("transB", 0) == 1 else 1


def _weight(layer: ir.Node) -> tuple[Array, Array]:
    """A layer's weight as the integers give it, and the scale of each output channel."""
    dequantize = layer.inputs[1].producer() if layer.inputs[1] is not None else None
    assert dequantize is not None
    integers, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1]).astype(np.float64)
    shape = [1] * integers.ndim
    shape[_axis(layer)] = -1
    return integers.astype(np.float64) * scale.reshape(shape), scale


def _limits(node: ir.Node) -> tuple[float, float]:
    """What a ReLU or Clip limits its values to."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [-float("inf"), float("inf")]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            bounds[index] = (
                float(value.const_value.numpy()) if value.const_value is not None else float("nan")
            )
    return bounds[0], bounds[1]
