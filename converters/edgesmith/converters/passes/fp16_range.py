"""Which nodes of a graph have to stay in float32, and why: the range and precision of FP16.

FP16 holds magnitudes up to 65504 with 11 significant bits, and loses bits below 2^-14 (6.1e-5).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import WEIGHTED, carried

LARGEST = 65504.0
LEAST = 2.0**-14  # smallest magnitude with full precision
MARGIN = 4.0  # pictures in the field reach beyond those that were measured
SCALE_ERROR = 2.0**-8  # of a scale, relative: half a step at the end of the 8-bit range
WEIGHT_SCALE_ERROR = 2.0**-10  # more than rounding to 11 bits makes
SHAPE_ONLY = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
# Their results leave the range or lose their precision on ordinary inputs.
SENSITIVE = frozenset(
    {
        "CumSum", "Exp", "Log", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
# What goes in comes out as large: a tensor that is too large here is so on the other side too.
_CARRYING = SHAPE_ONLY | {
    "Clip", "Dropout", "DequantizeLinear", "Elu", "HardSwish", "LeakyRelu", "MaxPool", "PRelu",
    "QuantizeLinear", "Relu", "Swish",
}  # fmt: skip
_PAIR = ("QuantizeLinear", "DequantizeLinear")
Reasons = dict[ir.Node, str]


def reasons(graph: ir.Graph, largest: Mapping[str, float], keep: Collection[str], *, decode: bool) -> Reasons:
    """Nodes that stay in float32, with the reason, for all of the rules here."""
    found: Reasons = {}
    for node in graph:
        reason = _of_itself(node, keep)
        if reason is not None:
            found[node] = reason
    for node, reason in _by_range(graph, largest):
        found.setdefault(node, reason)
    if decode:
        _add_decode(graph, found)
    return found


def half_weight(
    integers: NDArray[np.int8], scale: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Integers and scales of a quantized weight whose scales FP16 holds.

    A scale that FP16 changes by more than 2^-10 (a channel of tiny weights: FP16 has no small steps there)
    is rounded up instead, and the channel's integers are rounded anew, so that the error is one of rounding
    and not of gain: no weight is further off than in the float graph's own FP16.
    """
    rounded = half_scale(scale)
    wide = scale.astype(np.float64)
    coarse = np.abs(rounded.astype(np.float64) - wide) > WEIGHT_SCALE_ERROR * wide
    up = np.where(rounded.astype(np.float64) < wide, np.nextafter(rounded, np.float16(np.inf)), rounded)
    rounded = np.where(coarse, up, rounded).astype(np.float16)
    if not coarse.any():
        return integers, rounded
    shape = [1] * integers.ndim
    shape[axis] = -1
    gain = np.where(coarse, wide / rounded.astype(np.float64), 1.0)
    gain = gain.reshape(shape) if gain.size > 1 else gain.reshape([1] * integers.ndim)
    return np.rint(integers * gain).astype(np.int8), rounded


def half_scale(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """A scale in FP16, never zero."""
    rounded = scale.astype(np.float16)
    return np.where(rounded == 0, np.finfo(np.float16).smallest_subnormal, rounded).astype(np.float16)


def _of_itself(node: ir.Node, keep: Collection[str]) -> str | None:
    if node.name in keep:
        return "it was asked to stay in float"
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}::{node.op_type} is no ONNX operator"
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
           for attribute in node.attributes.values()):  # fmt: skip
        return "its body is computed in float"
    if node.op_type in SENSITIVE:
        return f"{node.op_type} easily leaves the range of FP16"
    if node.op_type == "GridSample":
        return "its coordinates need float32: FP16 would move samples by a fraction of a pixel"
    if node.op_type in _PAIR:
        return None
    return _constants(node)


def _constants(node: ir.Node) -> str | None:
    """A constant that FP16 cannot hold, or a scale of a Q/DQ pair in front."""
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        back = value.producer()
        if back is not None and back.op_type == "DequantizeLinear":
            if _coarse(back):
                return f"the scale of {value.name} is too small for FP16"
            continue
        held = value.const_value
        if held is None or held.dtype != ir.DataType.FLOAT:
            continue
        array = held.numpy()
        finite = np.abs(array[np.isfinite(array)])
        reach = float(finite.max(initial=0.0))
        if reach > LARGEST and not (node.op_type == "Clip" and index > 0):
            return f"the constant {value.name} holds {reach:g}, and FP16 ends at {LARGEST:g}"
        if 0 < reach < LEAST:
            return f"the constant {value.name} is at most {reach:g}, where FP16 loses precision"
    return None


