"""The layer that makes a tensor, as far as a factor or an offset can be moved back into it.

Both stand behind an activation function at most: a positive factor passes through functions that are
positively homogeneous, act(a x) = a act(x) for a > 0, an offset through those that only limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.constants import add_constant

Array = NDArray[np.float64]
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu"})
LIMITERS = frozenset({"Relu", "Clip"})
ACTIVATIONS = HOMOGENEOUS | LIMITERS
_LAYERS = frozenset({"Conv", "Gemm"})


@dataclass(frozen=True, eq=False)
class Producer:
    """A Conv or Gemm, and the activation function between it and the tensor, if there is one."""

    layer: ir.Node
    activation: ir.Node | None

    @property
    def channels(self) -> int:
        """Output channels."""
        weight = self.layer.inputs[1]
        assert weight is not None
        held = _held(weight)
        assert held is not None
        return int(held.shape[output_axis(self.layer)])


def producer_of(value: ir.Value | None, readers: int = 1) -> Producer | str:
    """The layer that makes a tensor which ``readers`` places read, or why nothing can be moved into it.

    Every tensor on the way is read by nothing else: a change of it changes no other answer.
    """
    if value is None:
        return "there is no tensor"
    if value.is_graph_output():
        return f"{value.name} is an output of the graph"
    if len(value.uses()) > readers:
        return f"{value.name} is also read elsewhere"
    node = value.producer()
    activation = None
    if node is not None and node.op_type in ACTIVATIONS:
        activation, inner = node, node.inputs[0]
        assert inner is not None
        if inner.is_graph_output() or len(inner.uses()) > 1:
            return f"{inner.name} is also read elsewhere"
        node = inner.producer()
    if node is None or node.op_type not in _LAYERS:
        return f"{value.name} is made by {node.op_type if node is not None else 'no node'}, not by a layer"
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or _held(weight) is None:
        return f"the weight of {node.name} is computed in the graph, or shared"
    if bias is not None and bias.const_value is None:
        return f"the bias of {node.name} is computed in the graph"
    return Producer(node, activation)


def scale_outputs(graph: ir.Graph, layer: ir.Node, gain: Array) -> None:
    """Multiply each output channel of a layer by a positive number; the integers of its weight stay."""
    weight = layer.inputs[1]
    assert weight is not None
    maker = weight.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        scale = maker.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        old = scale.const_value.numpy()
        new = np.broadcast_to(old.astype(np.float64).reshape(-1), gain.shape) * gain
        _own(graph, maker, 1, f"{layer.name}/weight_scale", new.astype(old.dtype))
        if old.ndim == 0:  # one scale becomes one for each channel
            maker.attributes["axis"] = ir.AttrInt64("axis", output_axis(layer))
            zero = maker.inputs[2] if len(maker.inputs) > 2 else None
            if zero is not None and zero.const_value is not None:
                spread = np.broadcast_to(zero.const_value.numpy(), gain.shape).copy()
                _own(graph, maker, 2, f"{layer.name}/weight_zero_point", spread)
    else:
        assert weight.const_value is not None
        old = weight.const_value.numpy()
        shape = [1] * old.ndim
        shape[output_axis(layer)] = -1
        _own(graph, layer, 1, f"{layer.name}/weight", (old * gain.reshape(shape)).astype(old.dtype))
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if bias is not None:
        assert bias.const_value is not None
        _own(graph, layer, 2, f"{layer.name}/bias", (bias.const_value.numpy() * gain).astype(np.float32))


def scale_inputs(graph: ir.Graph, layer: ir.Node, gain: Array) -> None:
    """Multiply the weights that read each input channel of a layer by a number."""
    weight = layer.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    old = weight.const_value.numpy()
    if layer.op_type == "Gemm":
        shape = [1] * old.ndim
        shape[1 - output_axis(layer)] = -1
        new = old * gain.reshape(shape)
    else:
        group = layer.attributes.get_int("group", 1)
        by_group = gain.reshape(group, old.shape[1])
        spread = np.repeat(by_group, old.shape[0] // group, axis=0)
        new = old * spread.reshape(*old.shape[:2], *[1] * (old.ndim - 2))
    _own(graph, layer, 1, f"{layer.name}/weight", new.astype(old.dtype))


def shift_outputs(graph: ir.Graph, layer: ir.Node, shift: float) -> None:
    """Add a number to every output of a layer."""
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if bias is not None:
        assert bias.const_value is not None
        beta = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
        new = bias.const_value.numpy().astype(np.float64) * beta + shift
    else:
        new = np.full(Producer(layer, None).channels, shift)
        layer.resize_inputs(3)
    if layer.op_type == "Gemm":
        layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    _own(graph, layer, 2, f"{layer.name}/bias", new.astype(np.float32))


def limit(graph: ir.Graph, activation: ir.Node, low: float | None, high: float | None) -> ir.Node:
    """Put a Clip in the place of an activation function; its tensor keeps name, type and shape."""
    inputs: list[ir.Value | None] = [activation.inputs[0]]
    stem = activation.name or activation.outputs[0].name or "limit"
    for what, bound in (("least", low), ("most", high)):
        inputs.append(None if bound is None else add_constant(graph, f"{stem}/{what}", np.float32(bound)))
    while inputs[-1] is None:
        inputs.pop()
    old = activation.outputs[0]
    node = ir.node("Clip", inputs, name=activation.name, metadata_props=dict(activation.metadata_props))
    new = node.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(activation, [node])
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(activation, safe=True)
    return node


def limit_by_channel(graph: ir.Graph, activation: ir.Node, most: Array) -> None:
    """Put a ReLU and a Min in the place of a Clip from zero: an upper limit for each channel."""
    old, source = activation.outputs[0], activation.inputs[0]
    rank = len(old.shape) if old.shape is not None else 4
    stem = activation.name or old.name or "limit"
    bounds = add_constant(graph, f"{stem}/most", most.astype(np.float32).reshape(1, -1, *[1] * (rank - 2)))
    relu = ir.node("Relu", [source], name=f"{stem}/Relu")
    least = ir.node("Min", [relu.outputs[0], bounds], name=activation.name)
    inner, new = relu.outputs[0], least.outputs[0]
    inner.name, inner.type, inner.shape = f"{old.name}/unlimited", old.type, old.shape
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(activation, [relu, least])
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(activation, safe=True)


def drop(graph: ir.Graph, value: ir.Value | None) -> None:
    """Take a constant out that nothing reads any more."""
    if value is None or value.uses() or value.is_graph_output():
        return
    if value.name is not None and graph.initializers.get(value.name) is value:
        del graph.initializers[value.name]


def output_axis(layer: ir.Node) -> int:
    """The weight's axis of output channels."""
    return 0 if layer.op_type == "Conv" or layer.attributes.get_int("transB", 0) == 1 else 1


def _held(weight: ir.Value) -> NDArray[Any] | None:
    """The constant behind a weight: floats, or the integers of a quantized one."""
    maker = weight.producer()
    source = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else weight
    if source is None or source.const_value is None:
        return None
    if maker is not None:
        scale = maker.inputs[1]
        # Another layer that reads the same integers would be scaled as well.
        if scale is None or scale.const_value is None or len(weight.uses()) > 1:
            return None
    return source.const_value.numpy()


def _own(graph: ir.Graph, node: ir.Node, index: int, name: str, data: NDArray[Any]) -> None:
    """Give a node a constant of its own; others that read the old one keep it."""
    old = node.inputs[index] if len(node.inputs) > index else None
    node.replace_input_with(index, None)
    drop(graph, old)
    node.replace_input_with(index, add_constant(graph, name, data))
