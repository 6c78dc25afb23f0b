"""``edgesmith run``: a bundle over a video, pictures or a camera."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from edgesmith.sdk.cameras import Camera, open_camera
from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.cli.output import console, emit_json, progress, table
from edgesmith.sdk.errors import CameraLost, ConfigError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.loop.sequential import results
from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.percentiles import percentiles
from edgesmith.sdk.sinks.base import Sink
from edgesmith.sdk.sinks.jsonl import JsonLines
from edgesmith.sdk.sinks.video import AnnotatedPictures, AnnotatedVideo

VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm"})


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--source", required=True, help="Video, picture, folder of pictures, or camera number.")
@click.option(
    "--save", type=click.Path(path_type=Path), help="Annotated video (.mp4), picture (.jpg) or folder."
)
@click.option("--jsonl", type=click.Path(path_type=Path), help="JSON lines file, a line a frame.")
@click.option("--limit", type=click.IntRange(min=1), help="End after N frames.")
@click.option("--score", type=click.FloatRange(0, 1), help="A detector's threshold in place of the bundle's.")
@click.option("--iou", type=click.FloatRange(0, 1), help="A detector's suppression threshold.")
@click.option("--backend", default="auto", show_default=True, help="auto, cuda or cpu.")
@click.option("--variant", help="A graph of the bundle by name, in place of the chosen one.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run(
    bundle: Path,
    source: str,
    save: Path | None,
    jsonl: Path | None,
    limit: int | None,
    score: float | None,
    iou: float | None,
    backend: str,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Run BUNDLE over every frame of a source, and save what is asked for.

    Ctrl-C ends the run and finishes the files (exit status 130). What cannot be read is told, the
    rest goes on, and the exit status is 1.
    """
    tally = Tally()
    with ExitStack() as stack:
        model = stack.enter_context(load_model(bundle, backend=backend, variant=variant, threads=threads))
        camera = open_camera(source)
        stack.callback(camera.close)
        sinks = _sinks(save, jsonl, camera)
        for sink in sinks:
            stack.callback(sink.close)
        stream = results(camera, model, score=score, iou=iou, limit=limit)
        with _ended_by_signals(tally):
            _consume(stream, sinks, tally, camera, limit)
    tally.errors += camera.faults
    for note in (note for sink in sinks for note in sink.notes):
        console.print(note, style="yellow", markup=False)
    _tell(tally, model, source, (save, jsonl), as_json)
    if tally.interrupted:
        return 130
    if tally.errors:
        return 1 if tally.frames else 3
    return 0


class Tally:
    """What a run came to."""

    def __init__(self) -> None:
        self.frames = 0
        self.dropped = 0
        self.found = 0
        self.ages: list[float] = []
        self.stages: dict[str, list[float]] = {}
        self.errors: list[str] = []
        self.interrupted = False
        self.started = time.monotonic()
        self.seconds = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        self.frames += 1
        self.dropped += result.dropped
        self.found += len(result.answer)
        self.ages.append(result.age_ms)
        for name, ms in result.stages_ms.items():
            self.stages.setdefault(name, []).append(ms)
        self.seconds = time.monotonic() - self.started

    @property
    def fps(self) -> float:
        """Frames a second of the whole run, sinks included."""
        return self.frames / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """The keys of ``run --json``."""
        return {
            "frames": self.frames,
            "dropped": self.dropped,
            "fps": self.fps,
            "age_ms": percentiles(self.ages),
            "stages_ms": {name: percentiles(times) for name, times in self.stages.items()},
            "errors": self.errors,
        }


def _consume(
    stream: Iterator[Result], sinks: list[Sink], tally: Tally, camera: Camera, limit: int | None
) -> None:
    total = limit if camera.length is None else min(camera.length, limit or camera.length)
    with progress("frames") as bar:
        task = bar.add_task(Path(camera.name).name, total=total, rate=0.0)
        try:
            for result in stream:
                for sink in sinks:
                    sink.write(result)
                tally.add(result)
                bar.update(task, completed=tally.frames, rate=tally.fps)
                if tally.interrupted:
                    break
        except KeyboardInterrupt:
            tally.interrupted = True
        except CameraLost as error:
            tally.errors.append(str(error))


def _sinks(save: Path | None, jsonl: Path | None, camera: Camera) -> list[Sink]:
    sinks: list[Sink] = []
    if save is not None:
        if save.suffix.lower() in VIDEOS:
            sinks.append(AnnotatedVideo(save, fps=camera.fps))
        elif save.suffix and (camera.length != 1 or save.suffix.lower() not in PICTURES):
            raise ConfigError(
                f"--save {save}: a source of several frames goes into a video ({', '.join(sorted(VIDEOS))}) "
                "or a folder (a name without an ending), one picture also into a picture file"
            )
        else:
            sinks.append(AnnotatedPictures(save))
    if jsonl is not None:
        sinks.append(JsonLines(jsonl))
    return sinks


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
    tally: Tally, model: Model[Any], source: str, files: tuple[Path | None, ...], as_json: bool
) -> None:
    for error in tally.errors:
        console.print(f"not read: {error}", style="yellow", markup=False)
    summary = tally.summary()
    if as_json:
        emit_json(summary)
        return
    rows: list[tuple[object, ...]] = []
    for name, times in {**summary["stages_ms"], "age": summary["age_ms"]}.items():
        rows.append((name, times["p50"], times["p90"], times["p99"]))
    table(f"{source}: {model.backend.detail}, ms a frame", ("stage", "p50", "p90", "p99"), rows)
    what = "detections" if model.task == "detect" else "answers"
    ended = "interrupted after " if tally.interrupted else ""
    click.echo(f"{ended}{tally.frames} frames, {tally.fps:.1f} frames/s, {tally.found} {what}")
    for path in files:
        if path is not None and path.exists():
            click.echo(f"wrote {path}")
