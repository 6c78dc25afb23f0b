"""BatchNorm into the convolution or matrix product before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.constants import drop_unused

Array = NDArray[np.float64]


class FoldBatchNorm(Pass):
    """Fold inference BatchNorm into Conv, ConvTranspose and Gemm.

    With gain g = gamma / sqrt(var + eps), a channel each:

        y = g * ((W x + b) - mean) + beta  =  (g W) x + ((b - mean) * g + beta)

    so  W' = W * g  along the output channels and  b' = (b - mean) * g + beta. Computed in float64 and
    rounded once. Gemm's factors: W' keeps ``alpha``; ``beta`` goes into b' and becomes 1.
    The convolution keeps its name and its module path (Ioffe and Szegedy, 2015, for the norm).
    """

    def apply(self, model: ir.Model) -> PassResult:
        """Fold every BatchNorm that can be; the rest is declined with a reason."""
        changes, declined = 0, list[Declined]()
        for norm in list(model.graph):
            if norm.op_type != "BatchNormalization":
                continue
            reason = _reason(norm)
            if reason is None:
                _fold(model.graph, norm)
                changes += 1
            else:
                declined.append(Declined(norm.name or norm.outputs[0].name or "", reason))
        return PassResult(model, changes, tuple(declined))


def _reason(norm: ir.Node) -> str | None:
    """Why a BatchNorm cannot be folded, None where it can."""
    value = norm.inputs[0]
    layer = value.producer() if value is not None else None
    if value is None or layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return "no convolution or matrix product stands directly before it"
    if norm.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if len(value.uses()) > 1 or value.is_graph_output():
        return f"{value.name} is also read elsewhere"
    constants = [*norm.inputs[1:], *layer.inputs[1:]]
    if any(c is not None and c.const_value is None for c in constants):
        return "a weight of it is computed in the graph"
    if layer.op_type == "Gemm" and layer.attributes.get_int("transA", 0) != 0:
        return "the matrix product transposes its input"
    return None


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    value = norm.inputs[0]
    assert value is not None
    layer = value.producer()
    assert layer is not None
    gamma, beta, mean, var = (_array(v) for v in norm.inputs[1:5])
    gain = gamma / np.sqrt(var + norm.attributes.get_float("epsilon", 1e-5))
    weight = _array(layer.inputs[1])
    bias = _bias(layer, len(gain))
    new_weight = _scaled(layer, weight, gain)
    new_bias = (bias - mean) * gain + beta
    weight_value = layer.inputs[1]
    assert weight_value is not None
    bias_value = layer.inputs[2] if len(layer.inputs) > 2 else None
    base = weight_value.name or layer.name or "weight"
    bias_name = (
        bias_value.name if bias_value is not None else None
    ) or f"{base.removesuffix('.weight')}.bias"
    _put(graph, layer, 1, base, new_weight)
    _put(graph, layer, 2, bias_name, new_bias)
    if layer.op_type == "Gemm":
        layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    output = norm.outputs[0]
    name = output.name
    ir.convenience.replace_all_uses_with(output, layer.outputs[0], replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    result = layer.outputs[0]
    result.name, result.type, result.shape = name, output.type, output.shape
    drop_unused(graph)


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _bias(layer: ir.Node, channels: int) -> Array:
    """The layer's bias for each output channel, with Gemm's ``beta`` in it."""
    given = layer.inputs[2] if len(layer.inputs) > 2 else None
    if given is None:
        return np.zeros(channels)
    factor = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
    return np.broadcast_to(_array(given).reshape(-1) * factor, channels)


def _scaled(layer: ir.Node, weight: Array, gain: Array) -> Array:
    """The weight times the gain along the axis of the output channels."""
    if layer.op_type == "Conv":  # (out, in / groups, ...)
        return weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    if layer.op_type == "Gemm":
        return weight * (gain[:, None] if layer.attributes.get_int("transB", 0) else gain[None])
    # ConvTranspose: (in, out / groups, ...); the groups lie one after another along `in`.
    groups = layer.attributes.get_int("group", 1)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    spread = gain.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return np.asarray((split * spread).reshape(weight.shape))


def _put(graph: ir.Graph, layer: ir.Node, index: int, name: str, array: Array) -> None:
    """Give the layer a constant of its own; one that others read stays as it is for them."""
    old = layer.inputs[index] if len(layer.inputs) > index else None
    kind = layer.inputs[1]
    assert kind is not None
    assert kind.const_value is not None
    data = array.astype(kind.const_value.dtype.numpy())
    free, number = name, 1
    while free in graph.initializers and not (graph.initializers[free] is old and len(old.uses()) == 1):
        free, number = f"{name}_{number}", number + 1
    if free in graph.initializers:
        graph.initializers.pop(free)
    value = ir.Value(
        name=free,
        type=ir.TensorType(kind.const_value.dtype),
        shape=ir.Shape(data.shape),
        const_value=ir.tensor(data, name=free),
    )
    graph.initializers.add(value)
    if len(layer.inputs) <= index:
        layer.resize_inputs(index + 1)
    layer.replace_input_with(index, value)
