"""The last part of a conversion whose graph is not float32 alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from msgspec.structs import replace

from edgesmith.converters.compiled import compiled_graphs
from edgesmith.converters.graph import Graph, Proof
from edgesmith.converters.outcome import ConvertReport, KeptFloat
from edgesmith.converters.package import FLOAT, Parts, parts_of
from edgesmith.converters.passes.lint import require_clean
from edgesmith.converters.pictures import Pictures
from edgesmith.converters.precision.budget import budget_of
from edgesmith.converters.precision.companions import PLAIN, inside
from edgesmith.converters.precision.dla import dla_members, tensorrt_for_dla
from edgesmith.converters.precision.evidence import evidence
from edgesmith.converters.precision.stage import Decided, decided, figures_of, scales_json
from edgesmith.converters.precision.trial import Workbench
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.report.against_float import latency_of
from edgesmith.converters.report.compression import StageReport, compression_of
from edgesmith.converters.sources import Loaded
from edgesmith.converters.stages import Stages
from edgesmith.sdk.backends.choose import X86
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.bundle import write_bundle
from edgesmith.sdk.errors import AccuracyBudgetError

SCALES = "scales.json"


def _for_dla(recipe: Recipe, found: Decided, version: str) -> dict[str, bytes]:
    """The members for a DLA core.

    Raises:
        AccuracyBudgetError: INT8 without arithmetic in front of the rounding is past the budget.
    """
    plain, verdict = found.beside.plain, found.decision.verdicts.get(PLAIN)
    assert plain is not None  # made wherever the recipe names a DLA core
    if verdict is not None and not inside(verdict, recipe):
        raise AccuracyBudgetError(
            "recipe: target.dla: a DLA core takes INT8 without the repairs that need arithmetic, which loses "
            f"{verdict.lost}; the budget is {budget_of(recipe):g}: "
            "take the key out, raise precision.max_drop, or set precision.accept_drop",
            drop=verdict.drop,
            budget=budget_of(recipe),
        )
    return dla_members(plain.graph, version)


def convert_quantized(
    recipe: Recipe,
    out: Path,
    source: Loaded,
    graph: Graph,
    proof: Proof,
    pictures: Pictures,
    stage: Stages,
    told: list[StageReport],
    tune: Callable[[Workbench], Workbench] | None = None,
) -> ConvertReport:
    """Decide the precision, write the bundle with its variants, and tell what was decided.

    ``told`` are the training stages before, to which this one is added where there are any; ``tune`` makes a
    bench whose INT8 graphs have learned weights (see :func:`decided`).

    Raises:
        AccuracyBudgetError: the budget cannot be kept; nothing was written.
    """

    def assemble(graphs: Mapping[str, onnx.ModelProto], chosen: str) -> Parts:
        return parts_of(
            recipe, source, graph, proof, pictures, others=graphs, chosen=chosen, extra=extra,
            compression=compression_of(told),
        )  # fmt: skip

    extra: dict[str, bytes] = {}
    version = None if recipe.target.dla is None else tensorrt_for_dla(recipe, profile(recipe.target.device))
    found = decided(recipe, proof.model, out, assemble, stage, tune)
    decision = found.decision
    extra[SCALES] = scales_json(found.table)
    if version is not None:
        extra |= _for_dla(recipe, found, version)
    # The CPU's own graph is none of TensorRT's business.
    ready = {name: model for name, model in decision.graphs.items() if name != X86}
    for model in ready.values():
        require_clean(ir.serde.deserialize_model(model))
    stage("compile")
    compiled = compiled_graphs(
        {FLOAT: proof.model, **ready}, batch=recipe.batch, size=recipe.preprocess().size
    )
    stage("compare for the report")
    shown = evidence(recipe, proof.model, graph.names, found)
    if told:
        told.append(_row(recipe, told, found, proof.model))
    stage("write the bundle")
    parts = assemble(decision.graphs, decision.chosen)
    exact: dict[str, float] = {}
    others = {}
    for name, paired in decision.verdicts.items():
        exact, others[name] = figures_of(paired)
    verdict = decision.verdicts.get(decision.chosen)
    if verdict is not None and not verdict.labelled:
        exact = {}
    manifest = parts.manifest(exact, stage, others)
    write_bundle(out, manifest, {**parts.members, **parts.report(manifest, None, stage, compiled, shown)})
    return ConvertReport(
        bundle=str(out),
        precision=manifest.precision,
        metric=verdict.metric if verdict else None,
        float=verdict.exact if verdict else None,
        chosen=verdict.other if verdict else None,
        drop=verdict.drop if verdict else None,
        interval=verdict.interval if verdict else None,
        int8_macs_share=decision.share,
        kept_float=tuple(KeptFloat(node=k.node, module=k.module, why=k.why) for k in decision.kept),
        evaluations=decision.evaluations,
        seconds=stage.total,
        task=recipe.task,
        size_bytes=out.stat().st_size,
        parity=manifest.parity,
        stages=tuple(told),
    )


def _row(recipe: Recipe, told: list[StageReport], found: Decided, exact: onnx.ModelProto) -> StageReport:
    """The decision as the last line of the training stages; the latency is that of what CPUs run."""
    decision = found.decision
    verdict = decision.verdicts.get(decision.chosen)
    known = next((stage.figures for stage in reversed(told) if stage.figures is not None), None)
    figures = None
    if known is not None:
        on_cpu = decision.graphs.get(X86, exact)
        figures = replace(
            known,
            metric=verdict.metric if verdict is not None else None,
            accuracy=verdict.other if verdict is not None else None,
            latency_ms=latency_of(on_cpu, recipe.batch.min),
            size_bytes=len(decision.graphs[decision.chosen].SerializeToString()),
        )
    share = f"{100 * decision.share:.0f} % of the arithmetic in INT8"
    runs = "the uint8 graph" if X86 in decision.graphs else "float32"
    return StageReport(
        name="precision",
        note=f"{recipe.precision.mode}: {decision.chosen}, {share}; latency of {runs}, which CPUs run",
        figures=figures,
        seconds=0.0,
    )
