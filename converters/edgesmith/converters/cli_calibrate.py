"""``edgesmith calibrate``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.progress import Progress

from edgesmith.converters.cli import need_packages
from edgesmith.converters.convert import refuse_reserved
from edgesmith.converters.options import recipe_options
from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.cli.output import console, emit_json, progress, table
from edgesmith.sdk.errors import CalibrationError, RecipeError

if TYPE_CHECKING:
    import onnx

    from edgesmith.calibration.scale_table import ScaleTable
    from edgesmith.converters.precision.search import Sensitivity
    from edgesmith.converters.precision.stage import Split

SHOWN = 10  # rows of each table


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.toml")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The table, as JSON.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="What is kept while it runs; default: OUT.state."
)
@click.option("--sensitivity", is_flag=True, help="Rank the layers by what their quantization costs.")
@click.option(
    "--pick", type=click.IntRange(min=4), metavar="N",
    help="Calibrate on N images of --from that cover what is in it; the list is written beside OUT.",
)  # fmt: skip
@click.option(
    "--from", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="FOLDER",
    help="Folder to pick from.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@recipe_options
@click.pass_context
def calibrate(
    ctx: click.Context,
    recipe: Path,
    out: Path,
    state: Path | None,
    sensitivity: bool,
    pick: int | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure the range of every tensor that a quantizable layer reads, for all methods in one pass.

    The images are those that a conversion by RECIPE would calibrate on. After a kill the same command goes
    on where it was. --sensitivity takes a float pass over the search images for each layer.
    """
    if (pick is None) != (folder is None):
        raise click.UsageError("--pick N and --from FOLDER go together")
    need_packages("calibrate")
    overrides: dict[str, Any] = ctx.ensure_object(dict).get("overrides", {})
    started = time.monotonic()
    _check_folder(out)
    picked = None
    if pick is not None and folder is not None:
        picked = out.with_suffix(".txt")
        overrides = {**overrides, "data.calibration": str(picked.resolve())}
        _pick(folder, pick, picked)
    read = Recipe.from_toml(recipe, overrides).checked()
    if read.data.calibration is None:
        raise RecipeError(
            "recipe: data.calibration: name images like those that the robot will see: a folder, list file, "
            "glob or .npz; or pick some: --pick 200 --from FOLDER",
            key="data.calibration",
        )
    refuse_reserved(read)
    for key in ("prune", "distill"):
        if getattr(read, key) is not None:
            raise RecipeError(
                f"recipe: {key}: calibrate measures the model as it was brought, not after training stages; "
                "the bundle of `edgesmith convert` holds their ranges (scales.json)",
                key=key,
            )
    from edgesmith.converters.precision.stage import split_of

    split = split_of(read)
    exact = _graph(read)
    found, resumed = _collected(exact, split, read, out, state or out.with_name(f"{out.name}.state"))
    ranked = _ranked(read, exact, found, split) if sensitivity else None
    seconds = time.monotonic() - started
    if as_json:
        told: dict[str, Any] = {
            "table": str(out), "images": found.images, "tensors": len(found.activations),
            "seconds": seconds, "resumed": resumed, "warnings": found.warnings,
        }  # fmt: skip
        if picked is not None:
            told["picked"] = str(picked)
        if ranked is not None:
            told["sensitivity"] = [{"node": s.node, "module": s.module, "loss": s.loss} for s in ranked]
        emit_json(msgspec.to_builtins(told))
        return
    held = f" ({len(split.search)} more held back for the search)" if read.data.search is None else ""
    resumption = ", resumed" if resumed else ""
    click.echo(
        f"{out}: {found.images} images{held}, {len(found.activations)} tensors, {seconds:.1f} s{resumption}"
    )
    from edgesmith.converters.precision.trial import POINTS

    _show(found, ranked, "points of agreement" if read.task in POINTS else "dB")


def _check_folder(out: Path) -> None:
    if not out.parent.is_dir():
        raise CalibrationError(f"{out}: there is no folder {out.parent} to write the table into")
    if out.is_dir():
        raise CalibrationError(f"{out}: is a folder; give the table's file name, as {out / 'scales.json'}")
    _refuse_other(out, None)


def _refuse_other(out: Path, model_sha256: str | None) -> None:
    """Only a table is replaced, and only that of the same model."""
    from edgesmith.calibration.scale_table import ScaleTable

    if not out.exists():
        return
    try:
        table = ScaleTable.load(out)
        if model_sha256 is not None:
            table.check_model(model_sha256)
    except CalibrationError as error:
        told = str(error).removeprefix(f"{out}: ")
        raise CalibrationError(f"{out} is not replaced: {told}; or give -o another name") from error


