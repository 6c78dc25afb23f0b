"""``edgesmith prune``, and what it shares with ``edgesmith distill``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgesmith.converters.cli import need_packages
from edgesmith.converters.options import recipe_options
from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.cli.output import emit_json, table
from edgesmith.sdk.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from edgesmith.converters.report.compression import StageReport

SHOWN = 12  # layers of each table


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.toml")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path),
    help="The network: a program (.pt2) or weights (.safetensors); default: RECIPE.pruned.pt2.",
)  # fmt: skip
@click.option(
    "--stages", type=click.Path(path_type=Path), help="Where stages are kept; default: RECIPE.stages."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@recipe_options
@click.pass_context
def prune(ctx: click.Context, recipe: Path, out: Path | None, stages: Path | None, as_json: bool) -> None:
    """Take channels out of a trained network, and tune what is left, by [prune] of RECIPE.

    `edgesmith convert` of the same recipe goes on from here: it finds the stage in the folder --stages.
    JSON: out, stages (name, note, figures, widths, whole, sparse, curves, seconds, cached), seconds.
    """
    run(ctx, "prune", recipe, out or Path(f"{recipe.stem}.pruned.pt2"), stages, as_json)


def run(ctx: click.Context, name: str, path: Path, out: Path, stages: Path | None, as_json: bool) -> None:
    """Run the stages of a recipe up to one of them, write the network, tell what came of it."""
    need_packages(name)
    _need_training(name)
    overrides: dict[str, Any] = ctx.ensure_object(dict).get("overrides", {})
    read = Recipe.from_toml(path, overrides).checked()
    if getattr(read, name) is None:
        raise RecipeError(f"{path}: {name}: the recipe has no table [{name}]; an empty one will do", key=name)
    started = time.monotonic()

    from edgesmith.converters.compression.chain import Chain
    from edgesmith.converters.compression.output import check_output, write_network
    from edgesmith.converters.pictures import pictures_of
    from edgesmith.converters.sources import load_source
    from edgesmith.converters.stages import Stages
    from edgesmith.converters.training.loop import leave

    check_output(out)
    with Stages() as stage:
        stage("load the trained model")
        source = load_source(read)
        stage("read images")
        folder = stages or Path(path.with_suffix(".stages").name)
        chain = Chain(read, source, pictures_of(read), folder, stage)
        found = chain.run(last=name)
        first = os.environ.get("RANK", "0") == "0"
        if first:
            stage("write the network")
            assert found.module is not None
            write_network(out, found.module, chain.example)
    leave()
    if not first:
        return
    seconds = time.monotonic() - started
    if as_json:
        told = {"out": str(out), "stages": msgspec.to_builtins(chain.reports), "seconds": seconds}
        emit_json(told)
    else:
        show(chain.reports)
        click.echo(f"\n{out}: written, {seconds:.0f} s; next: edgesmith convert {path}")


def _need_training(name: str) -> None:
    """Say at once which package a training stage lacks.

    Raises:
        MissingExtraError: one is not installed.
    """
    import importlib.util

    for package in ("torch_pruning", "lightning_fabric"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"edgesmith {name} needs the package {package}: pip install 'edgesmith[convert]'",
                extra="convert",
            )


def show(reports: list[StageReport]) -> None:
    """The stages with their figures, and what happened to which layer."""
    columns = ("stage", "accuracy", "MACs", "parameters", "latency", "size", "")
    table("Stages", columns, [_row(report) for report in reports], right=columns[1:6])
    for report in reports:
        if report.widths:
            changed = [w for w in report.widths if w.after != w.before]
            rows = [(w.layer, w.before, w.after) for w in changed[:SHOWN]]
            more = f" ({len(changed) - SHOWN} more: --json)" if len(changed) > SHOWN else ""
            click.echo()
            table(f"Channels{more}", ("layer", "before", "after"), rows)
        if report.whole:
            rows_whole = [(w.layer, w.channels, w.why) for w in report.whole[:SHOWN]]
            click.echo()
            table("Kept whole", ("layer", "channels", "why"), rows_whole)


def _row(report: StageReport) -> tuple[str, str, str, str, str, str, str]:
    figures = report.figures
    note = f"{report.note}{' (from an earlier run)' if report.cached else ''}"
    if figures is None:
        return (report.name, "", "", "", "", "", note)
    accuracy = "" if figures.accuracy is None else f"{figures.accuracy:.2f} {figures.metric}"
    return (
        report.name,
        accuracy,
        f"{figures.macs / 1e6:.1f} M",
        f"{figures.parameters / 1e6:.3f} M",
        f"{figures.latency_ms:.2f} ms",
        f"{figures.size_bytes / 1e6:.2f} MB",
        note,
    )
