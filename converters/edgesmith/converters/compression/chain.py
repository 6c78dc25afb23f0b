"""``[prune]`` and ``[distill]`` between loading and exporting a model, ``[qat]`` after its calibration.

Each stage is kept under the hash of what went into it: the model, the settings, the images, the stage
before. A changed stage, and what follows it, runs anew; what stands before it is taken from disk.
"""

from __future__ import annotations

import copy
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from torch import nn

from edgesmith.calibration.images import tensors
from edgesmith.converters.accuracy import measured_bundle
from edgesmith.converters.compression.store import TOLD, Store, key_of
from edgesmith.converters.cost import macs_of, parameters_of
from edgesmith.converters.distill.stage import distill
from edgesmith.converters.graph import canonical_graph, proven
from edgesmith.converters.package import parts_of
from edgesmith.converters.pictures import Pictures
from edgesmith.converters.precision.trial import Workbench
from edgesmith.converters.prune.importance import NEEDS_IMAGES
from edgesmith.converters.prune.stage import channel_step, masks_of, prune
from edgesmith.converters.qat.stage import WEIGHTS as LEARNED
from edgesmith.converters.qat.stage import fine_tuned
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.report.against_float import latency_of
from edgesmith.converters.report.compression import Figures, StageReport
from edgesmith.converters.sources import Loaded
from edgesmith.converters.sources.base import sha256_of
from edgesmith.converters.stages import Stages
from edgesmith.converters.training.images import TrainingImages, training_images
from edgesmith.sdk.errors import RecipeError

log = logging.getLogger(__name__)
SCHEMA = 1  # of what a stage computes: a change of it makes kept stages void
TRAINED, PRUNE, DISTILL, QAT = "trained", "prune", "distill", "qat"


def has_stages(recipe: Recipe) -> bool:
    """Whether the recipe has a training stage."""
    return recipe.prune is not None or recipe.distill is not None or recipe.qat is not None


