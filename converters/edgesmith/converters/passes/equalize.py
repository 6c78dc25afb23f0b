"""Ranges of weights shared evenly between layers that follow one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.constants import limits_of
from edgesmith.converters.passes.producer import (
    HOMOGENEOUS,
    Producer,
    limit_by_channel,
    output_axis,
    producer_of,
    scale_inputs,
    scale_outputs,
)

Array = NDArray[np.float64]
SWEEPS = 40
SETTLED = 1e-3  # the largest change of log s at which the sweeps end
MOST = 1e3  # no channel is scaled by more, or by less than its inverse


class Equalize(Pass):
    """Cross-layer equalization of a float graph (Nagel et al. 2019, section 4.1).

    For a layer, an activation function with act(a x) = a act(x) for a > 0, and the layers that read it:

        W1 -> S^-1 W1,   b1 -> S^-1 b1,   W2 -> W2 S            equations 4 to 7
        s_i = sqrt(r1_i * r2_i) / r2_i                          equation 11

    with r1 the largest weights of W1's output channels and r2 those of W2's input channels, so that both are
    equal afterwards. Pairs are taken in execution order, again and again until nothing moves: a chain of
    conv, depthwise conv, conv is two pairs that share the middle. The graph computes the same; tensors keep
    their names, and hold x / s: ``factors`` has s by tensor name, by which measured ranges are to be divided.

    A Clip(0, c) would need a limit for each channel. With ``limits`` it gets one, as a ReLU and a Min with a
    constant; otherwise the pair is declined. So it is where a tensor has a reader that is not such a layer,
    or is an output.
    """

    def __init__(self, *, limits: bool = False) -> None:
        self.limits = limits
        self.factors: dict[str, Array] = {}

    def apply(self, model: ir.Model) -> PassResult:
        """Equalize every pair that can be; the rest is declined with a reason."""
        declined: list[Declined] = []
        pairs: list[_Pair] = []
        seen: set[ir.Value] = set()
        sites = sites_of(model)
        by_node = {site.node: site for site in sites}
        for site in sites:
            value = site.node.inputs[0]
            if value is None or value in seen:
                continue
            seen.add(value)
            found = self._pair(value, by_node)
            if isinstance(found, str):
                declined.append(Declined(site.name, found))
            else:
                pairs.append(found)
        scales = _settle(pairs)
        changes = 0
        for pair, s in zip(pairs, scales, strict=True):
            if float(np.abs(np.log(s)).max()) > SETTLED:
                changes += 1
                self.factors[pair.tensor] = s
                _rescale(model.graph, pair, s)
        return PassResult(model, changes, tuple(declined))

    def _pair(self, value: ir.Value, sites: dict[ir.Node, Site]) -> _Pair | str:
        readers = [use.node for use in value.uses()]
        others = [node for node in readers if node not in sites or sites[node].node.op_type == "MatMul"]
        if others:
            return f"{value.name} is also read by {others[0].op_type} {others[0].name}"
        found = producer_of(value, len(readers))
        if isinstance(found, str):
            return found
        if found.layer not in sites:
            return f"the weight of {found.layer.name} is no constant of 32-bit floats"
        activation = found.activation
        if activation is not None and activation.op_type not in HOMOGENEOUS:
            limits = limits_of(activation)
            if not self.limits or limits is None or limits[0] != 0.0:
                return f"{activation.op_type} {activation.name} would need a limit for each channel"
        assert value.name is not None
        return _Pair(value.name, value, found, tuple(sites[node] for node in readers))


@dataclass(frozen=True, eq=False)
class _Pair:
    tensor: str
    value: ir.Value
    producer: Producer
    readers: tuple[Site, ...]


def _settle(pairs: list[_Pair]) -> list[Array]:
    """s of each pair; what one does to a layer is seen by the next."""
    rows: dict[ir.Node, Array] = {}  # how much each layer's output channels are divided by
    columns: dict[ir.Node, Array] = {}  # how much its input channels are multiplied by
    logs = [np.zeros(pair.producer.channels) for pair in pairs]
    for _ in range(SWEEPS):
        moved = 0.0
        for number, pair in enumerate(pairs):
            layer = pair.producer.layer
            first = _reach(layer, rows.get(layer), columns.get(layer), outputs=True)
            second = np.max(
                [_reach(r.node, rows.get(r.node), columns.get(r.node), outputs=False) for r in pair.readers],
                axis=0,
            )
            usable = (first > 0) & (second > 0)
            ratio = np.where(usable, first / np.where(usable, second, 1.0), 1.0)
            total = np.clip(logs[number] + np.log(ratio) / 2, -np.log(MOST), np.log(MOST))
            moved = max(moved, float(np.abs(total - logs[number]).max(initial=0.0)))
            logs[number] = total
            rows[layer] = np.exp(total)
            for reader in pair.readers:
                columns[reader.node] = np.exp(total)
        if moved < SETTLED:
            break
    return [np.exp(one) for one in logs]


def _reach(layer: ir.Node, rows: Array | None, columns: Array | None, *, outputs: bool) -> Array:
    """Largest magnitude of a layer's weights by output or input channel, as scaled so far."""
    weight = layer.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    size = np.abs(weight.const_value.numpy().astype(np.float64))
    if layer.op_type == "Gemm" and output_axis(layer):
        size = size.T
    group = layer.attributes.get_int("group", 1) if layer.op_type == "Conv" else 1
    flat = size.reshape(group, size.shape[0] // group, size.shape[1], -1).max(-1)
    if rows is not None:
        flat = flat / rows.reshape(group, -1, 1)
    if columns is not None:
        flat = flat * columns.reshape(group, 1, -1)
    return np.asarray(flat.max(2 if outputs else 1).reshape(-1))


def _rescale(graph: ir.Graph, pair: _Pair, s: Array) -> None:
    scale_outputs(graph, pair.producer.layer, 1 / s)
    for reader in pair.readers:
        scale_inputs(graph, reader.node, s)
    activation = pair.producer.activation
    if activation is not None and activation.op_type not in HOMOGENEOUS:
        most = (limits_of(activation) or (0.0, 0.0))[1]
        if np.isfinite(most):
            limit_by_channel(graph, activation, most / s)
