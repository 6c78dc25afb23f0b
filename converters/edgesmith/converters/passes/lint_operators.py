"""Operators, and settings of operators, that TensorRT does not take.

Each entry was tried on the parser that TensorRT 10 and 11 share, or stands in its list of operators.
NonMaxSuppression, NonZero, RoiAlign and DeformConv are absent on purpose: TensorRT has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from edgesmith.converters.passes.finding import Finding

MOST_CANDIDATES = 3840  # of TopK
DOMAINS = frozenset({"", "ai.onnx"})
_AFTER = "leave it out of the exported forward and do it after the model"
_FLOAT = "use explicit Q/DQ pairs around the float operator"
_WHERE = "use torch.where or arithmetic in its place"

UNSUPPORTED: dict[str, str] = {
    "AffineGrid": "compute the grid once and store it as a buffer",
    "Bernoulli": "take the random part out of inference",
    "BitShift": "use multiplication or division by powers of two",
    "BitwiseAnd": _WHERE,
    "BitwiseNot": _WHERE,
    "BitwiseOr": _WHERE,
    "BitwiseXor": _WHERE,
    "CenterCropPad": "use Slice and Pad with fixed sizes",
    "Col2Im": "use ConvTranspose with an identity weight (torch.nn.Fold does not export)",
    "Compress": "use Gather with fixed indices, or Where and a mask",
    "ConcatFromSequence": "stack tensors, not Python lists of an unknown length",
    "ConvInteger": _FLOAT,
    "CumProd": "use CumSum of logarithms, or do it after the model",
    "DFT": "write the transform as a matrix product with constant cosines and sines",
    "Det": "write the determinant out, or do it after the model",
    "DynamicQuantizeLinear": _FLOAT,
    "ImageDecoder": "decode pictures before the model",
    "MatMulInteger": _FLOAT,
    "MaxUnpool": "use Resize or ConvTranspose",
    "Multinomial": "take the random part out of inference",
    "QGemm": _FLOAT,
    "QLinearAdd": _FLOAT,
    "QLinearConv": _FLOAT,
    "QLinearMatMul": _FLOAT,
    "RegexFullMatch": _AFTER,
    "SequenceAt": "index tensors, not sequences",
    "SequenceConstruct": "stack tensors, not Python lists of an unknown length",
    "SequenceEmpty": "stack tensors, not Python lists of an unknown length",
    "SequenceErase": "index tensors, not sequences",
    "SequenceInsert": "stack tensors, not Python lists of an unknown length",
    "SequenceLength": "use the tensor's shape",
    "SequenceMap": "write the step on one stacked tensor",
    "SplitToSequence": "use Split with fixed sizes",
    "StringConcat": _AFTER,
    "StringNormalizer": _AFTER,
    "StringSplit": _AFTER,
    "TfIdfVectorizer": _AFTER,
    "Unique": _AFTER,
}
# The integer operators get a rule of their own: they are what other quantizers write.
INTEGER = frozenset(
    {
        "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearConv",
        "QLinearMatMul",
    }
)  # fmt: skip
_RESIZE_MODES = frozenset(
    {"align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"}
)


def operator_findings(model: ir.Model) -> Iterator[Finding]:
    """Operators that TensorRT lacks, and settings that it refuses, in bodies of loops and functions too."""
    own = {(domain, name) for domain, name, _ in model.functions}
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if (node.domain, node.op_type) not in own:
                yield from _operator(node)


def _operator(node: ir.Node) -> Iterator[Finding]:
    kind = node.op_type
    if node.domain not in DOMAINS and kind not in INTEGER:
        yield Finding.at(
            "custom-operator",
            node,
            f"{node.domain}::{kind} is no ONNX operator, and TensorRT has no plugin of that name",
            "write that step with ONNX operators, or install its plugin on the device",
        )
    elif kind in INTEGER:
        yield Finding.at("integer-operator", node, f"TensorRT does not have {kind}", UNSUPPORTED[kind])
    elif kind in UNSUPPORTED:
        yield Finding.at("operator", node, f"TensorRT does not have {kind}", UNSUPPORTED[kind])
    elif kind in _SETTINGS:
        yield from _SETTINGS[kind](node)


def _topk(node: ir.Node) -> Iterator[Finding]:
    value = node.inputs[1]
    if value is None or value.const_value is None:
        return
    k = int(np.max(value.const_value.numpy()))
    if k > MOST_CANDIDATES:
        yield Finding.at(
            "topk-limit", node, f"k is {k}, and TensorRT takes at most {MOST_CANDIDATES}",
            f"lower the number of candidates to {MOST_CANDIDATES} (nms.candidates)",
        )  # fmt: skip


def _resize(node: ir.Node) -> Iterator[Finding]:
    transform = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if transform not in _RESIZE_MODES:
        yield _setting(node, f"coordinate_transformation_mode {transform}", "use half_pixel or align_corners")
    if node.attributes.get_int("antialias", 0):
        yield _setting(node, "antialias", "export with antialias=False")
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        yield _setting(node, f"keep_aspect_ratio_policy {policy}", "give the sizes themselves")


def _maxpool(node: ir.Node) -> Iterator[Finding]:
    if any(d != 1 for d in node.attributes.get_ints("dilations", [1])):
        yield _setting(node, "dilations", "use a larger kernel, or slices and Max")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        yield _setting(node, "the indices output", "do not use return_indices")


def _scatter(node: ir.Node) -> Iterator[Finding]:
    reduction = node.attributes.get_string("reduction", "none")
    if reduction != "none":
        yield _setting(node, f"reduction {reduction}", "use a one-hot matrix product or a sum of masks")


def _cast(node: ir.Node) -> Iterator[Finding]:
    target = ir.DataType(node.attributes.get_int("to", int(ir.DataType.FLOAT)))
    if target in (ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.INT16):
        yield _setting(node, f"a cast to {target.name.lower()}", "cast to int32 or int64")


def _setting(node: ir.Node, what: str, mend: str) -> Finding:
    return Finding.at("operator-setting", node, f"TensorRT does not take {what} of {node.op_type}", mend)


_SETTINGS: dict[str, Callable[[ir.Node], Iterator[Finding]]] = {
    "Cast": _cast,
    "MaxPool": _maxpool,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TopK": _topk,
}