class Chain:
    """Runs the stages.

    Args:
        recipe: with ``[prune]`` or ``[distill]``.
        source: the model as it was brought.
        pictures: images for proofs.
        folder: where stages are kept.
        stage: told what is done.
        measure: whether figures are taken after each stage.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Loaded,
        pictures: Pictures,
        folder: Path,
        stage: Stages,
        *,
        measure: bool = True,
    ) -> None:
        if source.module is None or source.kind not in ("factory", "zoo"):
            key = next(name for name in (PRUNE, DISTILL, QAT) if getattr(recipe, name) is not None)
            raise RecipeError(
                f"recipe: {key}: a {source.kind} model is fixed: a training stage needs the module, from "
                "model.factory or model.zoo",
                key=key,
            )
        self.recipe, self.source, self.pictures = recipe, source, pictures
        self.store, self.stage, self.measure = Store(folder), stage, measure
        self.original = copy.deepcopy(source.module)
        self.example = torch.from_numpy(next(tensors(pictures.frames[:1], recipe.preprocess())))
        self._data: TrainingImages | None = None
        self._evaluated = ""
        self.reports: list[StageReport] = []

    def run(self, last: str = DISTILL) -> Loaded:
        """The model after the recipe's stages, up to ``last``; what each came to is in :attr:`reports`.

        Raises:
            RecipeError: a stage cannot do what is asked.
            DataError: images or kept stages cannot be read.
        """
        self.key = key = key_of(
            SCHEMA,
            self.source.kind,
            self.source.name,
            self.source.sha256,
            str(self.original),
            self.recipe.task,
            self.recipe.model.head,
            self.recipe.model.head_options,
            self.recipe.preprocess(),
        )
        source = self.source
        if self.measure:
            self._report(source, key, StageReport(name=TRAINED, note="as brought", figures=None, seconds=0.0))
        if self.recipe.prune is not None:
            key, source = self._one(PRUNE, key, source, self._prune)
        if self.recipe.distill is not None and last == DISTILL:
            key, source = self._one(DISTILL, key, source, self._distill)
        self.key = key
        return source

    def tune(self, network: nn.Module, bench: Workbench) -> Workbench:
        """The stage ``[qat]``: a bench whose INT8 graphs have learned weights and scales.

        Args:
            network: the module that :meth:`run` gave.
            bench: float graph, ranges, layers that stay in float.
        """
        given, began = self.recipe.qat, time.monotonic()
        assert given is not None
        key = key_of(
            self.key, QAT, given, self.recipe.data.seed, self.recipe.precision.method, bench.table,
            sorted(bench.fixed_float), self.data.fingerprint(),
        )  # fmt: skip
        place = self.store.place(QAT, key)
        kept = (place / LEARNED).exists()
        self.stage("quantization-aware training")
        found = fine_tuned(self.recipe, network, bench, self.data, self.example, place, key, self.stage.say)
        curves = found.curves
        note = (
            f"from the float model, {curves.images} images, best of {len(curves.epochs)} epochs: "
            f"{curves.best + 1}, scales {given.scales}"
        )
        told = StageReport(
            name=QAT,
            note=note,
            figures=None,
            seconds=time.monotonic() - began,
            cached=kept,
            curves=(curves,),
        )
        self.reports.append(told)
        return found

    def _one(
        self,
        name: str,
        before: str,
        source: Loaded,
        run: Callable[[nn.Module, Path, str], tuple[nn.Module, StageReport]],
    ) -> tuple[str, Loaded]:
        """Run a stage, or take it from disk."""
        assert source.module is not None
        key = self._key(name, before)
        place = self.store.place(name, key)
        network = self.store.load(place, source.module, self.example)
        if network is None:
            self.stage(name)
            began = time.monotonic()
            network, told = run(source.module, place, key)
            told = msgspec.structs.replace(told, seconds=time.monotonic() - began)
            if _first_process():
                self.store.save(place, network, self.example, told)
        else:
            log.info("%s: taken from %s", name, place)
            told = msgspec.json.decode((place / TOLD).read_bytes(), type=StageReport)
            told = msgspec.structs.replace(told, cached=True)
            network.eval().requires_grad_(False)
        note = f"{name}: {told.note}"
        after = replace(source, name=source.name, module=network, notes=(*source.notes, note))
        self._report(after, key, told)
        return key, after

    def _key(self, name: str, before: str) -> str:
        """The hash of all that a stage depends on."""
        recipe = self.recipe
        table = recipe.prune if name == PRUNE else recipe.distill
        parts = [before, name, table, recipe.data.seed]
        if name == PRUNE:
            assert recipe.prune is not None
            parts.append(channel_step(recipe))
            if recipe.prune.target == "estimate":
                parts += [recipe.target.device, recipe.precision.mode]
        elif recipe.distill is not None and recipe.distill.teacher is not None:
            teacher = recipe.distill.teacher
            files = [teacher.program, teacher.bundle, teacher.weights]
            parts += [sha256_of(recipe.resolve(file)) for file in files if file is not None]
        if self._needs_images(name):
            parts.append(self.data.fingerprint())
        return key_of(*parts)

    def _needs_images(self, name: str) -> bool:
        given = self.recipe.prune
        if name == DISTILL or given is None:
            return True
        return given.train is not None or (given.keep < 1 and given.importance in NEEDS_IMAGES)

    @property
    def data(self) -> TrainingImages:
        """The training images, read once."""
        if self._data is None:
            self._data = training_images(self.recipe)
        return self._data

    def _prune(self, network: nn.Module, place: Path, key: str) -> tuple[nn.Module, StageReport]:
        found = prune(
            self.recipe,
            network,
            self.data if self._needs_images(PRUNE) else None,
            self.example,
            folder=place,
            key=key,
            tell=self.stage.say,
        )
        told = StageReport(
            name=PRUNE,
            note=found.note,
            figures=None,
            seconds=0.0,
            curves=tuple(found.curves),
            widths=found.widths,
            whole=found.whole,
            sparse=found.sparse,
        )
        return found.network, told

    def _distill(self, network: nn.Module, place: Path, key: str) -> tuple[nn.Module, StageReport]:
        student = copy.deepcopy(network)
        curves = distill(
            self.recipe,
            student,
            self.original,
            self.data,
            self.example,
            folder=place,
            key=key,
            tell=self.stage.say,
            masks=masks_of(self.recipe, student),
        )
        given = self.recipe.distill
        assert given is not None
        teacher = "the model as it was brought" if given.teacher is None else _teacher_name(given.teacher)
        note = (
            f"from {teacher}, {curves.images} images, best of {len(curves.epochs)} epochs: {curves.best + 1}"
        )
        return student, StageReport(name=DISTILL, note=note, figures=None, seconds=0.0, curves=(curves,))

    def _report(self, source: Loaded, key: str, told: StageReport) -> None:
        """Add a stage to the report, with its figures."""
        figures = self._figures(source, told.name, key) if self.measure and _first_process() else None
        self.reports.append(msgspec.structs.replace(told, figures=figures))

    def _figures(self, source: Loaded, name: str, key: str) -> Figures:
        """Accuracy and cost of a network, from disk where the same images measured it already."""
        path = self.store.place(name, key) / f"figures-{self._evaluation()[:16]}.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Figures)
        assert source.module is not None
        self.stage(f"measure: {name}")
        recipe = self.recipe
        graph = canonical_graph(recipe, source, self.pictures)
        proof = proven(recipe, graph, self.pictures)
        metric = value = None
        if recipe.data.evaluation is not None:
            parts = parts_of(recipe, source, graph, proof, self.pictures)
            beside = path.with_name(f"{secrets.token_hex(4)}.edge")
            found = measured_bundle(recipe, beside, parts.manifest({}, self.stage), parts.members)
            metric, value = found.metric, found.value
        figures = Figures(
            metric=metric,
            accuracy=value,
            macs=macs_of(source.module, self.example),
            parameters=parameters_of(source.module),
            latency_ms=latency_of(proof.model, recipe.batch.min),
            size_bytes=len(proof.model.SerializeToString()),
        )
        path.write_bytes(msgspec.json.encode(figures))
        return figures

    def _evaluation(self) -> str:
        """The hash of the evaluation images and labels."""
        if not self._evaluated:
            given = self.recipe.data.evaluation
            parts: list[object] = [given, self.recipe.nms_spec(), self.recipe.batch]
            if given is not None:
                from edgesmith.calibration.images import Images

                parts.append(Images.open(self.recipe.resolve(given.images)).fingerprint())
                files = (given.annotations, given.labels)
                parts += [sha256_of(self.recipe.resolve(file)) for file in files if file is not None]
            self._evaluated = key_of(*parts)
        return self._evaluated


def _teacher_name(teacher: msgspec.Struct) -> str:
    given = [getattr(teacher, name) for name in ("factory", "program", "zoo", "bundle")]
    return next(str(name) for name in given if name is not None)


def _first_process() -> bool:
    """Whether this is the process that writes, where there are several."""
    return os.environ.get("RANK", "0") == "0"
