"""Pictures of events: something appears, and one picture of it is kept."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import cv2
import msgspec

from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.maps import Segmentation, Tensors
from edgesmith.sdk.results import Detections
from edgesmith.sdk.sinks.base import wall_ns
from edgesmith.sdk.sinks.jsonl import line_of
from edgesmith.sdk.sinks.naming import SourceNames, camera_of, slug

log = logging.getLogger(__name__)

# What this sink wrote, and nothing else, may be removed to make room.
_OURS = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[A-Za-z0-9_]+-[A-Za-z0-9_]+-\d+\.(jpg|json)")


class EventPictures:
    """A picture, and its JSON line in a file beside it, when a class appears in a camera's view.

    A class appears when it reaches ``min_score`` and was not in view for ``absent_s`` before, so that a
    flickering score is one event. After a picture of a class the same camera takes no other of it for
    ``cooldown_s``. A classifier's event is its best class.

    Args:
        folder: where the pictures go; made where it is not there.
        classes: names to watch for; None for all.
        min_score: least score, 0..1.
        absent_s: seconds out of view after which a class appears anew.
        cooldown_s: least seconds between two pictures of one class of one camera.
        max_bytes: size of the folder's events; the oldest make room for new ones.
        draw: whether the answer is drawn on the picture.
        quality: of the JPEG, 1..100.

    Raises:
        ConfigError: a figure makes no sense.
        SinkError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        min_score: float = 0.5,
        absent_s: float = 2.0,
        cooldown_s: float = 10.0,
        max_bytes: int = 500_000_000,
        draw: bool = True,
        quality: int = 90,
    ) -> None:
        if max_bytes <= 0 or not 1 <= quality <= 100 or not 0 <= min_score <= 1:
            raise ConfigError(
                f"events: max_bytes {max_bytes}, quality {quality}, min_score {min_score}: "
                "more than 0, 1 to 100 and 0 to 1 are needed"
            )
        self.folder = Path(folder)
        self.notes: list[str] = []
        self.saved = 0
        self._classes = None if classes is None else frozenset(classes)
        self._unseen = set(self._classes or ())
        self._min_score, self._draw, self._quality = min_score, draw, quality
        self._absent_ns, self._cooldown_ns = int(absent_s * 1e9), int(cooldown_s * 1e9)
        self._max_bytes = max_bytes
        self._names = SourceNames()
        self._seen_ns: dict[tuple[str, str], int] = {}
        self._saved_ns: dict[tuple[str, str], int] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{self.folder}: cannot be made: {error.strerror or error}") from error
        self._count()

    def reopen(self) -> None:
        """Go on where the folder takes files again; it is not made anew, as it may be a disk's.

        Raises:
            SinkError: not yet possible.
        """
        probe = self.folder / ".probe.part"
        try:
            probe.write_bytes(bytes(4096))
            probe.unlink()
            self._count()
        except OSError as error:
            raise SinkError(f"{self.folder}: cannot be written: {error.strerror or error}") from error

    def _count(self) -> None:
        self._files = dict(sorted(self._kept()))
        self._bytes = sum(self._files.values())

    def _kept(self) -> Iterator[tuple[str, int]]:
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.is_file():
                yield path.name, path.stat().st_size

    def write(self, result: Result) -> None:
        """Look at one result, and keep its picture where something appeared in it.

        Raises:
            SinkError: it cannot be written.
        """
        now, source = result.frame.captured_ns, camera_of(result)
        names = self._names_in(result)
        appeared = []
        for name in names:
            seen, saved = self._seen_ns.get((source, name)), self._saved_ns.get((source, name))
            fresh = seen is None or now - seen > self._absent_ns
            if fresh and (saved is None or now - saved >= self._cooldown_ns):
                appeared.append(name)
        if appeared:  # what cannot be saved has not been seen, and is tried again while it is in view
            self._save(result, "_".join(appeared[:3]))
        self._seen_ns.update({(source, name): now for name in names})
        self._saved_ns.update({(source, name): now for name in appeared})

    def _names_in(self, result: Result) -> list[str]:
        """Names of the classes in view, the best first, each once."""
        answer = result.answer
        if isinstance(answer, Tensors):
            return []
        if isinstance(answer, Segmentation):  # regions have no score
            names = dict.fromkeys(region.name for region in answer)
        else:
            items = answer if isinstance(answer, Detections) else answer.top_k(1)
            names = dict.fromkeys(item.name for item in items if item.score >= self._min_score)
        self._check_names(answer.names)
        return [name for name in names if self._classes is None or name in self._classes]

    def _check_names(self, known: Sequence[str]) -> None:
        """Tell once of a class to watch for that the model does not have."""
        if self._unseen and known:
            missing, self._unseen = self._unseen - set(known), set()
            if missing:
                self.notes.append(f"events: the model has no class {', '.join(sorted(missing))}")
                log.warning("%s: nothing will be saved for it", self.notes[-1])

    def _save(self, result: Result, what: str) -> None:
        frame = result.frame
        image = result.answer.draw(frame.image) if self._draw else frame.image
        good, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not good:
            raise SinkError(f"{self.folder}: a picture of shape {image.shape} cannot be encoded")
        taken = wall_ns(frame.captured_ns)
        moment = datetime.fromtimestamp(taken // 10**9, timezone.utc).strftime("%Y%m%dT%H%M%S")
        stem = (
            f"{moment}.{taken // 10**6 % 1000:03d}Z-{self._names[camera_of(result)]}-"
            f"{slug(what)}-{frame.sequence}"
        )
        line = {**line_of(result), "captured_unix_ns": taken}
        members = {f"{stem}.jpg": jpeg.tobytes(), f"{stem}.json": msgspec.json.encode(line) + b"\n"}
        self._make_room(sum(len(data) for data in members.values()))
        for name, data in members.items():
            self._put(name, data)
        self.saved += 1

    def _put(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: what uploads the folder never sees half a picture."""
        partial = self.folder / f".{name}.part"
        try:
            partial.write_bytes(data)
            partial.replace(self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise SinkError(f"{self.folder / name}: cannot be written: {error.strerror or error}") from error
        self._bytes += len(data) - self._files.get(name, 0)
        self._files[name] = len(data)

    def _make_room(self, wanted: int) -> None:
        """Remove the oldest events until ``wanted`` bytes fit; names sort by time."""
        if wanted > self._max_bytes:
            raise SinkError(
                f"{self.folder}: one event is {wanted} bytes, max_bytes is {self._max_bytes}: set it higher"
            )
        while self._files and self._bytes + wanted > self._max_bytes:
            oldest = next(iter(self._files))
            try:
                (self.folder / oldest).unlink(missing_ok=True)
            except OSError as error:
                raise SinkError(
                    f"{self.folder / oldest}: cannot be removed: {error.strerror or error}"
                ) from error
            self._bytes -= self._files.pop(oldest)

    def close(self) -> None:
        """Each picture is finished already."""
