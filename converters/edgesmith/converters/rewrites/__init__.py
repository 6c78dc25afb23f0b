"""Steps that ONNX or TensorRT lacks, written with those that they have.

    program = rewritten(program)

It works on the traced program, before the export. Maxima are exact, sums and products but for their order.
What cannot be rewritten (an axis of open length, an output that the replacement does not have) is left as it
is, and the exporter then names it. ``converters/operators.py`` lists them for people.
"""

from __future__ import annotations

import logging
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from edgesmith.converters.rewrites.decompositions import decompositions
from edgesmith.converters.rewrites.running import shifted_maxima

__all__ = ["rewritten"]

log = logging.getLogger(__name__)


def rewritten(program: ExportedProgram) -> ExportedProgram:
    """The program without such steps; the program itself where it has none."""
    changed = shifted_maxima(program)
    if changed:
        log.info("%d running maxima became shifted maxima", changed)
    table = decompositions()
    calls: dict[Any, list[Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in table:
            calls.setdefault(node.target, []).append(node)
    taken = {
        target: table[target].function
        for target, nodes in calls.items()
        if any(map(table[target].wanted, nodes)) and all(map(table[target].possible, nodes))
    }
    if not taken:
        return program
    log.info("rewritten: %s", ", ".join(sorted(str(target) for target in taken)))
    # Composite operators stay whole: only what is named here is taken apart.
    without: ExportedProgram = program.run_decompositions(taken)
    return without
