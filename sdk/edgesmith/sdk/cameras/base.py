"""What a source of frames gives, and the states that a live one goes through."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and where it comes from.

    Attributes:
        image: BGR uint8 ``(H, W, 3)``.
        sequence: number in its source, from 0, gaps where frames could not be read or were passed over.
        captured_ns: ``time.monotonic_ns`` at the grab.
        source_ns: the source's own clock (position in a file, the stream's timestamp), or None.
        source_id: name of the source: a path, a device.
        dropped: frames of this source that were passed over right before this one.
    """

    image: NDArray[np.uint8]
    sequence: int
    captured_ns: int
    source_ns: int | None
    source_id: str
    dropped: int = 0


class CameraState(enum.Enum):
    """Where a camera is in its life.

    ``opening -> streaming -> stalled -> reconnecting -> streaming ... -> ended | failed``
    """

    OPENING = "opening"  # no frame yet since it was opened
    STREAMING = "streaming"
    STALLED = "stalled"  # connected, and no (new) picture for too long
    RECONNECTING = "reconnecting"  # the connection was given up; trying again with growing pauses
    ENDED = "ended"  # the source came to its end, or was closed
    FAILED = "failed"  # given up: frames() raises

    @property
    def over(self) -> bool:
        """Whether no frame will come any more."""
        return self in (CameraState.ENDED, CameraState.FAILED)


class CameraStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A camera at one moment.

    Attributes:
        state: where it is.
        since_ns: ``time.monotonic_ns`` when it came into this state.
        reason: one word for why, for programs: ``stalled``, ``frozen``, ``closed``, ``end``, ``refused``,
            ``unauthorized``, ``not-found``, ``dns``, ``unreachable``, ``timeout``, ``damaged``,
            ``format``, ``lost``, ``device``, ``pipeline``, ``tls``, ``protocol``, ``server``,
            ``not-a-stream``, ``error`` (an exception that is none of ours); empty where all is well.
        detail: the same as a sentence, for people; never holds credentials.
        reconnects: times that frames came again after a loss.
        frames: pictures grabbed so far. Each was delivered, dropped, or is the one that waits.
        delivered: pictures that ``frames()`` handed out.
        dropped: pictures passed over because a newer one came, withheld as frozen, or not decodable.
        abandoned: decoders that did not end in time and were left to themselves.
        last_frame_ns: ``time.monotonic_ns`` of the newest grab, or None before the first.
        size: ``(width, height)`` of the newest picture, or None before the first.
    """

    state: CameraState
    since_ns: int
    reason: str = ""
    detail: str = ""
    reconnects: int = 0
    frames: int = 0
    delivered: int = 0
    dropped: int = 0
    abandoned: int = 0
    last_frame_ns: int | None = None
    size: tuple[int, int] | None = None

    @property
    def age_ms(self) -> float | None:
        """Milliseconds since the newest grab, or None before the first."""
        return None if self.last_frame_ns is None else (time.monotonic_ns() - self.last_frame_ns) / 1e6


@runtime_checkable
class Camera(Protocol):  # not a base class: a vendor's camera fits without importing us
    """A source of frames; one reader at a time.

    Attributes:
        name: what to call it in messages; holds no credentials.
        fps: nominal rate in frames a second, or None where there is none (pictures).
        length: frames in all where that is known.
        faults: one line for each part that could not be read; reading goes on after it.
        live: True where the source runs by itself and ``frames()`` gives the newest picture;
            False where it waits to be read and gives every one (files).
    """

    name: str
    fps: float | None
    length: int | None
    faults: list[str]
    live: bool

    def frames(self) -> Iterator[Frame]:
        """Frames in order, until the source ends or is closed; losses are survived by reconnecting.

        Raises:
            CameraLost: a live source stopped, and it was told not to reconnect.
            CameraFormatError: the size or rate that was asked for is no longer given.
            CameraError: trying again cannot help (a refused password, say).
        """
        ...

    def close(self) -> None:
        """Let go of the device or file; from any thread, at any time, more than once.

        ``frames()`` ends within 1 s of it.
        """
        ...


@runtime_checkable
class SupervisedCamera(Camera, Protocol):
    """What ``open_camera`` gives: a camera that also says how it is."""

    @property
    def state(self) -> CameraState:
        """Where it is now."""
        ...

    def status(self) -> CameraStatus:
        """State and counts at this moment, consistent with one another."""
        ...
