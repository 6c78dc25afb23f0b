"""The pairs themselves: int8 ones taken out, uint8 ones written, biases in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined
from edgesmith.converters.passes.constants import limits_of
from edgesmith.converters.passes.x86.draft import Array, Draft, Grid, constant

LIMITERS = frozenset({"Relu", "Clip"})


def take_pairs(draft: Draft) -> int:
    """Take each int8 pair out with the arithmetic in front of it, and note grid and factor."""
    count = 0
    for quantize in [n for n in draft.graph if n.op_type == "QuantizeLinear"]:
        zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
        if zero is None or zero.dtype != ir.DataType.INT8:
            continue
        scale = float(constant(quantize.inputs[1]))
        source, chain, shift, factor, pads = _in_front(quantize, scale)
        readers = [n for d in quantize.outputs[0].consumers() for n in d.outputs[0].consumers()]
        products = [n.name for n in readers if n.op_type == "MatMul"]
        if products and shift:
            why = "its offset is compensated behind it: it stays as it is"
            draft.declined += [Declined(name or "", why) for name in products]
            continue
        draft.grids[source] = _grid(source, scale, shift)
        if factor is not None:
            draft.factors[source] = factor
        for dequantize in list(quantize.outputs[0].consumers()):
            for layer in list(dequantize.outputs[0].consumers()):
                _restore(draft, layer, shift * scale, pads)
                draft.layers[layer] = source
            ir.convenience.replace_all_uses_with(dequantize.outputs[0], source)
            draft.graph.remove(dequantize, safe=True)
        for node in chain:
            if not node.outputs[0].uses():
                draft.graph.remove(node, safe=True)
        count += 1
    return count


def _in_front(
    quantize: ir.Node, scale: float
) -> tuple[ir.Value, list[ir.Node], int, Array | None, list[int] | None]:
    """What a quantizer reads in truth; the nodes up to it; their shift, factor and padding."""
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
    return source, chain, shift, factor, pads


def _grid(source: ir.Value, scale: float, shift: int) -> Grid:
    """The uint8 grid of an int8 quantizer.

    Behind a ReLU an unshifted quantizer uses no integer below zero: they are taken as they are, so that the
    zero point is 0, and values past 127 are no longer cut off.
    """
    maker = source.producer()
    bounds = limits_of(maker) if maker is not None and maker.op_type in LIMITERS else None
    plain = shift == 0 and bounds is not None and bounds[0] >= 0
    return Grid(scale, 0 if plain else 128 - shift)


def _restore(draft: Draft, layer: ir.Node, offset: float, pads: list[int] | None) -> None:
    """The layer as it reads the tensor itself: its own padding, no compensation in the bias."""
    if pads is not None:
        half = len(pads) // 2
        layer.attributes["pads"] = ir.AttrInt64s("pads", [*pads[2:half], *pads[half + 2 :]])
    if offset and layer.op_type in ("Conv", "Gemm"):
        weight, _ = _weight(layer)
        axis = _axis(layer)
        total = weight.sum(axis=tuple(a for a in range(weight.ndim) if a != axis))
        bias = constant(layer.inputs[2]).astype(np.float64) - offset * total
        layer.replace_input_with(2, draft.constant(f"{layer.name}/bias", bias.astype(np.float32)))


def write_pairs(draft: Draft) -> None:
    """A Q behind each tensor that has a grid, and one DQ for those that read it."""
    for value, grid in draft.grids.items():
        readers = [(user, index) for user, index in value.uses() if user.op_type != "QuantizeLinear"]
        if not readers:
            continue
        stem = f"{value.name}/uint8"
        zero = draft.constant(f"{stem}/zero_point", np.uint8(grid.zero))
        scale = draft.constant(f"{stem}/scale", np.float32(grid.scale))
        source = value
        for kind, dtype in (
            ("QuantizeLinear", ir.DataType.UINT8),
            ("DequantizeLinear", ir.DataType.FLOAT),
        ):
            node = ir.node(kind, [source, scale, zero], name=f"{stem}/{kind}")
            node.outputs[0].name = f"{stem}/{kind}_output"
            draft.place(node, source)
            source = node.outputs[0]
            source.type = ir.TensorType(dtype)
        for user, index in readers:
            user.replace_input_with(index, source)


def integer_biases(draft: Draft) -> None:
    """Biases as int32 in steps of the layer's activation scale times its weight scales."""
    for layer, source in draft.layers.items():
        if layer.op_type not in ("Conv", "Gemm") or len(layer.inputs) < 3 or layer.inputs[2] is None:
            continue
        _, steps = _weight(layer)
        scale = (draft.grids[source].scale * steps).astype(np.float32)
        bias = constant(layer.inputs[2]).astype(np.float64)
        integers = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        stem = f"{layer.name}/bias"
        inputs = [
            draft.constant(f"{stem}_int32", integers),
            draft.constant(f"{stem}_scale", scale),
            draft.constant(f"{stem}_zero_point", np.zeros(scale.size, np.int32)),
        ]
        node = ir.node("DequantizeLinear", inputs, attributes={"axis": 0}, name=f"{stem}/DequantizeLinear")
        node.outputs[0].name = f"{stem}/float"
        draft.graph.insert_before(layer, [node])
        layer.replace_input_with(2, node.outputs[0])


def _axis(layer: ir.Node) -> int:
    return 0 if layer.op_type == "Conv" or layer.attributes.get_int("transB", 0) == 1 else 1


def _weight(layer: ir.Node) -> tuple[Array, NDArray[Any]]:
    """A layer's weight as the integers give it, and the scale of each output channel."""
    dequantize = layer.inputs[1].producer() if layer.inputs[1] is not None else None
    assert dequantize is not None
    integers, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1]).astype(np.float64)
    shape = [1] * integers.ndim
    shape[_axis(layer)] = -1
    return integers.astype(np.float64) * scale.reshape(shape), scale
