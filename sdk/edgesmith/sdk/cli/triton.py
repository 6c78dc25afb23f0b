"""``edgesmith triton``: a model repository for NVIDIA's server."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edgesmith.sdk.cli.output import emit_json, table
from edgesmith.sdk.triton import Device, write_repository


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The repository's folder.")
@click.option("--name", help="Of the model; the bundle's own unless given.")
@click.option(
    "--device",
    type=click.Choice(["auto", "gpu", "cpu"]),
    default="auto",
    show_default=True,
    help="Where it runs.",
)
@click.option("--instances", default=1, show_default=True, type=click.IntRange(1), help="On each device.")
@click.option(
    "--wait-ms",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Longest wait for others to share a batch.",
)
@click.option("--engine-cache", metavar="FOLDER", help="On Triton's machine: keep TensorRT's engines there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def triton(
    bundle: Path,
    out: Path,
    name: str | None,
    device: Device,
    instances: int,
    wait_ms: float,
    engine_cache: str | None,
    as_json: bool,
) -> int:
    """Write BUNDLE's graph and its configuration into a model repository of Triton.

    auto runs on the GPU under TensorRT, and on the CPU where there is none; a bundle with a graph of its own
    for the CPU gives NAME_cpu beside NAME. A graph that differs from the newest version becomes the next one.

    The key of --json: models (list of name, version, variant, kind, config).
    """
    made = write_repository(
        bundle,
        out,
        name=name,
        device=device,
        instances=instances,
        wait_ms=wait_ms,
        engine_cache=engine_cache,
    )
    if as_json:
        emit_json({"models": msgspec.to_builtins(made)})
    else:
        rows = [(m.name, m.version, m.variant, m.kind, m.config) for m in made]
        table(str(out), ("model", "version", "variant", "instances", "configuration"), rows)
    return 0
