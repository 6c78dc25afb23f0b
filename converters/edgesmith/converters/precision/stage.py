"""The precision stage of a conversion: calibrate, decide, judge."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images, tensors
from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.converters.package import FLOAT, Parts
from edgesmith.converters.precision.budget import budget_of
from edgesmith.converters.precision.companions import Companions, companions, take_along
from edgesmith.converters.precision.decide import Decider, Decision, Judge, never_quantized
from edgesmith.converters.precision.for_cpu import take_x86
from edgesmith.converters.precision.trial import Workbench
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.stages import Stages
from edgesmith.sdk.bundle import write_bundle
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.evaluate import EvaluationData
from edgesmith.sdk.evaluate.paired import Paired, compare_many, compare_unlabelled
from edgesmith.sdk.models import TASKS

SEARCH_SHARE = 0.25  # of the calibration images, where the recipe names no search images
MOST_SEARCH = 64


@dataclass(frozen=True)
class Split:
    """Images by what they are for; no image is in two of them."""

    calibration: Images
    search: Images


@dataclass(frozen=True, eq=False)
class Decided:
    """The decision, the ranges it rests on, the graphs beside the chosen one, and what CPUs run and why."""

    decision: Decision
    table: ScaleTable
    beside: Companions
    cpu: str


def split_of(recipe: Recipe) -> Split:
    """Calibration and search images, divided by the recipe's seed where it names no search images.

    Raises:
        RecipeError: there are too few calibration images to divide.
        DataError: they cannot be found.
    """
    assert recipe.data.calibration is not None  # convert refuses the recipe before any work
    images = Images.open(recipe.resolve(recipe.data.calibration))
    if recipe.data.search is not None:
        search = Images.open(recipe.resolve(recipe.data.search))
        return Split(images, search.sample(MOST_SEARCH, recipe.data.seed))
    count = min(MOST_SEARCH, round(len(images) * SEARCH_SHARE))
    if count < 1:
        raise RecipeError(
            f"recipe: data.calibration: {len(images)} images cannot be divided into calibration and search "
            "images: give at least 4, better 100",
            key="data.calibration",
        )
    order = np.random.default_rng(recipe.data.seed).permutation(len(images))
    chosen, rest = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return Split(images.pick(rest), images.pick(chosen))


def decided(
    recipe: Recipe,
    exact: onnx.ModelProto,
    out: Path,
    assemble: Callable[[Mapping[str, onnx.ModelProto], str], Parts],
    stage: Stages,
    tune: Callable[[Workbench], Workbench] | None = None,
) -> Decided:
    """Calibrate on the recipe's images and find the graph that its precision mode asks for.

    Args:
        recipe: what is asked.
        exact: the float graph.
        out: where the bundle will be: bundles under test are written beside it.
        assemble: makes the parts of a bundle with more variants, one of them chosen.
        stage: told what is done.
        tune: makes a bench whose INT8 graphs have learned weights and scales; it has one way of its own.

    Raises:
        AccuracyBudgetError: the budget cannot be kept.
        CalibrationError: the images give no usable ranges.
        RecipeError: the recipe lacks what the mode needs.
    """
    preprocess, precision = recipe.preprocess(), recipe.precision
    split = split_of(recipe)
    stage("calibrate")
    statistics = collect(exact.SerializeToString(), split.calibration, preprocess)
    table = statistics.table()
    stage("search the precision")
    calibration = list(tensors(split.calibration, preprocess))
    bench = Workbench(
        exact,
        table,
        calibration=calibration,
        search=list(tensors(split.search, preprocess)),
        task=recipe.task,
        nms=recipe.nms_spec(),
        batch=recipe.batch,
    )
    reasons = never_quantized(bench.sites(), precision.keep_float)
    bench.fixed_float = frozenset(reasons)
    decider = Decider(bench, reasons, max_drop=budget_of(recipe), rest=precision.rest, judge=None)
    beside = companions(recipe, decider)
    decider.judge = _judge(recipe, out, assemble, stage, split, beside.graphs)
    repairs: str | tuple[str, ...] = precision.repairs
    if tune is not None:
        decider.bench = tune(bench)
        repairs = recipe.qat.repairs if recipe.qat is not None else ()
    if precision.mode == "fp16":
        decision = decider.fp16()
    elif precision.mode == "int8":
        decision = decider.int8(method=precision.method, repairs=repairs, accept_drop=precision.accept_drop)
    else:
        decision = decider.auto(method=precision.method, repairs=repairs)
    take_along(recipe, decision, beside)
    cpu = take_x86(recipe, bench, decision, calibration, decider.judge)
    return Decided(decision, table, beside, cpu)


def evaluation_of(recipe: Recipe) -> EvaluationData | None:
    """The recipe's labelled images with absolute paths."""
    given = recipe.data.evaluation
    if given is None:
        return None
    return EvaluationData(
        images=recipe.resolve(given.images),
        annotations=None if given.annotations is None else recipe.resolve(given.annotations),
        labels=None if given.labels is None else recipe.resolve(given.labels),
        masks=None if given.masks is None else recipe.resolve(given.masks),
        mask_values=given.mask_values,
        metric=given.metric,
        downscale=given.downscale,
    )


def _judge(
    recipe: Recipe,
    out: Path,
    assemble: Callable[[Mapping[str, onnx.ModelProto], str], Parts],
    stage: Stages,
    split: Split,
    beside: Mapping[str, onnx.ModelProto],
) -> Judge | None:
    """Measures graphs as a user would run them: from a bundle, through the model's class.

    With labelled images on those; else in decisions that change on the search images. ``beside`` are graphs
    that are measured once, in the first pass, and told with every answer: what they are compared with.
    """
    kind = TASKS.get(recipe.task)
    if kind is None:
        return None
    data = evaluation_of(recipe)
    known: dict[str, Paired] = {}

    def judge(graphs: Mapping[str, onnx.ModelProto]) -> Mapping[str, Paired]:
        stage("measure on the verdict images" if data is not None else "compare on unlabelled images")
        chosen = next(iter(graphs))
        graphs = {**{name: graph for name, graph in beside.items() if name not in known}, **graphs}
        parts = assemble(graphs, chosen)
        path = out.with_name(f".{out.name}.{secrets.token_hex(4)}.measure")
        try:
            write_bundle(path, parts.manifest({}, stage), parts.members)
            with ExitStack() as open_models:
                reference, *rest = [
                    open_models.enter_context(kind.load(path, backend="cpu", variant=name, threads=1))
                    for name in (FLOAT, *graphs)
                ]
                others = dict(zip(graphs, rest, strict=True))
                if data is not None:
                    found = compare_many(reference, others, data)
                else:
                    found = compare_unlabelled(reference, others, split.search)
            known.update((name, found[name]) for name in beside if name in found)
            return {**known, **found}
        finally:
            path.unlink(missing_ok=True)

    return judge


def figures_of(paired: Paired) -> tuple[dict[str, float], dict[str, float]]:
    """The figures by name of the exact model and of the other, as they stand in the manifest."""
    exact = {name: values[0] for name, values in paired.values.items()}
    other = {name: values[1] for name, values in paired.values.items()}
    other["drop"] = paired.drop
    other["drop_low"], other["drop_high"] = paired.interval
    if paired.flipped is not None:
        other["flipped"] = float(paired.flipped)
    return exact, other


def scales_json(table: ScaleTable) -> bytes:
    """The table as it lies in the bundle."""
    return msgspec.json.encode(table)
