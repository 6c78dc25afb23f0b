"""Operators, settings and types of operators that TensorRT does not take, found in a graph.

Which there are stands in :mod:`edgesmith.converters.operators`. NonMaxSuppression, NonZero, RoiAlign and
DeformConv are no findings, on purpose: TensorRT has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.converters.operators import INTEGER, OLDEST, REFUSED, at_least, operator
from edgesmith.converters.passes.finding import Finding

MOST_CANDIDATES = 3840  # of TopK
DOMAINS = frozenset({"", "ai.onnx"})
_RESIZE_MODES = frozenset(
    {"align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"}
)


def operator_findings(model: ir.Model, tensorrt: str = OLDEST) -> Iterator[Finding]:
    """Operators that TensorRT lacks, and settings that it refuses, in bodies of loops and functions too.

    ``tensorrt`` is the version that is to take the graph.
    """
    own = {(domain, name) for domain, name, _ in model.functions}
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if (node.domain, node.op_type) not in own:
                yield from _operator(node, tensorrt)


def _operator(node: ir.Node, tensorrt: str) -> Iterator[Finding]:
    kind = node.op_type
    if node.domain not in DOMAINS and kind not in INTEGER:
        yield Finding.at(
            "custom-operator",
            node,
            f"{node.domain}::{kind} is no ONNX operator, and TensorRT has no plugin of that name",
            "write that step with ONNX operators, or install its plugin on the device",
        )
    elif kind in INTEGER:
        yield Finding.at("integer-operator", node, f"TensorRT does not have {kind}", REFUSED[kind])
    elif kind in REFUSED:
        yield Finding.at("operator", node, f"TensorRT does not have {kind}", REFUSED[kind])
    elif (known := operator(kind)) is not None and not at_least(tensorrt, known.since):
        yield Finding.at(
            "operator-version",
            node,
            f"TensorRT {tensorrt} does not have {kind}, {known.since} does",
            known.advice,
        )
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


def _no_integers(node: ir.Node) -> Iterator[Finding]:
    yield from _typed(node, (ir.DataType.INT32, ir.DataType.INT64), "cast to float first")


def _no_bools(node: ir.Node) -> Iterator[Finding]:
    yield from _typed(node, (ir.DataType.BOOL,), "cast to int32 first")


def _no_bytes(node: ir.Node) -> Iterator[Finding]:
    yield from _typed(node, (ir.DataType.UINT8,), "cast to float first")


def _typed(node: ir.Node, refused: Sequence[ir.DataType], mend: str) -> Iterator[Finding]:
    value = node.inputs[0] if node.inputs else None
    kind = value.dtype if value is not None else None
    if kind is not None and kind in refused:
        yield _setting(node, f"a tensor of {kind.name.lower()}", mend)


def _setting(node: ir.Node, what: str, mend: str) -> Finding:
    return Finding.at("operator-setting", node, f"TensorRT does not take {what} of {node.op_type}", mend)


_SETTINGS: dict[str, Callable[[ir.Node], Iterator[Finding]]] = {
    "Add": _no_bytes,
    "Cast": _cast,
    "MatMul": _no_integers,
    "MaxPool": _maxpool,
    "ReduceMax": _no_bools,
    "ReduceMin": _no_bools,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TopK": _topk,
    "Transpose": _no_bytes,
}
