"""``edgesmith convert``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click
import msgspec

from edgesmith.converters.convert import convert as convert_recipe
from edgesmith.converters.options import recipe_options
from edgesmith.converters.outcome import ConvertReport
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.shorthand import is_shorthand, recipe_of
from edgesmith.sdk.cli.output import emit_json
from edgesmith.sdk.errors import (
    AccuracyBudgetError,
    EdgesmithError,
    ExportError,
    MissingExtraError,
    ParityError,
)
from edgesmith.sdk.metrics import loss_unit_of, shown

PACKAGES = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxslim", "safetensors", "onnxruntime", "cv2")
AGREEMENTS = (
    ("top1_agreement", "same class"),
    ("box_agreement", "same boxes"),
    ("pixel_agreement", "same class of pixels"),
)
_REFUSALS = (ParityError, ExportError, AccuracyBudgetError)


@click.command()
@click.argument("recipe", metavar="RECIPE.toml|torchvision:NAME|timm:NAME")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The bundle to write; default: RECIPE.edge or NAME.edge.",
)
@click.option("--fetch", is_flag=True, help="Download a zoo's trained weights once, into the user's cache.")
@click.option(
    "--stages", type=click.Path(path_type=Path), help="Where training stages are kept; default: OUT.stages."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@recipe_options
@click.pass_context
def convert(
    ctx: click.Context, recipe: str, out: Path | None, fetch: bool, stages: Path | None, as_json: bool
) -> None:
    """Turn a trained model into a bundle, proven against PyTorch.

    The recipe says which model, how its input is prepared and on which images it is compared;
    every key of it is an option too, which goes before the file's: `--input.size 416,416`.
    In place of a recipe the name of a model in torchvision or timm will do: the library says how its
    input is prepared and what its classes are called; `--data.calibration FOLDER` gives it real images.
    A refused conversion leaves an existing bundle as it was.
    """
    need_packages("convert")
    overrides: dict[str, Any] = ctx.ensure_object(dict).get("overrides", {})
    read = recipe_of(recipe, overrides, fetch=fetch)
    try:
        report = convert_recipe(read, out or Path(bundle_name(recipe)), stages=stages)
    except _REFUSALS as error:
        if as_json:
            emit_json(_refused(read, error))
        raise
    if as_json:
        emit_json(msgspec.to_builtins(report))
    else:
        click.echo(summary(report))


def bundle_name(recipe: str) -> str:
    """The bundle of a recipe file, or of a zoo's model, in the current folder."""
    if is_shorthand(recipe):
        return f"{recipe.partition(':')[2]}.edge"
    return Path(recipe).with_suffix(".edge").name


def need_packages(command: str) -> None:
    """Say at once which extra a command lacks: its packages are imported late, after the recipe was read.

    Raises:
        MissingExtraError: one of the extra's packages is not installed.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"edgesmith {command} needs the package {package}: pip install 'edgesmith[convert]'",
                extra="convert",
            )


def _refused(recipe: Recipe, error: EdgesmithError) -> dict[str, Any]:
    """The same keys where nothing was written."""
    figures = error.figures if isinstance(error, ParityError) else {}
    report = ConvertReport(
        bundle=None,
        precision=recipe.precision.mode,
        drop=error.drop if isinstance(error, AccuracyBudgetError) else None,
        task=recipe.task,
        refused=str(error),
        parity=figures,
    )
    table: dict[str, Any] = msgspec.to_builtins(report)
    return table


def summary(report: ConvertReport) -> str:
    """The outcome in a few aligned lines, and what to do next."""
    rows = [
        ("bundle", f"{report.bundle}  ({report.size_bytes / 1e6:.2f} MB)"),
        ("task", f"{report.task}, {report.precision}"),
    ]
    if report.metric is not None and report.chosen is not None:
        rows.append((report.metric, f"{shown(report.metric, report.chosen)}{_loss(report)}"))
    if report.int8_macs_share > 0:
        kept = len(report.kept_float)
        rows.append(
            ("INT8", f"{100 * report.int8_macs_share:.1f} % of the arithmetic, {kept} nodes kept wider")
        )
    rows.append(("parity", _parity(report.parity)))
    rows.append(("time", f"{report.seconds:.1f} s"))
    rows.append(("next", f"edgesmith verify {report.bundle}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{click.style(name.ljust(width), dim=True)}  {text}" for name, text in rows)


def _loss(report: ConvertReport) -> str:
    """``, 0.45 points less than float (95 %: 0.00 to 1.14)``; empty for a float32 bundle."""
    if report.precision == "fp32" or report.drop is None or report.interval is None:
        return ""
    low, high = report.interval
    more = "more" if report.drop < 0 else "less"
    interval = f"95 % interval of the loss {low:+.2f} to {high:+.2f}"
    return f", {abs(report.drop):.2f} {loss_unit_of(report.metric)} {more} than float ({interval})"


def _parity(figures: dict[str, float]) -> str:
    """``16 images, box agreement 100.0 % of 109, boxes within 0.042, scores within 1.8e-05``."""
    images = int(figures.get("images", 0))
    parts = [f"{images} images" if images else "seeded pseudo-images"]
    for name, text in AGREEMENTS:
        if name in figures:
            parts.append(f"{text} {100 * figures[name]:.1f} % of {int(figures['decisions'])}")
    parts += [f"{n[: -len('.max_abs')]} within {v:.2g}" for n, v in figures.items() if n.endswith(".max_abs")]
    return ", ".join(parts)
