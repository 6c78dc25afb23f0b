"""Which layers of a graph can be quantized, and which tensor each of them reads.

A site is a Conv, Gemm or MatMul with a constant weight. Its activation is the one tensor whose range
calibration must know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MODULE_KEY = "edgesmith.module"  # where the exporter left the path in the user's model
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One quantizable layer.

    ``macs`` are multiply-accumulates of one run of the graph as it stands (a symbolic batch counts as
    one); ``axis`` is the weight's output-channel axis, ``reach`` its input-channel axis.
    """

    node: ir.Node
    name: str
    module: str | None
    activation: str
    weight: NDArray[np.float32]
    group: int
    axis: int
    macs: int

    @property
    def depthwise(self) -> bool:
        """True where each output channel reads one input channel."""
        return self.node.op_type == "Conv" and self.group > 1 and self.weight.shape[1] == 1

    @property
    def pads(self) -> bool:
        """True where a convolution adds zeros around its input."""
        if self.node.op_type != "Conv":
            return False
        pads = self.node.attributes.get_ints("pads", [0])
        automatic = self.node.attributes.get_string("auto_pad", "NOTSET")
        return any(pads) or automatic not in ("NOTSET", "VALID")


def sites_of(model: ir.Model) -> list[Site]:
    """The quantizable layers in execution order."""
    found = []
    for node in model.graph:
        if node.domain in ("", "ai.onnx") and node.op_type in WEIGHTED:
            site = _site(node)
            if site is not None:
                found.append(site)
    return found


def _site(node: ir.Node) -> Site | None:
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None or weight.const_value is None or activation.name is None:
        return None
    if activation.const_value is not None:
        return None
    array = weight.const_value.numpy()
    if array.dtype != np.float32 or array.ndim < 2:
        return None
    axis = 0
    if node.op_type == "MatMul":
        axis = array.ndim - 1
    elif node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return None
        axis = 0 if node.attributes.get_int("transB", 0) else 1
    group = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    name = node.name or node.outputs[0].name or ""
    module = node.metadata_props.get(MODULE_KEY)
    return Site(node, name, module, activation.name, array, group, axis, _macs(node, array))


def _macs(node: ir.Node, weight: NDArray[np.float32]) -> int:
    shape = node.outputs[0].shape
    sizes = [d if isinstance(d, int) else 1 for d in shape] if shape is not None else []
    positions = int(np.prod(sizes, dtype=np.int64)) if sizes else 1
    if node.op_type == "Conv":
        return positions * int(np.prod(weight.shape[1:], dtype=np.int64))
    inner = weight.shape[-2] if node.op_type == "MatMul" else weight.size // _width(node, weight)
    return positions * int(inner)


def _width(node: ir.Node, weight: NDArray[np.float32]) -> int:
    return int(weight.shape[0 if node.attributes.get_int("transB", 0) else 1])
