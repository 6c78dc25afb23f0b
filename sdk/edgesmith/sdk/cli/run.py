"""``edgesmith run``: a bundle over videos, pictures and cameras."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from edgesmith.sdk.cameras import SupervisedCamera
from edgesmith.sdk.cli.output import console, emit_json, progress, table
from edgesmith.sdk.cli.outputs import open_saved
from edgesmith.sdk.config import (
    CameraConfig,
    ModelConfig,
    RobotConfig,
    SinkConfig,
    open_cameras,
    open_one,
    policies,
    read_config,
)
from edgesmith.sdk.errors import CameraError, StaleFrameError
from edgesmith.sdk.heap import limit_arenas
from edgesmith.sdk.loop.account import LoopStats
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.mailbox import POLICIES
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.loop.settings import unique
from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.percentiles import Spread
from edgesmith.sdk.sinks.base import Sink, show_states

WAIT_S = 0.1  # a signal is answered within this time also where no frame comes


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--source",
    "sources",
    multiple=True,
    help="Video, picture, folder, camera number or address (rtsp://, csi://, ...). May be given again.",
)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with model, cameras and sinks.")
@click.option("--policy", type=click.Choice(POLICIES), help="latest (live cameras) or every (files).")
@click.option("--max-age-ms", type=click.FloatRange(min=0, min_open=True), help="Refuse older frames.")
@click.option("--track", is_flag=True, default=None, help="Give objects ids that stay with them.")
@click.option(
    "--save", type=click.Path(path_type=Path), help="Annotated video (.mp4), picture (.jpg) or folder."
)
@click.option("--jsonl", type=click.Path(path_type=Path), help="JSON lines file, a line a frame.")
@click.option("--view", metavar="HOST:PORT", help="Web page with the live picture, e.g. :8080.")
@click.option("--limit", type=click.IntRange(min=1), help="End after N frames.")
@click.option("--score", type=click.FloatRange(0, 1), help="A detector's threshold in place of the bundle's.")
@click.option("--iou", type=click.FloatRange(0, 1), help="A detector's suppression threshold.")
@click.option("--backend", help="auto (the default), or a backend's name, such as cuda or cpu.")
@click.option("--variant", help="A graph of the bundle by name, in place of the chosen one.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run(
    bundle: Path | None,
    sources: tuple[str, ...],
    config: Path | None,
    save: Path | None,
    jsonl: Path | None,
    view: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Run BUNDLE over its sources, and save what is asked for.

    Of files and pictures each frame is run once, in order; of live cameras always the newest. A
    --config file stands for BUNDLE and all options; those that are given as well replace its keys.

    Ctrl-C ends the run and finishes the files (exit status 130). What cannot be read is told, the
    rest goes on, and the exit status is 1.
    """
    robot = _robot(bundle, sources, config, options)
    limit_arenas()
    tally = Tally()
    with ExitStack() as stack:
        chosen = robot.model
        model = stack.enter_context(
            load_model(
                chosen.bundle,
                backend=chosen.backend,
                device=chosen.device,
                variant=chosen.variant,
                threads=chosen.threads,
            )
        )
        cameras, sinks, loop = _opened(robot, model, tally, save, jsonl, view)
        stack.enter_context(_ended_by_signals(tally))
        _consume(loop, tally, cameras, robot.limit)
        stats = loop.stats()
    tally.close(stats, cameras)
    for note in (note for sink in sinks for note in sink.notes):
        console.print(note, style="yellow", markup=False)
    _tell(tally, model, stats, (save, jsonl), as_json)
    if tally.interrupted:
        return 130
    if tally.errors:
        return 1 if tally.frames else 3
    return 0


class Tally:
    """What a run came to; its memory does not grow with the run."""

    def __init__(self) -> None:
        self.frames = 0
        self.dropped = 0
        self.found = 0
        self.ages = Spread()
        self.stages: dict[str, Spread] = {}
        self.errors: list[str] = []
        self.stale: dict[str, tuple[int, str]] = {}
        self.interrupted = False
        self.started = time.monotonic()
        self.seconds = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        self.frames += 1
        self.dropped += result.dropped
        self.found += len(result.answer)
        self.ages.add(result.age_ms)
        for name, ms in result.stages_ms.items():
            self.stages.setdefault(name, Spread()).add(ms)
        self.seconds = time.monotonic() - self.started

    def add_stale(self, error: StaleFrameError) -> None:
        """Count a time without a fresh frame."""
        count, _ = self.stale.get(error.camera, (0, ""))
        self.stale[error.camera] = (count + 1, str(error))

    def close(self, stats: LoopStats, cameras: Sequence[SupervisedCamera]) -> None:
        """Gather what went wrong, each once."""
        found = [camera.error for camera in stats.cameras if camera.error is not None]
        found += [fault for camera in cameras for fault in camera.faults]
        found += [f"{text} ({count} times)" for count, text in self.stale.values()]
        self.errors += [text for text in dict.fromkeys(found) if text not in self.errors]

    @property
    def fps(self) -> float:
        """Frames a second of the whole run, sinks included."""
        return self.frames / self.seconds if self.seconds else 0.0

    def summary(self, stats: LoopStats) -> dict[str, Any]:
        """The keys of ``run --json``; ``cameras`` where there are several."""
        summary: dict[str, Any] = {
            "frames": self.frames,
            "dropped": self.dropped,
            "fps": self.fps,
            "age_ms": self.ages.percentiles(),
            "stages_ms": {name: times.percentiles() for name, times in self.stages.items()},
            "errors": self.errors,
        }
        if len(stats.cameras) > 1:
            summary["cameras"] = [
                {**msgspec.structs.asdict(camera), "dropped": camera.dropped} for camera in stats.cameras
            ]
        return summary


