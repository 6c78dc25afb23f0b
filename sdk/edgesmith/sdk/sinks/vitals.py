"""How each camera of a running loop does, from the results alone."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgesmith.sdk.board.sensors import thermal_zones
from edgesmith.sdk.loop.result import Answer, Result
from edgesmith.sdk.maps import Region, Tensors
from edgesmith.sdk.percentiles import percentiles
from edgesmith.sdk.results import Classification, Classifications, Detection
from edgesmith.sdk.sinks.naming import camera_of

_WINDOW = 300
_THERMAL = Path("/sys/class/thermal")


class _Camera:
    def __init__(self) -> None:
        self.frames = self.dropped = 0
        self.arrived: deque[int] = deque(maxlen=_WINDOW)
        self.ages: deque[float] = deque(maxlen=_WINDOW)
        self.stages: dict[str, deque[float]] = {}
        self.size = (0, 0)
        self.answer: Answer | None = None


class Vitals:
    """Counts, rates and percentiles a camera; any thread may add, any may read.

    Args:
        stale_s: seconds without a result after which a camera counts as stalled.
    """

    def __init__(self, *, stale_s: float = 5.0) -> None:
        self.stale_s = stale_s
        self._lock = threading.Lock()
        self._cameras: dict[str, _Camera] = {}
        self._began_ns = time.monotonic_ns()
        self._last_ns: int | None = None

    def add(self, result: Result) -> None:
        """Count one result."""
        now, frame = time.monotonic_ns(), result.frame
        with self._lock:
            camera = self._cameras.setdefault(camera_of(result), _Camera())
            camera.frames += 1
            camera.dropped += result.dropped
            camera.arrived.append(now)
            camera.ages.append(result.age_ms)
            for stage, ms in result.stages_ms.items():
                camera.stages.setdefault(stage, deque(maxlen=_WINDOW)).append(ms)
            camera.size = (frame.image.shape[0], frame.image.shape[1])
            camera.answer = result.answer  # counted when somebody asks
            self._last_ns = now

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether results come, and since when there was none, in seconds."""
        with self._lock:
            last = self._last_ns
        since = (time.monotonic_ns() - (self._began_ns if last is None else last)) / 1e9
        well = last is not None and since <= self.stale_s
        state = "ok" if well else "starting" if last is None else "stalled"
        return well, {"state": state, "since_last_s": round(since, 3)}

    def cameras(self) -> list[dict[str, Any]]:
        """One object a camera, in the order they came.

        ``source``, ``state`` (``streaming`` or ``stalled``), ``frames``, ``dropped``, ``fps``, ``age_ms``
        and ``stages_ms`` (percentiles of the last 300 results), ``size`` (H, W), ``found`` (number by class
        name), ``since_last_s``.
        """
        now = time.monotonic_ns()
        with self._lock:
            return [_told(source, camera, now, self.stale_s) for source, camera in self._cameras.items()]

    @property
    def uptime_s(self) -> float:
        """Seconds since the counting began."""
        return (time.monotonic_ns() - self._began_ns) / 1e9


def _told(source: str, camera: _Camera, now: int, stale_s: float) -> dict[str, Any]:
    since = (now - camera.arrived[-1]) / 1e9
    # The rate of the last 5 s, so that a camera that slows down shows it at once.
    recent = [t for t in camera.arrived if now - t <= 5e9]
    span = (recent[-1] - recent[0]) / 1e9 if len(recent) > 1 else 0.0
    return {
        "source": source,
        "state": "stalled" if since > stale_s else "streaming",
        "frames": camera.frames,
        "dropped": camera.dropped,
        "fps": (len(recent) - 1) / span if span else 0.0,
        "age_ms": percentiles(list(camera.ages)),
        "stages_ms": {name: percentiles(list(times)) for name, times in camera.stages.items()},
        "size": list(camera.size),
        "found": _found(camera.answer),
        "since_last_s": since,
    }


def _found(answer: Answer | None) -> dict[str, int]:
    if answer is None:
        return {}
    if isinstance(answer, Tensors):
        return {}
    items: Iterable[Detection | Classification | Region] = answer
    if isinstance(answer, Classifications):
        items = answer.top_k(1)
    return dict(Counter(item.name for item in items))


def temperatures(root: Path = _THERMAL) -> dict[str, float]:
    """Degrees Celsius by thermal zone, the hottest first; empty where the machine has none."""
    return thermal_zones(root)
