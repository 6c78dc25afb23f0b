"""A recipe to a bundle: the stages, in order."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.converters.outcome import ConvertReport
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.stages import Stages
from edgesmith.sdk.errors import BundleError, DeviceProfileError, RecipeError

if TYPE_CHECKING:
    from edgesmith.converters.precision.trial import Workbench
    from edgesmith.converters.report.compression import StageReport
    from edgesmith.sdk.evaluate import Evaluation
    from edgesmith.sdk.manifest import Manifest

log = logging.getLogger(__name__)


def convert(
    recipe: Recipe, out: str | os.PathLike[str], *, stages: str | os.PathLike[str] | None = None
) -> ConvertReport:
    """Turn a trained model into a bundle, proven against PyTorch.

    The file is written in one step at the end: a refused conversion leaves what was there.

    Args:
        recipe: what is asked.
        out: the ``.edge`` file to make or to replace.
        stages: folder where finished training stages are kept and found again; default: ``OUT.stages``.

    Raises:
        RecipeError: the recipe cannot be used, or asks for what this version does not do.
        DeviceProfileError: there is no such device.
        SourceError: the model cannot be loaded.
        ExportError: the model cannot be expressed in ONNX.
        ParityError: a step changed the answers.
        DataError: the images or labels cannot be read.
        BundleError: the file cannot be written.
    """
    recipe = recipe.checked()
    out = Path(out)
    refuse_reserved(recipe)
    _check_target(recipe, out)

    # Imported once the recipe is sound: torch takes seconds that a typing error should not cost.
    from edgesmith.converters.accuracy import measured_bundle
    from edgesmith.converters.compiled import compiled_graphs
    from edgesmith.converters.graph import canonical_graph, proven
    from edgesmith.converters.package import FLOAT, parts_of
    from edgesmith.converters.pictures import pictures_of
    from edgesmith.converters.report.compression import compression_of
    from edgesmith.converters.sources import load_source
    from edgesmith.sdk.bundle import write_bundle

    told: list[StageReport] = []
    tune: Callable[[Workbench], Workbench] | None = None
    with Stages() as stage:
        stage("load the trained model")
        source = load_source(recipe)
        stage("read images")
        pictures = pictures_of(recipe)
        if recipe.prune is not None or recipe.distill is not None or recipe.qat is not None:
            from edgesmith.converters.compression.chain import Chain

            chain = Chain(recipe, source, pictures, Path(stages or out.with_suffix(".stages")), stage)
            source, told = chain.run(), chain.reports
            if recipe.qat is not None and source.module is not None:
                tune = partial(chain.tune, source.module)
        stage("export")
        graph = canonical_graph(recipe, source, pictures)
        stage("simplify and compare with PyTorch" if source.module is not None else "simplify and compare")
        proof = proven(recipe, graph, pictures)
        if recipe.precision.mode != "fp32":
            from edgesmith.converters.precision.convert import convert_quantized

            return convert_quantized(recipe, out, source, graph, proof, pictures, stage, told, tune)
        stage("record the self-test")
        parts = parts_of(recipe, source, graph, proof, pictures, compression=compression_of(told))
        measured = None
        if recipe.data.evaluation is not None:
            stage("measure accuracy")
            temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.measure")
            measured = measured_bundle(recipe, temporary, parts.manifest({}, stage), parts.members)
        stage("compile")
        compiled = compiled_graphs({FLOAT: proof.model}, batch=recipe.batch, size=recipe.preprocess().size)
        stage("write the bundle")
        manifest = parts.manifest(measured.values if measured else {}, stage)
        write_bundle(out, manifest, {**parts.members, **parts.report(manifest, measured, stage, compiled)})
    return _told(out, recipe, manifest, measured, stage, told)


def _told(
    out: Path,
    recipe: Recipe,
    manifest: Manifest,
    measured: Evaluation | None,
    stage: Stages,
    told: list[StageReport],
) -> ConvertReport:
    """What came of a conversion in float32."""
    return ConvertReport(
        bundle=str(out),
        precision=manifest.precision,
        metric=measured.metric if measured else None,
        float=measured.value if measured else None,
        chosen=measured.value if measured else None,
        drop=0.0 if measured else None,
        interval=(0.0, 0.0) if measured else None,
        evaluations=1 if measured else 0,
        seconds=stage.total,
        task=recipe.task,
        size_bytes=out.stat().st_size,
        parity=manifest.parity,
        stages=tuple(told),
    )


def refuse_reserved(recipe: Recipe) -> None:
    """Refuse what the recipe may ask for and this version does not do, and what a mode lacks.

    Raises:
        RecipeError: names the entry.
    """
    if recipe.precision.mode != "fp32" and recipe.data.calibration is None:
        raise RecipeError(
            f'recipe: data.calibration: precision.mode "{recipe.precision.mode}" needs images like those '
            "that the robot will see: a folder, list file, glob or .npz",
            key="data.calibration",
        )
    if recipe.qat is not None and recipe.precision.mode not in ("auto", "int8"):
        raise RecipeError(
            f'recipe: qat: trains under INT8\'s rounding; precision.mode is "{recipe.precision.mode}": use '
            '"auto" or "int8", or take the table out',
            key="qat",
        )
    if recipe.target.dla is not None and recipe.precision.mode not in ("auto", "int8"):
        raise RecipeError(
            f'recipe: target.dla: a DLA core runs INT8; precision.mode is "{recipe.precision.mode}": use '
            '"auto" or "int8", or take the key out',
            key="target.dla",
        )


def _check_target(recipe: Recipe, out: Path) -> None:
    """The device and the place of the bundle, before any work is done."""
    from edgesmith.sdk.board.profiles import profile

    device = profile(recipe.target.device)
    if device.unsupported is not None:
        raise DeviceProfileError(f"{device.title} cannot run a bundle on TensorRT: {device.unsupported}")
    if recipe.target.dla is not None:
        from edgesmith.converters.precision.dla import tensorrt_for_dla

        tensorrt_for_dla(recipe, device)
    if not out.parent.is_dir():
        raise BundleError(f"{out}: there is no folder {out.parent} to write the bundle into")
    if out.is_dir():
        raise BundleError(f"{out}: is a folder; give the bundle's file name, as {out / 'model.edge'}")