def _coarse(pair: ir.Node) -> bool:
    """Whether FP16 changes an activation's scale by more than half a step at the end of the range."""
    scale, integers = pair.inputs[1], pair.inputs[0]
    if scale is None or scale.const_value is None or integers is None or integers.const_value is not None:
        return False
    array = scale.const_value.numpy().astype(np.float64)
    return bool(np.any(np.abs(array.astype(np.float16) - array) > SCALE_ERROR * array))


def _by_range(graph: ir.Graph, largest: Mapping[str, float]) -> Iterator[tuple[ir.Node, str]]:
    """Makers and readers of tensors whose measured magnitudes FP16 cannot hold."""
    values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
    for name, reach in largest.items():
        value = values.get(name)
        if value is None:
            continue
        if reach > LARGEST / MARGIN:
            reason = f"{name} reaches {reach:g}, and FP16 ends at {LARGEST:g}"
        elif 0 < reach < LEAST * MARGIN:
            reason = f"{name} is at most {reach:g}, where FP16 loses precision"
        else:
            continue
        yield from ((node, reason) for node in _carriers(value))


def _carriers(value: ir.Value) -> Iterator[ir.Node]:
    """The node that makes a value and those that read it, as far as the magnitude is carried on."""
    seen: set[int] = set()
    back = [value.producer()]
    while back:
        node = back.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node.op_type in _CARRYING or _gate(node):
            back += [v.producer() for v in node.inputs if v is not None]
    ahead = [user for user, _ in value.uses()]
    while ahead:
        node = ahead.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node.op_type in _CARRYING:
            ahead += [user for output in node.outputs for user, _ in output.uses()]


def _gate(node: ir.Node) -> bool:
    """x * sigmoid(x): about as large as x."""
    if node.op_type != "Mul":
        return False
    makers = [v.producer() for v in node.inputs if v is not None]
    return any(
        m is not None and m.op_type in ("Sigmoid", "HardSigmoid") and m.inputs[0] in node.inputs
        for m in makers
    )


def _add_decode(graph: ir.Graph, found: Reasons) -> None:
    """What follows the last weighted layers: box arithmetic, exponentials, overlaps.

    A layer whose boxes only say where the next ones look (region proposals) is a last one too.
    """
    layers = [node for node in graph if _is_layer(node)]
    before = _reach(layers, lambda node: (v.producer() for v in carried(node)))
    behind = _reach(layers, lambda node: (user for v in node.outputs for user, _ in v.uses()))
    for node in graph:
        if id(node) not in behind or id(node) in before or node in found:
            continue
        # Moving numbers about costs no precision: they are widened where arithmetic begins.
        makers = [v.producer() for v in node.inputs if v is not None]
        if node.op_type in SHAPE_ONLY and not any(m in found for m in makers if m is not None):
            continue
        found[node] = "it follows the last layer: coordinates and scores need float32"


def _is_layer(node: ir.Node) -> bool:
    """A layer with constant weights; not the fixed projection that follows a softmax over distance bins."""
    if node.op_type not in WEIGHTED or len(node.inputs) < 2:
        return False
    weight, source = node.inputs[1], node.inputs[0]
    back = weight.producer() if weight is not None else None
    held = back.inputs[0] if back is not None and back.op_type == "DequantizeLinear" else weight
    if held is None or held.const_value is None:
        return False
    maker = source.producer() if source is not None else None
    while maker is not None and maker.op_type in (SHAPE_ONLY | set(_PAIR)):
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    return maker is None or maker.op_type != "Softmax"


def _reach(start: Iterable[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node | None]]) -> set[int]:
    """Nodes that can be reached, the start included."""
    seen: set[int] = set()
    waiting: list[ir.Node | None] = list(start)
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        waiting += step(node)
    return seen
