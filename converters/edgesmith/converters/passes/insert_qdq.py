"""Q/DQ pairs where TensorRT wants them: directly in front of each quantized layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import MODULE_KEY, Site, sites_of
from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.constants import add_constant, drop_unused
from edgesmith.sdk.errors import CalibrationError

Integers = NDArray[np.int8]
LEAST_SCALE = 1e-12  # of a weight channel that is all zeros


class InsertQdq(Pass):
    """Quantize layers explicitly: signed 8-bit, zero point 0, weights by channel, activations by tensor.

    One pair stands in front of all quantized readers of a tensor, and nothing between a layer and its
    activation function. With the quantizer's factor f (by channel) and offset c = shift * scale:

        x -> Mul(1 / f) -> Pad(0) -> Add(-c) -> Q -> DQ -> conv(w', pads = 0) + b'
        w' = Q(w * f),   b' = b + c * sum(w')        the sum runs over each output channel's weights

    Each of Mul, Pad and Add stands there only where it is needed. The padding moves in front of the Add,
    because the zeros that a convolution pads with are zeros of x. A factor is exact for depthwise
    convolutions (each output channel reads one input channel) and, folded into the weights' input
    channels, for dense layers; an offset is exact for all.

    With ``residuals`` the identity branch of a residual Add (the one that no quantized layer makes, in front
    of an Add whose other input a quantized layer makes directly) reads integers too: those that the block's
    first layer reads, where nothing stands in front of them, else integers of its own, brought back to the
    tensor's values behind the DQ. The sum then reads a quarter of the bytes, for one more rounding.

    Args:
        quantizers: by activation name.
        layers: names of the layers that are to be quantized.
        weights: integers of weights that were not rounded to nearest, by layer.
        residuals: quantize identity branches.
    """

    def __init__(
        self,
        quantizers: Mapping[str, Quantizer],
        layers: Collection[str],
        weights: Mapping[str, Integers] | None = None,
        *,
        residuals: bool = False,
    ) -> None:
        self.quantizers = quantizers
        self.layers = frozenset(layers)
        self.weights = dict(weights or {})
        self.residuals = residuals

    def requires(self, model: ir.Model) -> None:
        """Every layer that is to be quantized has a quantizer for what it reads."""
        missing = {
            site.name: site.activation
            for site in sites_of(model)
            if site.name in self.layers and site.activation not in self.quantizers
        }
        for name, tensor in missing.items():
            raise CalibrationError(
                f"layer {name} reads {tensor}, which has no range: calibrate with images that reach it, "
                "or list the layer in precision.keep_float"
            )

    def apply(self, model: ir.Model) -> PassResult:
        """Insert the pairs; a layer that is quantized already, or cannot be, is declined."""
        declined: list[Declined] = []
        groups: dict[tuple[str, tuple[int, ...]], list[Site]] = defaultdict(list)
        for site in sites_of(model):
            if site.name not in self.layers:
                continue
            reason = unfit_for_int8(site)
            if reason is not None:
                declined.append(Declined(site.name, reason))
                continue
            shifted = self.quantizers[site.activation].shift != 0
            groups[site.activation, _pads(site) if shifted else ()].append(site)
        known = {site.name for site in sites_of(model)}
        declined += [
            Declined(name, "no layer of this name can be quantized") for name in sorted(self.layers - known)
        ]
        builder = _Builder(model)
        quantized = {site.node for sites in groups.values() for site in sites}
        plain: dict[str, ir.Value] = {}
        for (activation, pads), sites in groups.items():
            quantizer = self.quantizers[activation]
            integers = builder.pair(activation, quantizer, pads, sites)
            if quantizer.factor is None and not quantizer.shift:
                plain[activation] = integers
            for site in sites:
                builder.layer(site, integers, quantizer, pads, self.weights.get(site.name))
        if self.residuals:
            declined += self._identities(model, builder, quantized, plain)
        drop_unused(model.graph)
        return PassResult(model, sum(len(sites) for sites in groups.values()), tuple(declined))

    def _identities(
        self, model: ir.Model, builder: _Builder, quantized: set[ir.Node], plain: Mapping[str, ir.Value]
    ) -> list[Declined]:
        """Quantize the identity branches; ``plain`` are the DQ outputs that hold a tensor's own values."""
        declined = []
        place = {node: number for number, node in enumerate(model.graph)}
        for add, index in _identities(model, quantized):
            value = add.inputs[index]
            assert value is not None
            assert value.name is not None
            if value.name not in self.quantizers:
                declined.append(Declined(add.name or "", f"{value.name} has no range: the sum reads floats"))
                continue
            shared = plain.get(value.name)
            maker = shared.producer() if shared is not None else None
            if maker is not None and place[maker] > place[add]:
                shared = None  # the pair's first layer stands behind the sum
            builder.identity(add, index, self.quantizers[value.name], shared)
        return declined


def quantized_weight(
    site: Site, factor: tuple[float, ...] | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The layer's weight with the factor in it, and the scale of each output channel (kept dimensions)."""
    weight = site.weight.astype(np.float64)
    if factor is not None:
        weight = weight * _factor_for(site, np.asarray(factor))
    others = tuple(axis for axis in range(weight.ndim) if axis != site.axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    return weight, np.maximum(largest / 127, LEAST_SCALE).astype(np.float32)


def _factor_for(site: Site, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factor along the weight's input channels, shaped to multiply the weight."""
    if site.node.op_type != "Conv":
        reach = 1 - site.axis if site.node.op_type == "Gemm" else site.weight.ndim - 2
        shape = [1] * site.weight.ndim
        shape[reach] = -1
        return factor.reshape(shape)
    out, per_group = site.weight.shape[:2]
    tail = [1] * (site.weight.ndim - 2)
    # Output channel o of group g reads input channels g * per_group ... + per_group.
    by_group = factor.reshape(site.group, per_group)
    return np.repeat(by_group, out // site.group, axis=0).reshape(out, per_group, *tail)


def _identities(model: ir.Model, quantized: set[ir.Node]) -> list[tuple[ir.Node, int]]:
    """Residual Adds, and which of their inputs is the identity."""
    found = []
    for node in model.graph:
        if node.op_type != "Add" or any(v is None or v.const_value is not None for v in node.inputs):
            continue
        direct = [v is not None and v.producer() in quantized for v in node.inputs]
        if direct.count(True) == 1:
            found.append((node, direct.index(False)))
    return found


def _pads(site: Site) -> tuple[int, ...]:
    pads = tuple(site.node.attributes.get_ints("pads", [])) if site.node.op_type == "Conv" else ()
    return pads if any(pads) else ()


def unfit_for_int8(site: Site) -> str | None:
    """Why no pair can stand in front of a layer; None where one can."""
    producer = site.node.inputs[0].producer() if site.node.inputs[0] is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "it is quantized already"
    if site.node.op_type == "Gemm" and site.node.attributes.get_float("alpha", 1.0) != 1.0:
        return "its alpha is not 1"
    if site.node.op_type == "Conv" and site.node.attributes.get_string("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    ):
        return "its padding is given by auto_pad"
    bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return "its bias is computed in the graph"
    return None


class _Builder:
    """Makes nodes and constants whose names follow the layer they serve."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.values = {v.name: v for v in [*model.graph.inputs, *(o for n in model.graph for o in n.outputs)]}

    def pair(
        self, activation: str, quantizer: Quantizer, pads: tuple[int, ...], sites: list[Site]
    ) -> ir.Value:
        """Mul, Pad, Add, Q and DQ in front of the first of the layers; gives the DQ's output."""
        first = sites[0].node
        self._stem = f"{sites[0].name}/in"
        self._module = sites[0].module
        self._before = first
        rank = sites[0].weight.ndim if first.op_type == "Conv" else 2
        shape = (1, -1, *[1] * (rank - 2)) if first.op_type == "Conv" else (-1,)
        return self._rounded(self.values[activation], quantizer, pads, shape)

    def identity(self, add: ir.Node, index: int, quantizer: Quantizer, shared: ir.Value | None) -> None:
        """Let one input of a sum read integers: ``shared`` ones, or a pair of its own."""
        value = add.inputs[index]
        assert value is not None
        self._stem, self._before = f"{add.name}/identity", add
        self._module = add.metadata_props.get(MODULE_KEY)
        if shared is None:
            rank = len(value.shape) if value.shape is not None else 4
            shape = (1, -1, *[1] * (rank - 2))
            shared = self._rounded(value, quantizer, (), shape)
            if quantizer.shift:
                self._stem = f"{add.name}/identity/back"
                shared = self._node("Add", [shared, self._constant("offset", np.float32(quantizer.offset))])
            if quantizer.factor is not None:
                factor = np.asarray(quantizer.factor, np.float32).reshape(shape)
                self._stem = f"{add.name}/identity/back"
                shared = self._node("Mul", [shared, self._constant("factor", factor)])
        add.replace_input_with(index, shared)

    def _rounded(
        self, value: ir.Value, quantizer: Quantizer, pads: tuple[int, ...], shape: tuple[int, ...]
    ) -> ir.Value:
        """Mul, Pad and Add where they are needed, Q and DQ."""
        if quantizer.factor is not None:
            inverse = (1 / np.asarray(quantizer.factor)).astype(np.float32)
            value = self._node("Mul", [value, self._constant("factor", inverse.reshape(shape))])
        if pads:
            half = len(pads) // 2
            around = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
            value = self._node("Pad", [value, self._constant("pads", around)])
        if quantizer.shift:
            value = self._node("Add", [value, self._constant("offset", np.float32(-quantizer.offset))])
        scale = self._constant("scale", np.float32(quantizer.scale))
        zero = self._constant("zero_point", np.int8(0))
        integers = self._node("QuantizeLinear", [value, scale, zero])
        return self._node("DequantizeLinear", [integers, scale, zero])

    def layer(
        self,
        site: Site,
        value: ir.Value,
        quantizer: Quantizer,
        pads: tuple[int, ...],
        integers: Integers | None,
    ) -> None:
        """Point the layer at the quantized activation; give it an integer weight and its bias."""
        node = site.node
        self._stem, self._module, self._before = site.name, site.module, node
        weight, scale = quantized_weight(site, quantizer.factor)
        if integers is None:
            integers = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        flat = scale.reshape(-1)
        weight_value = self._node(
            "DequantizeLinear",
            [
                self._constant("weight", integers),
                self._constant("weight_scale", flat),
                self._constant("weight_zero_point", np.zeros(flat.size, np.int8)),
            ],
            axis=site.axis,
        )
        others = tuple(axis for axis in range(weight.ndim) if axis != site.axis)
        bias = bias_of(site)
        bias = bias + quantizer.offset * (integers.astype(np.float64) * scale).sum(axis=others)
        node.replace_input_with(0, value)
        node.replace_input_with(1, weight_value)
        if node.op_type == "MatMul":
            self._add_after(node, bias)
        else:
            node.resize_inputs(3)
            node.replace_input_with(2, self._constant("bias", bias.astype(np.float32)))
            if node.op_type == "Gemm":
                node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        if pads:
            node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))

    def _add_after(self, node: ir.Node, bias: NDArray[np.float64]) -> None:
        """A matrix product has no bias of its own."""
        if not bias.any():
            return
        old = node.outputs[0]
        add = ir.node("Add", [old, self._constant("bias", bias.astype(np.float32))], name=f"{self._stem}/Add")
        name, old.name = old.name, f"{self._stem}/product"
        add.outputs[0].name, add.outputs[0].shape, add.outputs[0].type = name, old.shape, old.type
        self.values[name] = add.outputs[0]
        ir.convenience.replace_all_uses_with(old, add.outputs[0], replace_graph_outputs=True)
        add.replace_input_with(0, old)
        self.graph.insert_after(node, [add])

    def _node(self, kind: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes, name=f"{self._stem}/{kind}")
        node.outputs[0].name = f"{self._stem}/{kind}_output"
        if self._module is not None:
            node.metadata_props[MODULE_KEY] = self._module
        self.graph.insert_before(self._before, [node])
        return node.outputs[0]

    def _constant(self, what: str, data: NDArray[Any] | np.generic) -> ir.Value:
        return add_constant(self.graph, f"{self._stem}/{what}", data)


def bias_of(site: Site) -> NDArray[np.float64]:
    """The layer's bias for each output channel, zeros where it has none; Gemm's ``beta`` is in it."""
    width = site.weight.shape[site.axis]
    given = site.node.inputs[2] if len(site.node.inputs) > 2 else None
    if given is None or given.const_value is None:
        return np.zeros(width)
    beta = site.node.attributes.get_float("beta", 1.0) if site.node.op_type == "Gemm" else 1.0
    return np.broadcast_to(given.const_value.numpy().astype(np.float64).reshape(-1) * beta, (width,)).copy()
