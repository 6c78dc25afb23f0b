"""The layers behind which no other weighted layer stands: they make the answers, and stay in float.

Layers that make regions count as well: where the next layers look is an answer, not a value that they read.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgesmith.calibration.sites import Site
from edgesmith.converters.passes.base import carried


def output_layers(sites: Sequence[Site]) -> frozenset[str]:
    """Names of the sites from whose outputs no other site is reached."""
    nodes = {site.node for site in sites}
    return frozenset(site.name for site in sites if not _reaches(site.node, nodes))


def vector_products(sites: Sequence[Site]) -> frozenset[str]:
    """Names of products of a single row with a matrix: bound by memory, INT8 gains nothing there."""
    found = set()
    for site in sites:
        value = site.node.inputs[0]
        if site.node.op_type == "Conv" or value is None or value.shape is None:
            continue
        rows = list(value.shape)[:-1]
        if all(isinstance(d, int) and d == 1 for d in rows):
            found.add(site.name)
    return frozenset(found)


def _reaches(start: ir.Node, others: set[ir.Node]) -> bool:
    seen: set[int] = set()
    waiting = list(start.outputs)
    while waiting:
        value = waiting.pop()
        for use in value.uses():
            if value not in carried(use.node):
                continue
            if use.node in others:
                return True
            if id(use.node) not in seen:
                seen.add(id(use.node))
                waiting += use.node.outputs
    return False
