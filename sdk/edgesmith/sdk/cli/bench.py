"""``edgesmith bench``: latency, throughput and memory on this machine."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.board.memory import resident_bytes
from edgesmith.sdk.cameras import open_camera
from edgesmith.sdk.cli.output import emit_json, table
from edgesmith.sdk.errors import CameraError
from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.percentiles import percentiles
from edgesmith.sdk.selftest import golden_pictures

_MOST_FRAMES = 64  # of a source, held in memory so that decoding is not timed


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--source", help="Frames to use (video, picture or folder); default: the bundle's golden pictures."
)
@click.option("--iterations", type=click.IntRange(min=1), default=200, show_default=True, help="Timed calls.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=20, show_default=True, help="Calls before them."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Frames in a call.")
@click.option("--backend", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--variant", help="A graph of the bundle by name, in place of the chosen one.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    bundle: Path,
    source: str | None,
    iterations: int,
    warmup: int,
    batch: int,
    backend: str,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Time BUNDLE from frames in memory to results: percentiles in ms, frames a second, memory."""
    with load_model(bundle, backend=backend, variant=variant, threads=threads) as model:
        frames = _frames(model, source)
        figures = measure(model, frames, iterations=iterations, warmup=warmup, batch=batch)
    if as_json:
        emit_json(figures)
        return 0
    rows: list[tuple[object, ...]] = []
    for name, times in {**figures["stages_ms"], "whole call": figures["latency_ms"]}.items():
        rows.append((name, times["p50"], times["p90"], times["p99"]))
    title = f"{bundle}: variant {figures['variant']} on {model.backend.detail}, batch {batch}, ms"
    table(title, ("stage", "p50", "p90", "p99"), rows)
    memory = figures["rss_bytes"] / 2**20
    click.echo(f"{figures['throughput']:.1f} frames/s, {memory:.0f} MiB resident")
    return 0


def measure(
    model: Model[Any], frames: list[NDArray[np.uint8]], *, iterations: int, warmup: int, batch: int
) -> dict[str, Any]:
    """The keys of ``bench --json``: times in ms, ``throughput`` in frames a second."""
    supply = itertools.cycle(frames)
    call: Any = model
    whole: list[float] = []
    stages: dict[str, list[float]] = {}
    for number in range(warmup + iterations):
        part = [next(supply) for _ in range(batch)]
        started = time.monotonic_ns()
        call(part if batch > 1 else part[0])
        spent = (time.monotonic_ns() - started) / 1e6
        if number >= warmup:
            whole.append(spent)
            for stage, ns in model.timings.items():
                stages.setdefault(stage, []).append(ns / 1e6)
    return {
        "backend": model.backend.name,
        "variant": model.backend.variant,
        "latency_ms": percentiles(whole),
        "stages_ms": {name: percentiles(times) for name, times in stages.items()},
        "throughput": 1e3 * batch * len(whole) / sum(whole),
        "rss_bytes": resident_bytes(),
        "batch": batch,
        "iterations": iterations,
    }


def _frames(model: Model[Any], source: str | None) -> list[NDArray[np.uint8]]:
    if source is None:
        return golden_pictures(model.bundle)
    camera = open_camera(source)
    try:
        frames = [frame.image for frame in itertools.islice(camera.frames(), _MOST_FRAMES)]
    finally:
        camera.close()
    if not frames:
        raise CameraError(f"{source}: no frame could be read")
    return frames