def _robot(
    bundle: Path | None, sources: Sequence[str], config: Path | None, options: dict[str, Any]
) -> RobotConfig:
    """The file's settings, with the command's in place of those that were given."""
    given = {key: value for key, value in options.items() if value is not None}
    model = {key: given.pop(key) for key in tuple(given) if key in ModelConfig.__struct_fields__}
    cameras = tuple(CameraConfig(source=source) for source in sources)
    if config is None:
        if bundle is None:
            raise click.UsageError("Missing argument 'BUNDLE' (or option '--config').")
        if not cameras:
            raise click.UsageError("Missing option '--source' (or '--config').")
        return RobotConfig(model=ModelConfig(bundle=str(bundle), **model), cameras=cameras, **given)
    robot = read_config(config)
    if bundle is not None:
        model["bundle"] = str(bundle)
    if cameras:
        given["cameras"] = cameras
    return msgspec.structs.replace(robot, model=msgspec.structs.replace(robot.model, **model), **given)


def _opened(
    robot: RobotConfig,
    model: Model[Any],
    tally: Tally,
    save: Path | None,
    jsonl: Path | None,
    view: str | None,
) -> tuple[list[SupervisedCamera], list[Sink], CaptureLoop]:
    """Cameras and sinks, and the loop that will close them."""
    sinks: list[Sink] = []
    with ExitStack() as guard:
        cameras = open_cameras(robot.cameras)
        for camera in cameras:
            guard.callback(camera.close)
        chosen = policies(robot, cameras)
        wanted = list(robot.sinks)
        if jsonl is not None:
            wanted.append(SinkConfig(kind="jsonl", options={"path": jsonl}))
        if view is not None:
            wanted.append(SinkConfig(kind="view", options={"address": view}))
        if save is not None:
            names = unique([camera.name for camera in cameras])
            sinks.append(open_saved(save, cameras, names, chosen))
            guard.callback(sinks[-1].close)
        for entry in wanted:
            sinks.append(open_one(entry, chosen))
            guard.callback(sinks[-1].close)
        loop = CaptureLoop(
            cameras,
            model,
            policy=chosen,
            max_age_ms=robot.max_age_ms,
            sinks=sinks,
            track=robot.track,
            score=robot.model.score,
            iou=robot.model.iou,
            batch=robot.batch,
            gather_ms=robot.gather_ms,
            limit=robot.limit,
            on_result=tally.add,
            on_camera_error="continue",
        )
        show_states(sinks, lambda: {camera.name: camera.state for camera in loop.stats().cameras})
        guard.pop_all()  # from here on they are the loop's
    return cameras, sinks, loop


def _consume(loop: CaptureLoop, tally: Tally, cameras: Sequence[SupervisedCamera], limit: int | None) -> None:
    lengths = [camera.length for camera in cameras]
    known = None if None in lengths else sum(length or 0 for length in lengths)
    total = limit if known is None else min(known, limit or known)
    name = Path(cameras[0].name).name if len(cameras) == 1 else f"{len(cameras)} cameras"
    tally.started = time.monotonic()
    with progress("frames") as bar, loop:
        task = bar.add_task(name, total=total, rate=0.0)
        try:
            while not loop.over and not tally.interrupted:
                try:
                    loop.get(WAIT_S)
                except StaleFrameError as error:
                    tally.add_stale(error)
                bar.update(task, completed=tally.frames, rate=tally.fps)
        except KeyboardInterrupt:
            tally.interrupted = True
        except CameraError as error:
            tally.errors.append(str(error))


@contextmanager
def _ended_by_signals(tally: Tally) -> Iterator[None]:
    """Ctrl-C and a service manager's SIGTERM end the run after the frame at hand, so that every file agrees.

    A second signal does not wait for that frame.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if tally.interrupted:
            raise KeyboardInterrupt
        tally.interrupted = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(
    tally: Tally, model: Model[Any], stats: LoopStats, files: tuple[Path | None, ...], as_json: bool
) -> None:
    for error in tally.errors:
        console.print(f"not read: {error}", style="yellow", markup=False)
    summary = tally.summary(stats)
    if as_json:
        emit_json(summary)
        return
    rows: list[tuple[object, ...]] = []
    for name, times in {**summary["stages_ms"], "age": summary["age_ms"]}.items():
        rows.append((name, times["p50"], times["p90"], times["p99"]))
    names = ", ".join(camera.name for camera in stats.cameras)
    table(f"{names}: {model.backend.detail}, ms a frame", ("stage", "p50", "p90", "p99"), rows)
    if len(stats.cameras) > 1:
        columns = ("camera", "state", "grabbed", "processed", "dropped", "frames/s")
        table(
            "", columns, [(c.name, c.state, c.grabbed, c.processed, c.dropped, c.fps) for c in stats.cameras]
        )
    what = {"detect": "detections", "segment": "regions", "tensor": "tensors"}.get(model.task, "answers")
    ended = "interrupted after " if tally.interrupted else ""
    lost = f", {tally.dropped} dropped" if tally.dropped else ""
    click.echo(f"{ended}{tally.frames} frames, {tally.fps:.1f} frames/s{lost}, {tally.found} {what}")
    for path in files:
        if path is not None and path.exists():
            click.echo(f"wrote {path}")
