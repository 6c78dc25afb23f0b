"""Where Q/DQ pairs stand and what they hold: the rules that no parser and no checker enforces.

A graph that breaks them compiles. Its layers then run in float without a word, or compute something else.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgesmith.converters.passes.base import WEIGHTED
from edgesmith.converters.passes.finding import Finding, label

Q, DQ = "QuantizeLinear", "DequantizeLinear"
ACTIVATIONS = frozenset(
    {
        "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu",
        "Relu", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh",
    }
)  # fmt: skip
# A layer stays INT8 where its DQ passes through these on the way (compiled and read).
TRANSPARENT = frozenset(
    {
        "Abs", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity",
        "MaxPool", "Neg", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
# It falls to float where one of these stands in between.
OPAQUE = ACTIVATIONS | {
    "Add", "AveragePool", "BatchNormalization", "Cast", "Div", "GlobalAveragePool", "Mul", "ReduceMean",
    "Resize", "Sub", "Upsample",
}  # fmt: skip
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_SCALE_OPSET = 19  # the first whose scales may be FP16


def quantization_findings(model: ir.Model, opset: int) -> Iterator[Finding]:
    """Everything that is wrong with the Q/DQ nodes and with the layers that read them."""
    for node in model.graph.all_nodes():
        if node.op_type in (Q, DQ):
            yield from _pair(node, opset)
        if node.op_type == Q:
            yield from _activation_scale(node)
            yield from _before_activation(node)
        if node.op_type in WEIGHTED:
            yield from _weight_axis(node)
            yield from _halves(node)
        yield from _float_types(node)
    yield from _duplicates(model)


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    held = value.const_value if value is not None else None
    return None if held is None else held.numpy()


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _pair(node: ir.Node, opset: int) -> Iterator[Finding]:
    """Types and zero points."""
    integers = node.outputs[0] if node.op_type == Q else node.inputs[0]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = next((v.dtype for v in (zero, integers) if v is not None and v.dtype is not None), None)
    if kind is None and node.op_type == Q:
        kind = ir.DataType(node.attributes.get_int("output_dtype", int(ir.DataType.UINT8)))
    if kind == ir.DataType.INT32:
        yield Finding.at(
            "int32-bias", node, "it dequantizes 32-bit integers, which TensorRT refuses",
            "leave the bias in float (TensorRT quantizes it itself)",
        )  # fmt: skip
    elif kind is not None and kind != ir.DataType.INT8:
        wide = " (values above 127 would be clipped without a word)" if kind == ir.DataType.UINT8 else ""
        yield Finding.at(
            "integer-type", node, f"its integers are {kind.name.lower()}{wide}",
            "use signed 8-bit integers, with an int8 zero point of 0",
        )  # fmt: skip
    if zero is not None and zero.const_value is None:
        yield Finding.at(
            "zero-point", node, "its zero point is computed in the graph", "use the constant 0 (symmetric)"
        )
    elif (values := _constant(node, 2)) is not None and np.any(values):
        value = int(values.reshape(-1)[np.flatnonzero(values)[0]])
        yield Finding.at(
            "zero-point", node, f"its zero point is {value}, and TensorRT takes 0 only",
            "quantize symmetrically; an offset goes into an Add in front of the Q",
        )  # fmt: skip
    scale = node.inputs[1]
    if scale is not None and scale.dtype == ir.DataType.FLOAT16 and opset < _SCALE_OPSET:
        yield Finding.at(
            "fp16-scale", node, f"its scale is FP16 at opset {opset}, where scales must be float32",
            f"raise the opset to {_SCALE_OPSET} or 20",
        )  # fmt: skip


def _activation_scale(node: ir.Node) -> Iterator[Finding]:
    data, scale = node.inputs[0], _constant(node, 1)
    if data is None or data.const_value is not None or scale is None or scale.size == 1:
        return
    yield Finding.at(
        "per-channel-activation", node, f"it has {scale.size} scales for an activation, {data.name}",
        "use one scale a tensor; a factor by channel goes into a Mul in front of the Q",
    )  # fmt: skip


def _before_activation(node: ir.Node) -> Iterator[Finding]:
    """Nothing may stand between a layer and its activation, nor inside of SiLU."""
    source = _producer(node.inputs[0])
    if source is None:
        return
    readers = [
        user for back, _ in node.outputs[0].uses() for user, _ in back.outputs[0].uses() if back.outputs
    ]
    layer = source
    if layer.op_type in ("Add", "BatchNormalization"):
        layer = next(
            (p for p in map(_producer, layer.inputs) if p is not None and p.op_type in WEIGHTED), layer
        )
    act = next((reader for reader in readers if reader.op_type in ACTIVATIONS), None)
    if layer.op_type in WEIGHTED and act is not None:
        yield Finding.at(
            "before-activation", node, f"it stands between {label(layer)} and its {act.op_type}",
            "quantize behind the activation, where the next layer reads",
        )  # fmt: skip
    if source.op_type in ("Sigmoid", "HardSigmoid"):
        gated = next((r for r in readers if r.op_type == "Mul" and source.inputs[0] in r.inputs), None)
        if gated is not None:
            yield Finding.at(
                "before-activation", node, f"it stands inside of the SiLU or hard-swish of {label(gated)}",
                "quantize behind the Mul, where the next layer reads",
            )  # fmt: skip


def _weight_axis(node: ir.Node) -> Iterator[Finding]:
    back = _producer(node.inputs[1])
    if back is None or back.op_type != DQ:
        return
    scale, integers = _constant(back, 1), back.inputs[0]
    if scale is None or scale.size == 1 or integers is None or integers.shape is None:
        return
    rank = len(integers.shape)
    wanted = {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type)
    if wanted is None:
        wanted = 0 if node.attributes.get_int("transB", 0) else 1
    axis = back.attributes.get_int("axis", 1) % rank
    if axis != wanted:
        yield Finding.at(
            "weight-axis", back, f"its scales lie along axis {axis} of the weight of {label(node)}",
            f"the output channels of {node.op_type} are axis {wanted}",
        )  # fmt: skip


def _halves(node: ir.Node) -> Iterator[Finding]:
    """A layer runs in INT8 where both its inputs are quantized, and the activation reaches it as integers."""
    weight = _producer(node.inputs[1])
    weight_quantized = weight is not None and _scales(node.inputs[1]) != {None}
    scales = _scales(node.inputs[0])
    if not weight_quantized:
        if scales - {None} and len(scales) == 1 and _reads_pair(node.inputs[0]):
            yield Finding.at(
                "half-quantized", node, "its activation is quantized and its weight is not",
                "quantize both or none: it runs in float and pays for the rounding",
            )  # fmt: skip
        return
    if scales == {None}:
        blocker = _blocker(node.inputs[0])
        if blocker is not None:
            yield Finding.at(
                "float-path", node, f"{blocker.op_type} {label(blocker)} stands between it and the Q/DQ "
                "pair: it runs in float", "put the pair directly in front of the layer",
            )  # fmt: skip
        else:
            yield Finding.at(
                "half-quantized", node, "its weight is quantized and its activation is not",
                "quantize both or none: it runs in float and dequantizes its weight each time",
            )  # fmt: skip
    elif len(scales) > 1:
        what = "float and quantized tensors" if None in scales else "tensors of different scales"
        yield Finding.at(
            "concat-scales", node, f"it reads a Concat of {what}: it runs in float",
            "put a Q/DQ pair behind the Concat, or give all its inputs one scale",
        )  # fmt: skip


def _reads_pair(value: ir.Value | None) -> bool:
    """Whether the pair stands directly in front: further up it may serve other layers."""
    node = _producer(value)
    return node is not None and node.op_type == DQ


def _scales(value: ir.Value | None) -> set[bytes | None]:
    """Scales under which a value reaches a layer as integers; None for a way on which it is float."""
    found, waiting, seen = set[bytes | None](), [value], set[int]()
    while waiting:
        node = _producer(waiting.pop())
        if node is None:
            found.add(None)
        elif id(node) in seen:
            continue
        elif node.op_type == DQ:
            scale = _constant(node, 1)
            found.add(label(node).encode() if scale is None else scale.astype(np.float32).tobytes())
        elif node.op_type == "Concat":
            waiting.extend(node.inputs)
        elif node.op_type in TRANSPARENT:
            waiting.append(node.inputs[0])
        else:
            found.add(None)
        seen.add(id(node))
    return found


def _blocker(value: ir.Value | None) -> ir.Node | None:
    """The operator that keeps the pair above it from reaching a layer, None where there is no pair above."""
    node, blocker = _producer(value), None
    while node is not None and node.op_type != DQ:
        if node.op_type in OPAQUE:
            blocker = blocker or node
        elif node.op_type not in TRANSPARENT:
            return None
        node = _producer(node.inputs[0])
    return blocker if node is not None else None


def _float_types(node: ir.Node) -> Iterator[Finding]:
    """ONNX wants one float type; the parser takes a mixture and computes as it likes."""
    if node.op_type == Q:
        values = [("input", node.inputs[0]), ("scale", node.inputs[1])]
    elif node.op_type == DQ:
        values = [("output", node.outputs[0]), ("scale", node.inputs[1])]
    elif node.op_type in WEIGHTED:
        values = list(zip(("activation", "weight", "bias"), node.inputs, strict=False))
    else:
        return
    types = {what: v.dtype for what, v in values if v is not None and v.dtype in _FLOATS}
    if len(set(types.values())) > 1:
        shown = ", ".join(f"{what} {kind.name}" for what, kind in types.items() if kind is not None)
        yield Finding.at(
            "float-types", node, f"its float types differ ({shown})",
            "give them one type; a Cast goes in front of the Q or behind the DQ",
        )  # fmt: skip


def _duplicates(model: ir.Model) -> Iterator[Finding]:
    seen: dict[int, ir.Node] = {}
    for node in model.graph.all_nodes():
        if node.op_type != Q or node.inputs[0] is None or node.inputs[0].const_value is not None:
            continue
        first = seen.setdefault(id(node.inputs[0]), node)
        if first is not node:
            yield Finding.at(
                "duplicate-pair", node, f"{node.inputs[0].name} is quantized by {label(first)} already",
                "share one pair between all readers: each pair costs a kernel",
            )  # fmt: skip
