"""The multiplication in front of a Q, moved into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.passes.constants import limits_of
from edgesmith.converters.passes.producer import (
    HOMOGENEOUS,
    Producer,
    drop,
    limit,
    producer_of,
    scale_outputs,
)

STEP_SLACK = 0.499  # of a step: beyond it a value no longer rounds to the last integer
LAST = 127  # the largest signed 8-bit integer


class FoldFactor(Pass):
    """Divide the output channels of the layer before a Q by the factor that stands in front of the Q.

        conv(W, b) -> act -> Mul(1 / f) -> Q    =    conv(W / f, b / f) -> act -> Q

    for act = nothing, ReLU, LeakyReLU or PReLU: act(a x) = a act(x) for a > 0. W may be float or integers:
    those stay, the scale of each output channel takes the factor. A Clip(0, c) has another limit c / f for
    each channel afterwards. Where every one of them lies above the largest value t that the Q can
    hold, one Clip(0, t) gives the same integers: past t all is the last integer. (So it is with factors that
    come from the channels' own ranges.) The tensor gets a new name: its values are others.

    Declined where the tensor has other readers or is an output, or no layer makes it.
    """

    def apply(self, model: ir.Model) -> PassResult:
        """Fold every factor that can be; the rest is declined with a reason."""
        changes, declined = 0, list[Declined]()
        for front in fronts(model):
            if front.multiply is None:
                continue
            found = _foldable(front)
            if isinstance(found, str):
                declined.append(Declined(front.multiply.name or "", found))
            else:
                _fold(model.graph, front, found)
                changes += 1
        return PassResult(model, changes, tuple(declined))


@dataclass(frozen=True, eq=False)
class Front:
    """What stands in front of a Q: Mul by channel, Pad, Add of one number, each where it is there."""

    quantize: ir.Node
    multiply: ir.Node | None = None
    pad: ir.Node | None = None
    add: ir.Node | None = None

    @property
    def offset(self) -> float:
        """What is taken off before the rounding."""
        return -float(_constant(self.add)) if self.add is not None else 0.0

    @property
    def gain(self) -> NDArray[np.float64]:
        """1 / f, by channel or one for all."""
        return np.asarray(_constant(self.multiply), np.float64).reshape(-1)

    @property
    def most(self) -> float:
        """The largest value in front of Pad and Add that the integers can hold."""
        scale = self.quantize.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        return LAST * float(scale.const_value.numpy()) + self.offset


def fronts(model: ir.Model) -> list[Front]:
    """What stands in front of each Q of an activation with one constant scale."""
    found = []
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        scale = node.inputs[1].const_value
        if node.inputs[0].const_value is not None or scale is None or scale.numpy().size != 1:
            continue
        parts: dict[str, ir.Node] = {}
        value: ir.Value | None = node.inputs[0]
        for kind in ("Add", "Pad", "Mul"):
            maker = value.producer() if value is not None else None
            if maker is None or maker.op_type != kind or not _ours(maker):
                continue
            parts[kind], value = maker, maker.inputs[0]
        found.append(Front(node, parts.get("Mul"), parts.get("Pad"), parts.get("Add")))
    return found


def _ours(node: ir.Node) -> bool:
    """A constant second input of the right kind, and one reader."""
    held = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    result = node.outputs[0]
    if held is None or len(result.uses()) != 1 or result.is_graph_output():
        return False
    array = held.numpy()
    if node.op_type == "Add":
        return array.size == 1
    if node.op_type == "Mul":
        return array.size == max(array.shape, default=1) and bool((array > 0).all()) and _by_channel(node)
    return True


def _by_channel(node: ir.Node) -> bool:
    """Whether a Mul's constant lies along axis 1 of what it multiplies, or is one number."""
    value, held = node.inputs[0], node.inputs[1]
    assert value is not None
    assert held is not None
    assert held.const_value is not None
    shape = tuple(held.const_value.numpy().shape)
    if held.const_value.numpy().size == 1:
        return True
    if value.shape is None:
        return False
    rank = len(value.shape)
    padded = (1,) * (rank - len(shape)) + shape
    return rank >= 2 and padded[1] == held.const_value.numpy().size


def _constant(node: ir.Node | None) -> NDArray[np.float32]:
    assert node is not None
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _foldable(front: Front) -> Producer | str:
    assert front.multiply is not None
    found = producer_of(front.multiply.inputs[0])
    if isinstance(found, str):
        return found
    if found.activation is None or found.activation.op_type in HOMOGENEOUS:
        return found
    limits = limits_of(found.activation)
    if limits is None:
        return f"the limits of {found.activation.name} are computed in the graph"
    if limits[0] != 0.0:
        return f"{found.activation.name} limits at {limits[0]:g}, which a factor would move"
    scale = (front.most - front.offset) / LAST
    if float((limits[1] * front.gain).min()) < front.most - STEP_SLACK * scale:
        return f"the upper limit of {found.activation.name} would be another for each channel"
    return found


def _fold(graph: ir.Graph, front: Front, found: Producer) -> None:
    multiply = front.multiply
    assert multiply is not None
    gain = np.broadcast_to(front.gain, (found.channels,))
    scale_outputs(graph, found.layer, gain)
    value = multiply.inputs[0]
    assert value is not None
    activation = found.activation
    if activation is not None and activation.op_type not in HOMOGENEOUS:
        bounded = np.isfinite((limits_of(activation) or (0.0, 0.0))[1])
        value = limit(graph, activation, 0.0, front.most if bounded else None).outputs[0]
    ir.convenience.replace_all_uses_with(multiply.outputs[0], value)
    factor = multiply.inputs[1]
    graph.remove(multiply, safe=True)
    drop(graph, factor)
    rename_changed(found, value)


def rename_changed(found: Producer, value: ir.Value) -> None:
    """Other values under the old name would be taken for those that calibration measured."""
    inner = found.layer.outputs[0]
    for one in dict.fromkeys((inner, value)):
        if one.name is not None and not one.name.endswith("/folded"):
            one.name = f"{one.name}/folded"
