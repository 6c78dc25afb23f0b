"""Running maxima and minima as log-step shifted maxima: corner pooling without CumMax.

ONNX has no CumMax and TensorRT no kernel for it. With doubling steps (Hillis and Steele, 1986)

    y_0 = x        y_k[i] = max(y_k-1[i], y_k-1[i - 2^k])        y_log2(n) = cummax(x)

a row of n values takes ceil(log2 n) maxima of slices, and the answer is the same to the bit. A flip before
and after, the usual way to look from the other end, becomes shifts the other way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

aten = torch.ops.aten
RUNNING: dict[Any, Any] = {
    aten.cummax.default: aten.maximum.default,
    aten.cummin.default: aten.minimum.default,
}


def shifted_maxima(program: ExportedProgram) -> int:
    """Replace running maxima and minima whose indices nobody reads, in place; how many there were."""
    graph = program.graph_module.graph
    changed = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in RUNNING:
            continue
        values = _values_alone(node)
        source = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        assert isinstance(source, Node)
        assert isinstance(dim, int)
        shape = source.meta["val"].shape
        dim %= len(shape)
        if values is None or not isinstance(shape[dim], int):
            continue
        replaced, backwards = values, False
        turned = _flipped_back(source, values, dim)
        if turned is not None:
            (source, replaced), backwards = turned, True
        with graph.inserting_before(replaced):
            result = _shifts(graph, source, RUNNING[node.target], dim, shape[dim], backwards, like=node)
        name = replaced.name
        replaced.replace_all_uses_with(result)
        graph.eliminate_dead_code()
        result._rename(name)  # the program's signature knows outputs by name
        changed += 1
    if changed:
        graph.lint()
        program.graph_module.recompile()
    return changed


def _values_alone(node: Node) -> Node | None:
    """The node that takes the values, where it is the only one that reads the pair."""
    readers = [user for user in node.users if user.users or user.target is not operator.getitem]
    if len(readers) != 1 or readers[0].target is not operator.getitem or readers[0].args[1] != 0:
        return None
    return readers[0]


def _flipped_back(source: Node, values: Node, dim: int) -> tuple[Node, Node] | None:
    """What was flipped before, and the node that flips back, where both flip this axis alone."""
    users = list(values.users)
    if len(users) != 1 or not _flips(source, dim) or not _flips(users[0], dim):
        return None
    inner = source.args[0]
    assert isinstance(inner, Node)
    return inner, users[0]


def _flips(node: Node, dim: int) -> bool:
    if node.op != "call_function" or node.target is not aten.flip.default:
        return False
    axes = node.args[1]
    rank = len(node.meta["val"].shape)
    return isinstance(axes, list | tuple) and [a % rank for a in axes if isinstance(a, int)] == [dim]


def _shifts(
    graph: Graph, source: Node, larger: Callable[..., Any], dim: int, length: int, backwards: bool, like: Node
) -> Node:
    """The doubling steps; every node carries the module path of ``like``."""

    def call(target: Any, *args: Any) -> Node:
        node = graph.call_function(target, args)
        node.meta = {key: value for key, value in like.meta.items() if key != "val"}
        node.meta["val"] = target(*_fake(args))
        return node

    result, step = source, 1
    while step < length:
        head = call(aten.slice.Tensor, result, dim, 0, length - step)
        tail = call(aten.slice.Tensor, result, dim, step, length)
        largest = call(larger, head, tail)
        if backwards:
            rest = call(aten.slice.Tensor, result, dim, length - step, length)
            result = call(aten.cat.default, [largest, rest], dim)
        else:
            rest = call(aten.slice.Tensor, result, dim, 0, step)
            result = call(aten.cat.default, [rest, largest], dim)
        step *= 2
    return result if result is not source else call(aten.alias.default, source)


def _fake(args: Any) -> Any:
    """Arguments with each node's fake tensor in its place."""
    if isinstance(args, Node):
        return args.meta["val"]
    if isinstance(args, list | tuple):
        return type(args)(_fake(arg) for arg in args)
    return args
