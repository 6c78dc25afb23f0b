"""What the report of a quantized conversion holds, from the decision and the images that it rests on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from msgspec.structs import replace

from edgesmith.calibration.images import Images
from edgesmith.calibration.methods import METHODS
from edgesmith.calibration.scale_table import Activation, ScaleTable
from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.package import FLOAT
from edgesmith.converters.precision.budget import budget_of
from edgesmith.converters.precision.decide import Decision
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.precision.stage import Decided, figures_of, split_of
from edgesmith.converters.precision.trial import Trial
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.report.against_float import Compared, compared, latency
from edgesmith.converters.report.precision import (
    CurvePoint,
    FloatLayers,
    LayerFigures,
    PrecisionReport,
    TensorScales,
    TrialFigures,
    VariantFigures,
)
from edgesmith.sdk.preprocess import Frame8, prepared

TENSORS = 10  # whose ranges are shown
# Figures of a comparison that stand in fields of their own.
_APART = frozenset({"drop", "drop_low", "drop_high", "flipped"})


def evidence(
    recipe: Recipe, exact: onnx.ModelProto, labels: tuple[str, ...], decided: Decided
) -> tuple[PrecisionReport, Compared]:
    """Compare the chosen graph with the float one on the search images, time both, gather what was decided.

    Raises:
        DataError: an image cannot be read any more.
        ExportError: a graph does not run.
    """
    decision, table = decided.decision, decided.table
    split = split_of(recipe)
    sites = sites_of(ir.serde.deserialize_model(exact))
    preprocess = recipe.preprocess()
    looked = compared(
        exact, decision.graphs[decision.chosen], _named(split.search), task=recipe.task,
        preprocess=preprocess, nms=recipe.nms_spec(), labels=labels, batch=recipe.batch,
    )  # fmt: skip
    tensor = np.repeat(prepared(preprocess, split.search[0])[0], recipe.batch.min, 0)
    verdict = decision.verdicts.get(decision.chosen)
    trial = decision.trial if decision.share > 0 else None
    report = PrecisionReport(
        mode=recipe.precision.mode,
        task=recipe.task,
        chosen=decision.chosen,
        budget=budget_of(recipe),
        share=decision.share,
        metric=verdict.metric if verdict else None,
        labelled=verdict.labelled if verdict else False,
        images=verdict.images if verdict else 0,
        search_images=len(split.search),
        calibration_images=len(split.calibration),
        faults=verdict.faults if verdict else (),
        variants=_variants(decision, exact, decided.beside.graphs),
        repairs=tuple(sorted(trial.way.repairs)) if trial else None,
        method=trial.way.method if trial else None,
        trials=tuple(_trial(t, t is trial) for t in decision.tried),
        curve=tuple(
            CurvePoint(float_layers=p.float_layers, drop=p.drop, interval=p.interval, share=p.share)
            for p in decision.curve
        ),
        layers=_layers(trial, sites, decision) if trial else (),
        scales=_scales(trial, sites, table, decision) if trial else (),
        kept_float=_kept(decision),
        warnings=table.warnings,
        scores=looked.scores,
        worst=looked.worst,
        latency=latency({FLOAT: exact, **decision.graphs}, tensor),
        cpu=decided.cpu,
    )
    return report, looked


def _named(images: Images) -> Iterator[tuple[str, Frame8]]:
    return ((name, images[number]) for number, name in enumerate(images.names))


def _variants(
    decision: Decision, exact: onnx.ModelProto, beside: Mapping[str, onnx.ModelProto]
) -> tuple[VariantFigures, ...]:
    """The float graph, the chosen one, and whatever else was measured or is in the bundle."""
    base: dict[str, float] = {}
    found = []
    for name in dict.fromkeys([decision.chosen, *decision.graphs, *decision.verdicts]):
        graph, paired = decision.graphs.get(name), decision.verdicts.get(name)
        measured = graph if graph is not None else beside.get(name)
        one = VariantFigures(
            name=name,
            chosen=name == decision.chosen,
            in_bundle=graph is not None,
            size_bytes=measured.ByteSize() if measured is not None else None,
        )
        if paired is not None:
            base, values = figures_of(paired)
            one = replace(
                one,
                values={key: value for key, value in values.items() if key not in _APART},
                drop=paired.drop,
                interval=paired.interval,
                agreement=paired.agreement,
                flipped=paired.flipped,
                right_to_wrong=paired.right_to_wrong,
                wrong_to_right=paired.wrong_to_right,
            )
        found.append(one)
    first = VariantFigures(
        name=FLOAT, chosen=False, in_bundle=True, size_bytes=exact.ByteSize(), values=base
    )  # fmt: skip
    return (first, *found)


def _trial(trial: Trial, taken: bool) -> TrialFigures:
    found = trial.agreement
    return TrialFigures(
        repairs=tuple(sorted(trial.way.repairs)), method=trial.way.method, same=found.same,
        decibels=_finite(found.decibels), flipped=found.flipped, decisions=found.decisions, taken=taken,
    )  # fmt: skip


def _layers(trial: Trial, sites: Sequence[Site], decision: Decision) -> tuple[LayerFigures, ...]:
    in_float = {kept.node for kept in decision.kept}
    return tuple(
        LayerFigures(
            node=site.name, module=site.module, decibels=_finite(trial.layer_db[site.name]), macs=site.macs,
            returned=site.name in in_float,
        )
        for site in sites
        if site.name in trial.layer_db
    )  # fmt: skip


def _scales(
    trial: Trial, sites: Sequence[Site], table: ScaleTable, decision: Decision
) -> tuple[TensorScales, ...]:
    """The tensors whose ranges the methods clip most."""
    in_float = {kept.node for kept in decision.kept}
    read = [site for site in sites if site.name not in in_float]
    readers: dict[str, Site] = {}
    for site in read:
        readers.setdefault(site.activation, site)
    quantizers = quantizers_for(table, read, method=trial.way.method, repairs=trial.way.repairs)
    most = sorted(readers, key=lambda name: -saturation(table.activations[name]))[:TENSORS]
    centred = "offset" in trial.way.repairs
    found = []
    for name in most:
        activation, quantizer = table.activations[name], quantizers[name]
        windows = activation.asymmetric if centred else activation.symmetric
        ends = (quantizer.shift - 128, quantizer.shift + 127)
        found.append(
            TensorScales(
                tensor=name,
                reader=readers[name].module or readers[name].name,
                low=activation.low,
                high=activation.high,
                windows={method: windows[method] for method in METHODS if method in windows},
                outside={
                    method: activation.clipped[method] for method in METHODS if method in activation.clipped
                },
                used=(ends[0] * quantizer.scale, ends[1] * quantizer.scale),
                factored=quantizer.factor is not None,
            )
        )
    return tuple(found)


def saturation(activation: Activation) -> float:
    """How much of a tensor the tightest method leaves outside (0..1), then how far its extremes stand out."""
    widest = max(high for _, high in activation.symmetric.values())
    tightest = min(high for _, high in activation.symmetric.values())
    # The share decides; the ratio of windows, always below 1e-6 of it, orders equal shares.
    return max(activation.clipped.values(), default=0.0) + 1e-6 * (1 - tightest / widest if widest else 0.0)


def _kept(decision: Decision) -> tuple[FloatLayers, ...]:
    groups: dict[str, list[str]] = defaultdict(list)
    for kept in decision.kept:
        groups[kept.why].append(kept.module or kept.node)
    return tuple(FloatLayers(why=why, layers=tuple(layers)) for why, layers in groups.items())


def _finite(decibels: float) -> float | None:
    return decibels if math.isfinite(decibels) else None
