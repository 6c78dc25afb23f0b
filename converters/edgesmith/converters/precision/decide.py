"""The precision of each layer under an accuracy budget, decided on images that the verdict never sees."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.calibration.sites import MODULE_KEY, Site
from edgesmith.converters.passes.cast_fp16 import CastFp16, largest_of
from edgesmith.converters.passes.insert_qdq import unfit_for_int8
from edgesmith.converters.precision.output_layers import output_layers, vector_products
from edgesmith.converters.precision.search import best_way, first_way, rank_sensitivity
from edgesmith.converters.precision.trial import Trial, Workbench, folded
from edgesmith.sdk.errors import AccuracyBudgetError
from edgesmith.sdk.evaluate.paired import Paired
from edgesmith.sdk.metrics import loss_unit_of

log = logging.getLogger(__name__)
# Layers given back to float between two looks at the verdict: each look costs a pass over its images.
STEPS = (2, 4, 8, 16, 32)
SHORTLIST = 48  # layers whose sensitivity is measured before any is given back

Judge = Callable[[Mapping[str, onnx.ModelProto]], Mapping[str, Paired]]


@dataclass(frozen=True)
class Kept:
    """A layer that stays in float, and why."""

    node: str
    module: str | None
    why: str


@dataclass(frozen=True)
class Finished:
    """A graph as it is bundled; ``kept`` are the nodes that FP16 cannot hold and float32 keeps."""

    graph: onnx.ModelProto
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class Point:
    """One look at the verdict: layers in float beyond those that never were to be quantized, and the drop."""

    float_layers: int
    drop: float
    interval: tuple[float, float]
    share: float


@dataclass(eq=False)
class Decision:
    """What was decided.

    ``graphs`` are the variants by name, ``chosen`` one of them; ``share`` is that of the
    multiply-accumulates in INT8 (0..1); ``curve`` the looks at the verdict in order; ``evaluations`` counts
    those looks and the comparisons on the search images. ``signed`` is the chosen graph with its INT8 layers
    before the rest went to FP16, None where nothing is INT8.
    """

    chosen: str
    graphs: dict[str, onnx.ModelProto]
    verdicts: dict[str, Paired]
    kept: tuple[Kept, ...]
    share: float
    trial: Trial | None = None
    tried: Sequence[Trial] = ()
    curve: list[Point] = field(default_factory=list)
    evaluations: int = 0
    signed: onnx.ModelProto | None = None


def never_quantized(sites: Sequence[Site], patterns: Sequence[str]) -> dict[str, str]:
    """Layers that stay in float whatever the search finds, with the reason.

    ``patterns`` are the recipe's ``precision.keep_float``, matched against node and module names.
    """
    reasons = dict.fromkeys(
        vector_products(sites), "a vector times a matrix is bound by memory: INT8 gains nothing"
    )
    reasons |= dict.fromkeys(output_layers(sites), "it makes the outputs")
    for site in sites:
        if (unfit := unfit_for_int8(site)) is not None:
            reasons[site.name] = unfit
        for pattern in patterns:
            if fnmatch.fnmatch(site.name, pattern) or fnmatch.fnmatch(site.module or "", pattern):
                reasons[site.name] = f"precision.keep_float names it ({pattern})"
    return reasons


def macs_share(sites: Sequence[Site], in_float: Mapping[str, str] | frozenset[str]) -> float:
    """Share (0..1) of the multiply-accumulates that are not in float."""
    total = sum(site.macs for site in sites)
    return sum(site.macs for site in sites if site.name not in in_float) / total if total else 0.0


def in_fp16(graph: onnx.ModelProto, table: ScaleTable) -> Finished:
    """The graph with everything in FP16 that FP16 can hold."""
    model = ir.serde.deserialize_model(graph)
    modules = {node.name: node.metadata_props.get(MODULE_KEY) for node in model.graph}
    result = CastFp16(largest_of(table))(model)
    kept = tuple(Kept(d.node, modules.get(d.node), d.reason) for d in result.declined)
    return Finished(ir.to_proto(result.model), kept)


class Decider:
    """Finds the graph that a precision mode asks for.

    Args:
        bench: graph, ranges, search images.
        reasons: layers that are never quantized, see :func:`never_quantized`.
        max_drop: the budget in points, or dB of PSNR.
        rest: ``fp16`` or ``fp32``, for what is not INT8.
        judge: measures graphs by name on the verdict images; None where there are none.
    """

    def __init__(
        self, bench: Workbench, reasons: Mapping[str, str], *, max_drop: float, rest: str, judge: Judge | None
    ) -> None:
        self.bench = bench
        self.reasons = dict(reasons)
        self.max_drop = max_drop
        self.rest = rest
        self.judge = judge
        self.sites = bench.sites()
        self.looks = 0
        self._seen: dict[str, Paired] = {}

    def finish(self, graph: onnx.ModelProto) -> Finished:
        """The graph as it is bundled.

        Factors and offsets move into the layers before them where they can, so that a board computes nothing
        more for them; what is not INT8 goes to the recipe's ``precision.rest``.
        """
        graph = folded(graph)
        return in_fp16(graph, self.bench.table) if self.rest == "fp16" else Finished(graph)

    def int8(self, *, method: str, repairs: str | Sequence[str], accept_drop: bool) -> Decision:
        """Every layer that can be in INT8, repaired; refused past the budget unless that is accepted.

        Raises:
            AccuracyBudgetError: the drop is past the budget.
        """
        trial = self.bench.try_way(first_way(method=method, repairs=repairs))
        done = self.finish(trial.graph)
        verdicts = self._looked({"int8": done.graph})
        found = verdicts.get("int8")
        if found is not None and found.drop > self.max_drop and not accept_drop:
            raise AccuracyBudgetError(
                f"INT8 loses {found.lost} ({found.exact:.2f} to "
                f'{found.other:.2f}); the budget is {self.max_drop:g}: use precision.mode = "auto", which '
                "keeps in float what costs most, train under the rounding with a [qat] table, or set "
                "precision.accept_drop",
                drop=found.drop,
                budget=self.max_drop,
            )
        return Decision(
            "int8",
            {"int8": done.graph},
            verdicts,
            (*self._kept({}), *done.kept),
            macs_share(self.sites, self.reasons),
            trial,
            [trial],
            evaluations=self.evaluations,
            signed=trial.graph,
        )

    def fp16(self) -> Decision:
        """Everything in FP16 that FP16 can hold.

        Raises:
            AccuracyBudgetError: the drop is past the budget.
        """
        done = in_fp16(self.bench.exact, self.bench.table)
        verdicts = self._looked({"fp16": done.graph})
        found = verdicts.get("fp16")
        if found is not None and found.drop > self.max_drop:
            raise AccuracyBudgetError(
                f"FP16 loses {found.lost} ({found.exact:.2f} to "
                f'{found.other:.2f}); the budget is {self.max_drop:g}: use precision.mode = "fp32"',
                drop=found.drop,
                budget=self.max_drop,
            )
        everything = {site.name: "precision.mode is fp16" for site in self.sites}
        return Decision(
            "fp16",
            {"fp16": done.graph},
            verdicts,
            (*self._kept(everything), *done.kept),
            0.0,
            evaluations=self.evaluations,
        )

    def auto(self, *, method: str, repairs: str | Sequence[str]) -> Decision:
        """The most INT8 that stays inside the budget, else FP16.

        Raises:
            AccuracyBudgetError: not even FP16 does; the message holds the curve.
        """
        trial, tried = best_way(self.bench, method=method, repairs=repairs)
        returned: dict[str, str] = {}
        ranked: list[str] | None = None
        curve: list[Point] = []
        for count in (0, *STEPS):
            if count:
                if ranked is None:
                    ranked = [s.node for s in rank_sensitivity(self.bench, trial, most=SHORTLIST)]
                names = ranked[:count]
                if len(names) == len(returned):
                    break  # there was nothing more to give back
                returned = dict.fromkeys(names, "quantizing it costs more accuracy than the budget allows")
            signed = self.bench.without(trial, set(returned)) if returned else trial.graph
            done = self.finish(signed)
            share = macs_share(self.sites, self.reasons | returned)
            verdicts = self._looked({"auto": done.graph})
            found = verdicts.get("auto")
            if found is not None:
                curve.append(Point(len(returned), found.drop, found.interval, share))
            if found is None or found.drop <= self.max_drop:
                return Decision(
                    "auto",
                    {"auto": done.graph},
                    verdicts,
                    (*self._kept(returned), *done.kept),
                    share,
                    trial,
                    tried,
                    curve,
                    self.evaluations,
                    signed,
                )
            log.info("%d layers back in float: %s lost", len(returned), found.lost)
        return self._fp16_instead(curve, trial, tried)

    def _fp16_instead(self, curve: list[Point], trial: Trial, tried: Sequence[Trial]) -> Decision:
        unit = loss_unit_of(next((verdict.metric for verdict in self._seen.values()), ""))
        told = "; ".join(f"{p.float_layers} layers in float: {p.drop:.2f} {unit}" for p in curve)
        if self.rest != "fp16":
            raise AccuracyBudgetError(
                f"no mix with INT8 stays inside {self.max_drop:g} {unit}: {told}. Raise precision.max_drop, "
                'set precision.rest = "fp16", or use precision.mode = "fp32"',
                drop=min(p.drop for p in curve),
                budget=self.max_drop,
            )
        done = self.finish(self.bench.exact)
        # The judge may have measured it beside the first look already.
        verdicts = self._seen if "fp16" in self._seen else self._looked({"fp16": done.graph})
        found = verdicts["fp16"]
        if found.drop > self.max_drop:
            raise AccuracyBudgetError(
                f"no precision stays inside {self.max_drop:g} {unit}: {told}; all in FP16: {found.drop:.2f}. "
                'Raise precision.max_drop, or use precision.mode = "fp32"',
                drop=min(found.drop, *(p.drop for p in curve)),
                budget=self.max_drop,
            )
        everything = {site.name: "no INT8 stays inside the budget" for site in self.sites}
        return Decision(
            "fp16",
            {"fp16": done.graph},
            verdicts,
            (*self._kept(everything), *done.kept),
            0.0,
            trial,
            tried,
            curve,
            self.evaluations,
        )

    def _looked(self, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, Paired]:
        """The judge's verdict by name; empty where there is none."""
        if self.judge is None:
            return {}
        self.looks += 1
        found = dict(self.judge(graphs))
        self._seen |= found
        return found

    @property
    def evaluations(self) -> int:
        """Comparisons on the search images and looks at the verdict so far."""
        return self.bench.evaluations + self.looks

    def _kept(self, returned: Mapping[str, str]) -> tuple[Kept, ...]:
        reasons = {**returned, **self.reasons}
        return tuple(
            Kept(site.name, site.module, reasons[site.name]) for site in self.sites if site.name in reasons
        )
