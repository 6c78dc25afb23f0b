"""Every frame is accounted for: grabbed = processed + dropped, once a loop is at rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Reason = Literal["replaced", "stale", "stopped", "failed"]


class CameraStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one camera's frames.

    Attributes:
        name: the camera's name.
        state: ``opening``, ``streaming``, ``ended`` or ``failed``, or the camera's own word for it.
        grabbed: frames that the camera gave.
        processed: frames that became a result, which every sink was given.
        in_flight: frames that are on their way; 0 when the loop is at rest.
        replaced: dropped because a newer one came before this one's turn.
        stale: dropped because it was older than ``max_age_ms`` when its turn came.
        stopped: dropped because the loop was stopped.
        failed: dropped because a stage failed with it.
        lost: frames that the camera itself says it passed over; not among ``grabbed``.
        unread: results that the loop's iterator passed over for a newer one; among ``processed``.
        fps: processed frames a second since the camera's first frame.
        error: why the camera failed, or None.
    """

    name: str
    state: str
    grabbed: int = 0
    processed: int = 0
    in_flight: int = 0
    replaced: int = 0
    stale: int = 0
    stopped: int = 0
    failed: int = 0
    lost: int = 0
    unread: int = 0
    fps: float = 0.0
    error: str | None = None

    @property
    def dropped(self) -> int:
        """All frames that were grabbed and did not become a result."""
        return self.replaced + self.stale + self.stopped + self.failed


class LoopStats(msgspec.Struct, frozen=True, kw_only=True):
    """The cameras' counts; ``abandoned`` names threads that could not be ended in time."""

    cameras: tuple[CameraStats, ...]
    seconds: float
    abandoned: tuple[str, ...] = ()

    @property
    def grabbed(self) -> int:
        """Frames of all cameras."""
        return sum(camera.grabbed for camera in self.cameras)

    @property
    def processed(self) -> int:
        """Results of all cameras."""
        return sum(camera.processed for camera in self.cameras)

    @property
    def dropped(self) -> int:
        """Frames of all cameras that were grabbed and did not become a result."""
        return sum(camera.dropped for camera in self.cameras)


@dataclass(slots=True)
class _Entry:
    name: str
    grabbed: int = 0
    processed: int = 0
    lost: int = 0
    unread: int = 0
    drops: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    first_ns: int = 0
    last_ns: int = 0
    newest_ns: int | None = None
    state: str = "opening"
    error: BaseException | None = None

    @property
    def in_flight(self) -> int:
        return self.grabbed - self.processed - sum(self.drops.values())


_REASONS: tuple[Reason, ...] = ("replaced", "stale", "stopped", "failed")


class Account:
    """The counters of a loop, one row a camera, behind one lock."""

    def __init__(self, names: Sequence[str]) -> None:
        self._entries = [_Entry(name) for name in names]
        self._lock = threading.Lock()
        self._started_ns = time.monotonic_ns()
        self._settled = False

    def grabbed(self, source: int, captured_ns: int, lost: int) -> None:
        """A frame came from the camera, after ``lost`` others that the camera passed over."""
        with self._lock:
            entry = self._entries[source]
            entry.grabbed += 1
            entry.lost += lost
            entry.newest_ns = captured_ns
            entry.first_ns = entry.first_ns or time.monotonic_ns()
            entry.state = "streaming"

    def processed(self, source: int) -> None:
        """A frame became a result."""
        with self._lock:
            if not self._settled:
                self._entries[source].processed += 1
                self._entries[source].last_ns = time.monotonic_ns()

    def dropped(self, source: int, reason: Reason) -> None:
        """A frame was given up."""
        with self._lock:
            if not self._settled:
                self._entries[source].drops[reason] += 1

    def unread(self, source: int) -> None:
        """A result was passed over by the iterator."""
        with self._lock:
            self._entries[source].unread += 1

    def ended(self, source: int, error: BaseException | None = None) -> None:
        """The camera gives no more."""
        with self._lock:
            self._entries[source].state = "ended" if error is None else "failed"
            self._entries[source].error = error

    def settle(self) -> None:
        """The loop is over: what an abandoned thread still holds counts as stopped, now and later."""
        with self._lock:
            for entry in self._entries:
                entry.drops["stopped"] += entry.in_flight
            self._settled = True

    def newest_ns(self, source: int) -> int | None:
        """When the camera's newest frame was captured; None before the first, and after the last."""
        entry = self._entries[source]
        return entry.newest_ns if entry.state == "streaming" else None

    def state(self, source: int) -> str:
        """The loop's own word for the camera's state."""
        return self._entries[source].state

    def error(self, source: int) -> BaseException | None:
        """Why the camera failed."""
        return self._entries[source].error

    def at_rest(self, source: int) -> bool:
        """Whether no frame of the camera is on its way."""
        with self._lock:
            return self._entries[source].in_flight == 0

    def stats(self, states: Sequence[str], abandoned: Sequence[str]) -> LoopStats:
        """The counts as they are now; ``states`` has a word for each camera."""
        with self._lock:
            rows = []
            for entry, state in zip(self._entries, states, strict=True):
                spent = (entry.last_ns - entry.first_ns) / 1e9
                rows.append(
                    CameraStats(
                        name=entry.name,
                        state=state,
                        grabbed=entry.grabbed,
                        processed=entry.processed,
                        in_flight=entry.in_flight,
                        **entry.drops,
                        lost=entry.lost,
                        unread=entry.unread,
                        fps=entry.processed / spent if spent > 0 else 0.0,
                        error=None if entry.error is None else str(entry.error),
                    )
                )
            seconds = (time.monotonic_ns() - self._started_ns) / 1e9
            return LoopStats(cameras=tuple(rows), seconds=seconds, abandoned=tuple(abandoned))
