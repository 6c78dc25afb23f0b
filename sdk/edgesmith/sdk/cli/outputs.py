"""What ``edgesmith run`` writes: its options and its file's sinks, opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from edgesmith.sdk.cameras import SupervisedCamera
from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.config import SinkConfig, open_one
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.mailbox import Policy
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.base import Sink

VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm"})


class PerCamera:
    """A sink for each camera, made when its first result comes."""

    def __init__(self, make: Callable[[str], Sink]) -> None:
        self.notes: list[str] = []
        self._make = make
        self._sinks: dict[str, Sink] = {}

    def write(self, result: Result) -> None:
        """Hand the result to its camera's sink."""
        if result.camera not in self._sinks:
            self._sinks[result.camera] = self._make(result.camera)
        self._sinks[result.camera].write(result)

    def close(self) -> None:
        """Finish each; the first error is raised after the last."""
        first: Exception | None = None
        for sink in self._sinks.values():
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001 - raised below
                first = first or error
            self.notes += sink.notes
        self._sinks.clear()
        if first is not None:
            raise first


def open_saved(
    save: Path, cameras: Sequence[SupervisedCamera], names: Sequence[str], policies: Sequence[Policy]
) -> Sink:
    """The sink of ``--save``: a video, a picture or a folder; of several cameras each has its own.

    Raises:
        ConfigError: what is asked for cannot hold this source.
        SinkError: it cannot be opened.
    """
    video = save.suffix.lower() in VIDEOS
    single = len(cameras) == 1 and cameras[0].length == 1
    if not video and save.suffix and not (single and save.suffix.lower() in PICTURES):
        raise ConfigError(
            f"--save {save}: a source of several frames goes into a video ({', '.join(sorted(VIDEOS))}) "
            "or a folder (a name without an ending), one picture also into a picture file"
        )
    kind = "video" if video else "pictures"
    if len(cameras) == 1:
        return _recording(kind, save, cameras[0], policies)
    if video and not save.parent.is_dir():
        raise ConfigError(f"--save {save}: the folder {save.parent} does not exist")
    by_name = dict(zip(names, cameras, strict=True))

    def make(name: str) -> Sink:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or f"camera-{names.index(name)}"
        target = save.with_name(f"{save.stem}-{plain}{save.suffix}") if video else save / plain
        target.parent.mkdir(parents=True, exist_ok=True)
        return _recording(kind, target, by_name[name], policies)

    return PerCamera(make)


def _recording(kind: str, path: Path, camera: SupervisedCamera, policies: Sequence[Policy]) -> Sink:
    options: dict[str, object] = {"path": path}
    if kind == "video":
        # What a live camera gave plays as fast as it was, also where frames were passed over.
        options |= {"fps": camera.fps, "timing": "captured" if camera.live else "constant"}
    return open_one(SinkConfig(kind=kind, options=options), policies)
