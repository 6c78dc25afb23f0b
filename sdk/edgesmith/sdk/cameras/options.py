"""What each kind of source can be told, and the refusal of what it cannot."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edgesmith.sdk.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)
CAMERA_FROZEN_MS = 10_000.0  # of cameras and network streams, where `frozen_ms` says nothing


class Backoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pauses between attempts to reconnect: growing, bounded, and spread, lest many cameras knock at once.

    Attributes:
        first_s: the first pause, in seconds.
        factor: each further pause is so many times the one before.
        longest_s: no pause is longer (before the spread).
        jitter: share of the pause, 0..1, by which it is made longer or shorter at random.
        seed: of the spread; None draws one.
    """

    first_s: float = 0.25
    factor: float = 2.0
    longest_s: float = 1.0
    jitter: float = 0.2
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.first_s < 0 or self.longest_s < self.first_s or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError("backoff needs 0 <= first_s <= longest_s, factor >= 1 and jitter in 0..1")

    def pause_s(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait before the attempt with this number, from 0."""
        # The exponent is bounded: a camera that is away for a week must not overflow a float.
        pause = min(self.first_s * self.factor ** min(attempt, 64), self.longest_s)
        return pause * (1 + self.jitter * rng.uniform(-1, 1))


# With the time that it takes to be noticed, a stall is told of within 2 s.
USUAL_STALL_NS = 1.5e9


class LiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of every source that runs by itself.

    Attributes:
        reconnect: come back after a loss; without it, ``frames()`` raises ``CameraLost``.
        stall_ms: no picture for so long is a stall; None is 1,500, or three frame periods where that is more.
        frozen_ms: the very same pixels for so long is a frozen picture; 0 never; None is the kind's own:
            10,000 for cameras and network streams, 0 for files, pipelines and test patterns.
        open_s: an attempt to connect that gives no picture for so many seconds has failed.
        wait: do not raise when the source is not there at first; keep trying as after a loss.
        backoff: pauses between attempts.
    """

    reconnect: bool = True
    stall_ms: float | None = None
    frozen_ms: float | None = None
    open_s: float = 5.0
    wait: bool = False
    backoff: Backoff = Backoff()

    def __post_init__(self) -> None:
        if self.stall_ms is not None and self.stall_ms <= 0:
            raise ValueError("stall_ms must be over 0")
        if self.frozen_ms is not None and self.frozen_ms < 0:
            raise ValueError("frozen_ms must be 0 (never) or more")
        if self.open_s <= 0:
            raise ValueError("open_s must be over 0")

    def stall_ns(self, fps: float | None) -> int:
        """How long without a picture is a stall, in nanoseconds."""
        if self.stall_ms is not None:
            return int(self.stall_ms * 1e6)
        return int(max(USUAL_STALL_NS, 3e9 / fps if fps else 0))

    def frozen_ns(self, usual_ms: float) -> int:
        """How long the same pixels are a frozen picture, in nanoseconds; 0 is never."""
        return int((usual_ms if self.frozen_ms is None else self.frozen_ms) * 1e6)


class RtspOptions(LiveOptions, frozen=True, kw_only=True):
    """Options of ``rtsp://``: ``transport`` (``tcp`` or ``udp``), ``latency_ms`` of the jitter buffer."""

    transport: str = "tcp"
    latency_ms: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transport not in ("tcp", "udp"):
            raise ValueError("transport must be tcp or udp")
        if self.latency_ms < 0:
            raise ValueError("latency_ms must be 0 or more")


class DeviceOptions(LiveOptions, frozen=True, kw_only=True):
    """Options of an attached camera: ``fourcc`` is the pixel format to ask for (``MJPG``, ``YUYV``)."""

    fourcc: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fourcc is not None and len(self.fourcc) != 4:
            raise ValueError("fourcc must have four characters (MJPG, YUYV)")


class CsiOptions(LiveOptions, frozen=True, kw_only=True):
    """Options of ``csi://``: ``flip`` is nvvidconv's flip-method, 0..7 (2 turns by 180 degrees)."""

    flip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.flip <= 7:
            raise ValueError("flip must be 0..7")


class FileOptions(LiveOptions, frozen=True, kw_only=True):
    """Options of a video file.

    Attributes:
        loop: begin again at the end.
        realtime: play at the file's own rate, as a camera would: a slow reader misses frames. Without it
            the file waits to be read and gives every frame, as fast as it is asked.
    """

    loop: bool = False
    realtime: bool = False


class PictureOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of pictures: ``loop`` begins again at the end."""

    loop: bool = False


class PatternOptions(FileOptions, frozen=True, kw_only=True):
    """Options of the test pattern: ``frames`` ends it after so many; ``realtime`` is the default."""

    realtime: bool = True
    frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames is not None and self.frames < 1:
            raise ValueError("frames must be 1 or more")


def read_options(kind: type[T], options: Mapping[str, Any], *, source: str, strict: bool = True) -> T:
    """The options of one kind of source, checked.

    Args:
        kind: the struct of options.
        options: by name, as given.
        source: what the message calls the source; no credentials.
        strict: False also takes numbers written as text (from a URI's query).

    Raises:
        ConfigError: an option is not known for this kind (the message lists those that are), or its
            value cannot be used.
    """
    known = kind.__struct_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"{source}: no option {', '.join(unknown)} for this kind of source; "
            f"there are {', '.join(sorted(known))}"
        )
    plain = {
        key: msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
        for key, value in options.items()
    }
    try:
        return msgspec.convert(plain, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: option cannot be used: {error}") from error
