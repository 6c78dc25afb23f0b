"""The graph without its Q/DQ pairs, and the scales that they held: what a calibration cache is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgesmith.calibration.cache_file import plain_scale
from edgesmith.calibration.scale_table import Quantizer
from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.constants import add_constant, drop_unused

Q, DQ = "QuantizeLinear", "DequantizeLinear"
# The output's values are the input's, all of them: a scale of one side fits the other.
_SAME = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
                   "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "MaxPool"})  # fmt: skip
# The output's values are some of the input's: a scale goes from input to output only.
_PART = frozenset({"Gather", "GlobalMaxPool", "Pad", "Slice"})


@dataclass(frozen=True)
class Stripped(PassResult):
    """A result with the symmetric scale of each float tensor that has one, by tensor name."""

    scales: dict[str, float] = field(default_factory=dict)


class StripQdq(Pass):
    """Take Q/DQ pairs out; weights come back as the floats that their integers stood for.

    A tensor that was quantized gets its pair's scale. In front of a pair an Add (offset), a Pad and a Mul
    (factor) may stand: they stay, for the float result is the same with them, and the tensor in front of them
    gets the plain symmetric scale that covers its values. Scales are carried across operators that only move
    values: Reshape, Transpose, Split, MaxPool and the like both ways, Slice and Gather forwards, Concat where
    the inputs agree.
    """

    def __call__(self, model: ir.Model) -> Stripped:
        """Run the pass; the result has the scales."""
        return self.apply(model)

    def apply(self, model: ir.Model) -> Stripped:
        """Strip every pair with zero points of 0; others are declined."""
        graph, scales = model.graph, dict[str, float]()
        changes, declined = 0, list[Declined]()
        for node in list(graph):
            if node.op_type != DQ:
                continue
            reason = _reason(node)
            if reason is not None:
                declined.append(Declined(node.name or node.outputs[0].name or "", reason))
                continue
            source = node.inputs[0]
            assert source is not None
            maker = source.producer()
            if maker is None:
                _restore_weight(graph, node)
            else:
                _bypass(node, maker.inputs[0])
                _record(maker, scales)
            graph.remove(node, safe=True)
            changes += 1
        for node in reversed(list(graph)):
            if node.op_type == Q and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                graph.remove(node, safe=True)
        drop_unused(graph)
        _carry(graph, scales)
        return Stripped(model, changes, tuple(declined), scales)


def _reason(node: ir.Node) -> str | None:
    """Why a DQ cannot be taken out, None where it can."""
    source, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or scale.const_value is None:
        return "its scale is computed in the graph"
    if zero is not None and (zero.const_value is None or np.any(zero.const_value.numpy())):
        return "its zero point is not 0"
    maker = source.producer() if source is not None else None
    if maker is None:
        return None if source is not None and source.const_value is not None else "it reads an integer input"
    if maker.op_type != Q:
        return f"it reads integers of {maker.op_type}"
    if (
        node.outputs[0].is_graph_output()
        and maker.inputs[0] is not None
        and maker.inputs[0].producer() is None
    ):
        return "it joins a graph input to a graph output"
    if maker.inputs[1] is None or maker.inputs[1].const_value is None or scale.const_value.numpy().size > 1:
        return "it has a scale by channel for an activation"
    return None


def _bypass(node: ir.Node, value: ir.Value | None) -> None:
    """Readers of the pair read what it read; an output of the graph keeps its name."""
    assert value is not None
    output = node.outputs[0]
    name = output.name if output.is_graph_output() else value.name
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    output.name = None
    value.name = name


def _restore_weight(graph: ir.Graph, node: ir.Node) -> None:
    """Integers times scale, in the type that the layer reads."""
    integers, scale = node.inputs[0], node.inputs[1]
    assert integers is not None
    assert integers.const_value is not None
    assert scale is not None
    assert scale.const_value is not None
    values, steps = integers.const_value.numpy(), scale.const_value.numpy()
    if steps.size > 1:
        shape = [1] * values.ndim
        shape[node.attributes.get_int("axis", 1)] = -1
        steps = steps.reshape(shape)
    array = (values.astype(np.float32) * steps.astype(np.float32)).astype(scale.const_value.dtype.numpy())
    weight = add_constant(graph, f"{integers.name}/float", array)
    ir.convenience.replace_all_uses_with(node.outputs[0], weight, replace_graph_outputs=True)


def _record(pair: ir.Node, scales: dict[str, float]) -> None:
    """The scale of what a Q reads, and of the tensor in front of the Add, the Pad and the Mul."""
    scale = _number(pair.inputs[1])
    value = pair.inputs[0]
    if scale is None or value is None:
        return
    _put(value, scale, scales)
    shift, factor = 0, None
    while (node := value.producer()) is not None:
        constant = node.inputs[1] if len(node.inputs) > 1 else None
        held = (
            constant.const_value.numpy()
            if constant is not None and constant.const_value is not None
            else None
        )
        if node.op_type == "Add" and held is not None and held.size == 1:
            shift = round(-float(held.reshape(-1)[0]) / scale)
        elif node.op_type == "Mul" and held is not None and np.all(held != 0):
            factor = tuple(np.abs(1 / held.astype(np.float64)).ravel().tolist())
        elif node.op_type != "Pad":
            return
        if node.inputs[0] is None or node.inputs[0].const_value is not None:
            return
        value = node.inputs[0]
        _put(value, plain_scale(Quantizer(scale=scale, shift=shift, factor=factor)), scales)


def _put(value: ir.Value, scale: float, scales: dict[str, float]) -> None:
    """Several pairs may read one tensor: the widest scale loses nothing."""
    if value.name:
        scales[value.name] = max(scale, scales.get(value.name, 0.0))


def _number(value: ir.Value | None) -> float | None:
    held = value.const_value if value is not None else None
    return float(held.numpy().reshape(-1)[0]) if held is not None and held.size == 1 else None


def _carry(graph: ir.Graph, scales: dict[str, float]) -> None:
    """Spread scales until none is added; a tensor that has one keeps it."""
    before = -1
    while before != len(scales):
        before = len(scales)
        for node in graph:
            data = [v for v in node.inputs if v is not None and v.const_value is None]
            if node.op_type == "Concat":
                sides = [(data, node.outputs), (node.outputs, data)]
            elif node.op_type in _SAME and data:
                sides = [(data[:1], node.outputs[:1]), (node.outputs[:1], data[:1])]
            elif node.op_type == "Split" and data:
                sides = [(data[:1], node.outputs), (node.outputs, data[:1])]
            elif node.op_type in _PART and data:
                sides = [(data[:1], node.outputs[:1])]
            else:
                continue
            for given, taking in sides:
                found = {scales.get(v.name or "") for v in given}
                if len(found) == 1 and (scale := found.pop()) is not None:
                    for value in taking:
                        if value.name:
                            scales.setdefault(value.name, scale)
