"""Grids for what integer operators make, and limits that a grid keeps by itself."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from edgesmith.converters.passes.constants import limits_of
from edgesmith.converters.passes.x86.activations import limit_leaky, quantize_silu, silu_of
from edgesmith.converters.passes.x86.draft import Draft, Grid
from edgesmith.converters.passes.x86.pairs import LIMITERS

MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Split", "Slice", "Resize", "Flatten"})
ARITHMETIC = frozenset({"Add", "Concat", "LeakyRelu"})
BEYOND = 2.0  # how far a part may reach past a grid that it takes over, as a multiple
LIMIT_SLACK = 1e-3  # of a step: the last integer and a Clip's limit may differ by rounding


def absorb_limits(draft: Draft) -> None:
    """Drop a ReLU or Clip whose limits the integers behind it keep by themselves."""
    for node in [n for n in draft.graph if n.op_type in LIMITERS]:
        source, result = node.inputs[0], node.outputs[0]
        maker = source.producer() if source is not None else None
        if source is None or maker is None or len(source.uses()) > 1 or result.is_graph_output():
            continue
        if maker not in draft.layers and maker.op_type != "Add":
            continue
        grid = draft.grids.get(result) or draft.measured(result)
        if grid is None:
            continue
        factor = draft.factors.get(result)
        widest = np.asarray(1.0 if factor is None else factor)
        bounds = limits_of(node)
        if bounds is None:
            continue
        least, most = bounds
        slack = LIMIT_SLACK * grid.scale
        if (grid.low * widest < least - slack).any() or (
            grid.high * widest > most * (1 + 1e-6) + slack
        ).any():
            continue
        draft.grids.pop(result, None)
        draft.grids[source] = grid
        if factor is not None:
            draft.factors[source] = draft.factors.pop(result)
        for layer in [name for name, read in draft.layers.items() if read is result]:
            draft.layers[layer] = source
        ir.convenience.replace_all_uses_with(result, source)
        draft.graph.remove(node, safe=True)


def spread(draft: Draft) -> None:
    """Grids for what integer operators make of tensors that have one, in execution order."""
    for node in draft.graph:
        if node in draft.layers:
            result = node.outputs[0]
            if result not in draft.grids and not result.is_graph_output():
                draft.give(node, result)
        elif node.op_type in MOVES or node.op_type in ARITHMETIC:
            _through(draft, node)
        elif (silu := silu_of(draft, node)) is not None and makes_integers(draft, node):
            if silu.result not in draft.grids and not silu.result.is_graph_output():
                draft.give(node, silu.result)
            quantize_silu(draft, silu)


def _through(draft: Draft, node: ir.Node) -> None:
    """What one operator makes: the same grid where it only moves values, else that of the range."""
    data = [v for v in node.inputs if v is not None and v.const_value is None]
    grids = [draft.grids[v] for v in data if v in draft.grids]
    alone = node.op_type == "Add" and len(data) < 2
    idle = node.op_type == "LeakyRelu" and not makes_integers(draft, node)
    if not data or len(grids) < len(data) or alone or idle:
        return
    for result in node.outputs:
        if result in draft.grids or result in draft.apart or result.is_graph_output() or not result.uses():
            continue
        if node.op_type in MOVES:
            draft.grids[result] = grids[0]
        else:
            draft.give(node, result)
    if node.op_type == "LeakyRelu":
        limit_leaky(draft, node)


def inherit(draft: Draft) -> None:
    """What is only moved, or joined, into a tensor that has a grid gets that grid: it is rounded once.

    In reverse, so that it reaches the layers that make the parts. A part that reaches further than the grid
    keeps a grid of its own.
    """
    for node in reversed(list(draft.graph)):
        if node.op_type not in MOVES and node.op_type != "Concat":
            continue
        own = [draft.grids[v] for v in node.outputs if v in draft.grids]
        if not own:
            continue
        grid = max(own, key=lambda g: g.scale)
        for part in node.inputs[: None if node.op_type == "Concat" else 1]:
            if part is None or part.const_value is not None or part in draft.grids:
                continue
            if _from_integers(draft, part) and _holds(draft, grid, part):
                draft.grids[part] = grid


def join(draft: Draft) -> None:
    """What is moved or joined into one another shares one grid: a value is rounded once on its way.

    Where all of it comes from integers, and none of it has a grid yet. Calibration chose grids for what
    layers read of it: the widest of those serves, else that of the measured range.
    """
    leader: dict[ir.Value, ir.Value] = {}
    chosen: dict[ir.Value, list[Grid]] = defaultdict(list)

    def root(value: ir.Value) -> ir.Value:
        while leader.setdefault(value, value) is not value:
            value = leader[value]
        return value

    for node in draft.graph:
        if node.op_type in MOVES or node.op_type == "Concat":
            parts = [*node.inputs[: None if node.op_type == "Concat" else 1], *node.outputs]
            free = [v for v in parts if v is not None and v.const_value is None and v not in draft.grids]
            for value in free:
                leader[root(value)] = root(free[0])
            if free:
                chosen[free[0]] += [draft.grids[v] for v in node.outputs if v in draft.grids]
    groups: dict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value in leader:
        groups[root(value)].append(value)
    for members in groups.values():
        found = [draft.measured(value) for value in members]
        grids = [grid for grid in found if grid is not None]
        if len(grids) == len(members) and all(_from_integers(draft, value) for value in members):
            known = [grid for value in members for grid in chosen[value]]
            widest = Grid.between(min(g.low for g in grids), max(g.high for g in grids))
            grid = max(known, key=lambda g: g.scale, default=widest)
            draft.grids.update(dict.fromkeys(members, grid))


def _from_integers(draft: Draft, value: ir.Value) -> bool:
    """Whether a layer makes a tensor, through an activation function or not, or it is only moved."""
    maker = value.producer()
    if maker is None or value in draft.apart or value.is_graph_output():
        return False
    if maker.op_type == "LeakyRelu":
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    if maker is None:
        return False
    return (
        silu_of(draft, maker) is not None
        or maker in draft.layers
        or maker.op_type in MOVES
        or maker.op_type == "Concat"
    )


def _holds(draft: Draft, grid: Grid, value: ir.Value) -> bool:
    found = draft.measured(value)
    return found is not None and found.low >= grid.low * BEYOND and found.high <= grid.high * BEYOND


def reads_integers(draft: Draft, node: ir.Node) -> bool:
    """Whether an operator takes integers, so that what it reads wants one scale."""
    if node in draft.layers or node.op_type in MOVES or node.op_type in ("Add", "Concat"):
        return True
    if node.op_type == "Sigmoid":
        products = [silu_of(draft, user) for user, _ in node.outputs[0].uses()]
        return any(silu is not None and makes_integers(draft, silu.product) for silu in products)
    return makes_integers(draft, node)


def makes_integers(draft: Draft, node: ir.Node) -> bool:
    """Whether an activation function is worth computing in integers: something reads its result as such."""
    if node.op_type != "LeakyRelu" and silu_of(draft, node) is None:
        return False
    result = node.outputs[0]
    return result in draft.grids or any(reads_integers(draft, user) for user, _ in result.uses())
