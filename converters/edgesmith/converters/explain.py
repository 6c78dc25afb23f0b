"""Before anything is built: what of a model the chosen device's TensorRT does not take, and what helps."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir

from edgesmith.converters.operators import operator, rewrite_of, tensorrt_of
from edgesmith.converters.passes.finding import Finding
from edgesmith.converters.passes.lint_operators import operator_findings
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.trace import Lines, annotate, line_of, module_path
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.errors import UnsupportedOperatorError

log = logging.getLogger(__name__)


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """A place that TensorRT does not take.

    ``module`` is the dotted path in the user's model, ``lines`` the lines of its code where they are known;
    ``mend`` is what to do; ``rewrite`` names the module of ours that makes the change where the model is
    brought as PyTorch, of a ready graph.
    """

    operator: str
    node: str
    module: str | None
    lines: tuple[str, ...]
    what: str
    mend: str
    rewrite: str | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of ``explain --json``.

    ``operators`` counts them by name; ``unknown`` are those that the table has no word on. ``slow`` are
    places that are taken and cost more than they need, in words.
    """

    model: str
    device: str
    tensorrt: str
    opset: int
    operators: dict[str, int]
    obstacles: tuple[Obstacle, ...]
    unknown: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True where nothing stands in the way."""
        return not self.obstacles


def explain_graph(path: Path, device: str) -> Explanation:
    """Look an ONNX file through.

    Raises:
        SourceError: it is no sound graph.
        DeviceProfileError: there is no such device, or it runs no bundle.
    """
    from edgesmith.converters.sources.onnx_file import read_graph

    proto = onnx.shape_inference.infer_shapes(read_graph(path))
    model = ir.from_proto(proto)
    lines: Lines = {}
    places = [(node, node.name, line_of(node)) for node in model.graph]
    annotate(model, None)
    for node, name, line in places:
        node.name = name or node.name  # as it stands in the user's file
        if line is not None:
            lines.setdefault((module_path(node), node.op_type), {})[line] = None
    return explained(model, path.name, device, lines, ready=True)


def explain_recipe(recipe: Recipe, device: str | None = None) -> Explanation:
    """Load and export a recipe's model, and look its graph through; nothing is compared, built or written.

    Args:
        recipe: what a conversion would be asked.
        device: in place of the recipe's ``target.device``.

    Raises:
        RecipeError: the recipe cannot be used.
        SourceError: the model cannot be loaded.
        ExportError: it cannot be expressed in ONNX at all.
        DeviceProfileError: there is no such device, or it runs no bundle.
    """
    device = device or recipe.target.device
    tensorrt_of(profile(device))
    from edgesmith.converters.export import slim
    from edgesmith.converters.graph import canonical_graph
    from edgesmith.converters.package import name_of
    from edgesmith.converters.pictures import pictures_of
    from edgesmith.converters.sources import load_source

    recipe = recipe.checked()
    lines: Lines = {}
    source, pictures = load_source(recipe), pictures_of(recipe)
    try:
        graph = canonical_graph(recipe, source, pictures, lines=lines)
    except UnsupportedOperatorError as error:
        # The exporter stops at the first one.
        found = Obstacle(
            operator=error.operator, node="", module=error.module, lines=(), what=str(error),
            mend="explain again afterwards: the export stops at the first such operator",
        )  # fmt: skip
        version = tensorrt_of(profile(device))
        return Explanation(
            model=name_of(recipe), device=device, tensorrt=version, opset=0, operators={}, obstacles=(found,)
        )
    return explained(ir.from_proto(slim(graph.exported)), name_of(recipe), device, lines)


def explained(model: ir.Model, name: str, device: str, lines: Lines, *, ready: bool = False) -> Explanation:
    """What stands in the way of an annotated graph on a device.

    Args:
        model: with module paths in its nodes' metadata and inferred types.
        name: what to call it.
        device: a profile's name.
        lines: of the user's code, by module path and operator.
        ready: it was not exported here, so that no rewrite was tried.
    """
    version = tensorrt_of(profile(device))
    counts = Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0))
    known = {kind: operator(kind) for kind in counts}
    standard = {n.op_type for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.domain == ""}
    return Explanation(
        model=name,
        device=device,
        tensorrt=version,
        opset=opset,
        operators=dict(counts.most_common()),
        obstacles=tuple(_obstacle(finding, lines, ready) for finding in operator_findings(model, version)),
        unknown=tuple(sorted(kind for kind, one in known.items() if one is None and kind in standard)),
        slow=tuple(
            f"{kind}: {one.limits}; {one.advice}"
            for kind, one in known.items()
            if one is not None and one.limits.startswith("nothing in TensorRT")
        ),
    )


def _obstacle(finding: Finding, lines: Lines, ready: bool) -> Obstacle:
    rewrite = rewrite_of(finding.operator) if ready else None
    mend = finding.mend
    if rewrite is not None:
        mend = (
            f"bring the PyTorch module (model.factory): the conversion makes of {rewrite.operator} "
            f"{rewrite.becomes}; else {mend}"
        )
    return Obstacle(
        operator=finding.operator,
        node=finding.node,
        module=finding.module,
        lines=tuple(lines.get((finding.module, finding.operator), ())),
        what=finding.what,
        mend=mend,
        rewrite=None if rewrite is None else rewrite.module,
    )
