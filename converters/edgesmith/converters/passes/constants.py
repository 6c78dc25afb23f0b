"""Constants of a graph: made under a free name, taken out where nothing reads them, read as limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def add_constant(graph: ir.Graph, name: str, data: NDArray[Any] | np.generic) -> ir.Value:
    """A new constant; the name gets a number where it is taken."""
    free, number = name, 1
    while free in graph.initializers:
        free, number = f"{name}_{number}", number + 1
    array = np.asarray(data)
    value = ir.Value(
        name=free,
        const_value=ir.tensor(array, name=free),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
    )
    graph.initializers[free] = value
    return value


def drop_unused(graph: ir.Graph) -> None:
    """Take out constants that no node reads any more."""
    held = graph.initializers
    for name in [n for n, v in held.items() if not v.uses() and not v.is_graph_output()]:
        del held[name]


def limits_of(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or Clip limits its values to; None where the graph computes a limit."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    found = [-float("inf"), float("inf")]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        if value.const_value is None:
            return None
        found[index] = float(value.const_value.numpy())
    return found[0], found[1]
