"""The addition in front of a Q, moved into the bias of the layer before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.constants import limits_of
from edgesmith.converters.passes.fold_factor import Front, fronts, rename_changed
from edgesmith.converters.passes.producer import (
    LIMITERS,
    Producer,
    drop,
    limit,
    producer_of,
    shift_outputs,
)


class FoldOffset(Pass):
    """Take the offset c that stands in front of a Q off the bias of the layer before it.

        conv(W, b) -> Add(-c) -> Q                  =   conv(W, b - c) -> Q
        conv(W, b) -> Clip(l, h) -> Add(-c) -> Q    =   conv(W, b - c) -> Clip(l - c, h - c) -> Q

    with l = 0 and no h for a ReLU. Declined where a Pad stands between (what the layer pads with is zero
    before the addition, not after it), where a factor is left in front, where the tensor has other readers or
    is an output, and behind any other activation function. The tensor gets a new name.
    """

    def apply(self, model: ir.Model) -> PassResult:
        """Fold every offset that can be; the rest is declined with a reason."""
        changes, declined = 0, list[Declined]()
        for front in fronts(model):
            if front.add is None:
                continue
            found = _foldable(front)
            if isinstance(found, str):
                declined.append(Declined(front.add.name or "", found))
            else:
                _fold(model.graph, front, found)
                changes += 1
        return PassResult(model, changes, tuple(declined))


def _foldable(front: Front) -> Producer | str:
    assert front.add is not None
    if front.pad is not None:
        return "the layer pads with zeros, which the addition must not reach"
    if front.multiply is not None:
        return "a factor stands between the layer before and the addition"
    found = producer_of(front.add.inputs[0])
    if isinstance(found, str) or found.activation is None:
        return found
    if found.activation.op_type not in LIMITERS:
        return f"{found.activation.op_type} does more than limit: an offset does not pass through it"
    if limits_of(found.activation) is None:
        return f"the limits of {found.activation.name} are computed in the graph"
    return found


def _fold(graph: ir.Graph, front: Front, found: Producer) -> None:
    add, shift = front.add, -front.offset
    assert add is not None
    value = add.inputs[0]
    assert value is not None
    shift_outputs(graph, found.layer, shift)
    if found.activation is not None:
        low, high = limits_of(found.activation) or (0.0, 0.0)
        bounds = [bound + shift if np.isfinite(bound) else None for bound in (low, high)]
        value = limit(graph, found.activation, *bounds).outputs[0]
    ir.convenience.replace_all_uses_with(add.outputs[0], value)
    offset = add.inputs[1]
    graph.remove(add, safe=True)
    drop(graph, offset)
    rename_changed(found, value)
