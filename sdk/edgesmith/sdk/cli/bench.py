"""``edgesmith bench``: latency, throughput and memory on this machine."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.board.memory import resident_bytes
from edgesmith.sdk.board.sensors import Board, Throttling
from edgesmith.sdk.cameras import open_camera
from edgesmith.sdk.cli.output import emit_json, table
from edgesmith.sdk.errors import CameraError
from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.percentiles import percentiles
from edgesmith.sdk.selftest import golden_pictures

_MOST_FRAMES = 64  # of a source, held in memory so that decoding is not timed
_LOOK_S = 0.1  # between two looks at the board


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--source", help="Frames to use (video, picture or folder); default: the bundle's golden pictures."
)
@click.option("--iterations", type=click.IntRange(min=1), default=200, show_default=True, help="Timed calls.")
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Time for so long, in place of --iterations.")
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
    seconds: float | None,
    warmup: int,
    batch: int,
    backend: str,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Time BUNDLE from frames in memory to results: percentiles in ms, frames a second, memory.

    \b
    Keys of --json: backend, variant, latency_ms, stages_ms, throughput, rss_bytes, batch, iterations,
    rates (frames a second in each tenth of the calls), and of a Jetson, null elsewhere:
    joules (of the whole module, for one frame), throttled, power_mode.
    """
    with load_model(bundle, backend=backend, variant=variant, threads=threads) as model:
        frames = _frames(model, source)
        figures = measure(model, frames, iterations=iterations, seconds=seconds, warmup=warmup, batch=batch)
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
    rates = figures["rates"]
    click.echo(f"first tenth {rates[0]:.1f} frames/s, last tenth {rates[-1]:.1f}")
    if figures["joules"] is not None:
        click.echo(f"{figures['joules']:.3f} J a frame, power mode {figures['power_mode'] or 'unknown'}")
    if figures["throttled"]:
        click.echo("THROTTLED: the GPU ran below the clock of its power mode; cool it, and run again")
    return 0


def measure(
    model: Model[Any],
    frames: list[NDArray[np.uint8]],
    *,
    iterations: int,
    warmup: int,
    batch: int,
    seconds: float | None = None,
    board: Board | None = None,
) -> dict[str, Any]:
    """The keys of ``bench --json``: times in ms, ``throughput`` and ``rates`` in frames a second.

    ``seconds`` takes the place of ``iterations``; ``board`` is this machine's without one.
    """
    supply = itertools.cycle(frames)
    call: Any = model
    whole: list[float] = []
    stages: dict[str, list[float]] = {}

    def once() -> float:
        part = [next(supply) for _ in range(batch)]
        started = time.monotonic_ns()
        call(part if batch > 1 else part[0])
        return (time.monotonic_ns() - started) / 1e6

    for _ in range(warmup):
        once()
    board = Board() if board is None else board
    with Watched(board) as watched:
        until = None if seconds is None else time.monotonic() + seconds
        while not whole or (len(whole) < iterations if until is None else time.monotonic() < until):
            whole.append(once())
            for stage, ns in model.timings.items():
                stages.setdefault(stage, []).append(ns / 1e6)
    energy, mode = watched.joules(), board.power_mode()
    return {
        "backend": model.backend.name,
        "variant": model.backend.variant,
        "latency_ms": percentiles(whole),
        "stages_ms": {name: percentiles(times) for name, times in stages.items()},
        "throughput": 1e3 * batch * len(whole) / sum(whole),
        "rss_bytes": resident_bytes(),
        "batch": batch,
        "iterations": len(whole),
        "rates": rates(whole, batch),
        "joules": None if energy is None else energy / (batch * len(whole)),
        "throttled": watched.throttled,
        "power_mode": None if mode is None else mode.name,
    }


def rates(ms: list[float], batch: int) -> list[float]:
    """Frames a second in each tenth of the calls; fewer numbers where there are fewer calls."""
    parts = np.array_split(np.asarray(ms), min(10, len(ms)))
    return [float(1e3 * batch * len(part) / part.sum()) for part in parts]


class Watched:
    """Power and throttling of a board from the first to the last line of a ``with`` block."""

    def __init__(self, board: Board, every_s: float = _LOOK_S) -> None:
        self.board = board
        self.every_s = every_s
        self.throttled: bool | None = None
        self._power: list[tuple[float, float]] = []  # s, W
        self._throttling = Throttling(board)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-board", daemon=True)

    def __enter__(self) -> Watched:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def joules(self) -> float | None:
        """Power over time by the trapezoid rule; None where the board tells no power."""
        if len(self._power) < 2:
            return None
        pairs = itertools.pairwise(self._power)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)

    def _run(self) -> None:
        while not self._done.wait(self.every_s):
            self._look()

    def _look(self) -> None:
        watts = self.board.watts()
        if watts is not None:
            self._power.append((time.monotonic(), watts))
        slow = self._throttling.look()
        if slow is not None:
            self.throttled = bool(self.throttled) or slow


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