def _pick(folder: Path, count: int, path: Path) -> None:
    """Choose images, and write their list."""
    from edgesmith.calibration.images import Images
    from edgesmith.calibration.pick import pick, write_list

    if path.exists():
        _refuse_foreign(path, folder)
    with progress("images") as bar, _task(bar, "describing images") as tell:
        picked = pick(Images.open(folder), count, progress=tell)
    for line in picked.left_out:
        console.print(f"left out: {line}", style="yellow", markup=False)
    write_list(path, folder, picked.names)


def _refuse_foreign(path: Path, folder: Path) -> None:
    """A text file beside the table is replaced only where it is a list of pictures itself."""
    from edgesmith.calibration.images import Images
    from edgesmith.sdk.errors import DataError

    try:
        Images.open(path)
    except DataError as error:
        raise CalibrationError(
            f"{path}: the list of pictures picked from {folder} would go there, but it is another file: "
            "move it, or give the table another name"
        ) from error


def _graph(recipe: Recipe) -> onnx.ModelProto:
    """The float graph that a conversion would quantize, proven like there."""
    from edgesmith.converters.graph import canonical_graph, proven
    from edgesmith.converters.pictures import pictures_of
    from edgesmith.converters.sources import load_source
    from edgesmith.converters.stages import Stages

    with Stages() as stage:
        stage("load the trained model")
        source = load_source(recipe)
        stage("export")
        pictures = pictures_of(recipe)
        graph = canonical_graph(recipe, source, pictures)
        stage("simplify and compare")
        return proven(recipe, graph, pictures).model


def _collected(
    exact: onnx.ModelProto, split: Split, recipe: Recipe, out: Path, state: Path
) -> tuple[ScaleTable, bool]:
    """Calibrate, from where an interrupted pass was; the table, and whether there was one."""
    import hashlib

    from edgesmith.calibration.collect import Statistics, collect

    graph = exact.SerializeToString()
    _refuse_other(out, hashlib.sha256(graph).hexdigest())
    before = Statistics.load(state).done if state.exists() else 0
    if before:
        console.print(f"going on after image {before} of {len(split.calibration)}", markup=False)
    with progress("images") as bar, _task(bar, "calibrating") as tell:
        found = collect(graph, split.calibration, recipe.preprocess(), state=state, progress=tell).table()
    found.save(out)
    state.unlink(missing_ok=True)
    return found, before > 0


def _ranked(recipe: Recipe, exact: onnx.ModelProto, found: ScaleTable, split: Split) -> list[Sensitivity]:
    """Every quantizable layer by what its quantization costs, the most first."""
    from edgesmith.calibration.images import tensors
    from edgesmith.converters.precision.decide import never_quantized
    from edgesmith.converters.precision.search import first_way, rank_sensitivity
    from edgesmith.converters.precision.trial import Workbench

    preprocess, precision = recipe.preprocess(), recipe.precision
    bench = Workbench(
        exact,
        found,
        calibration=list(tensors(split.calibration, preprocess)),
        search=list(tensors(split.search, preprocess)),
        task=recipe.task,
        nms=recipe.nms_spec(),
        batch=recipe.batch,
    )
    bench.fixed_float = frozenset(never_quantized(bench.sites(), precision.keep_float))
    trial = bench.try_way(first_way(method=precision.method, repairs=precision.repairs))
    with progress("layers") as bar, _task(bar, "ranking layers") as tell:
        return rank_sensitivity(bench, trial, told=tell)


@contextmanager
def _task(bar: Progress, what: str) -> Iterator[Callable[[int, int], None]]:
    """A line of the progress display, moved on by calls with the done and all."""
    task, started = bar.add_task(what, total=None, rate=0.0), time.monotonic()
    calls = 0  # an interrupted pass begins in the middle

    def tell(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        rate = calls / max(time.monotonic() - started, 1e-9)
        bar.update(task, completed=done, total=total, rate=rate)

    yield tell


def _show(found: ScaleTable, ranked: list[Sensitivity] | None, unit: str) -> None:
    """The tensors and layers that a person should look at."""
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    methods = ("auto", "mse", "entropy", "percentile", "minmax")
    clipped = [item for item in found.activations.items() if max(item[1].clipped.values()) > 0]
    most = sorted(clipped, key=lambda item: -max(item[1].clipped.values()))
    rows = [
        (name, f"{a.low:.4g}", f"{a.high:.4g}", *(f"{100 * a.clipped[m]:.4f}" for m in methods))
        for name, a in most[:SHOWN]
    ]
    columns = ("tensor", "low", "high", *methods)
    if not rows:
        click.echo("No method clips any tensor.")
    else:
        table("Tensors that saturate most: % of the values clipped", columns, rows, right=columns[1:])
    if ranked is not None:
        rows = [(s.node, s.module or "", f"{s.loss:.3f}") for s in ranked[:SHOWN]]
        table(f"Layers that cost most: {unit}", ("layer", "module", "loss"), rows, right=("loss",))
