"""``edgesmith distill``."""

from __future__ import annotations

from pathlib import Path

import click

from edgesmith.converters.cli_prune import run
from edgesmith.converters.options import recipe_options


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.toml")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path),
    help="The network: a program (.pt2) or weights (.safetensors); default: RECIPE.distilled.pt2.",
)  # fmt: skip
@click.option(
    "--stages", type=click.Path(path_type=Path), help="Where stages are kept; default: RECIPE.stages."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@recipe_options
@click.pass_context
def distill(ctx: click.Context, recipe: Path, out: Path | None, stages: Path | None, as_json: bool) -> None:
    """Train a network beside a teacher, by [distill] of RECIPE; pruned before, where it has [prune].

    A run that was killed goes on from its last checkpoint. Several processes train together by the
    launcher of torch: `torchrun --nproc-per-node 2 -m edgesmith.sdk.cli distill RECIPE.toml`.
    JSON: out, stages (name, note, figures, widths, whole, sparse, curves, seconds, cached), seconds.
    """
    run(ctx, "distill", recipe, out or Path(f"{recipe.stem}.distilled.pt2"), stages, as_json)
