"""When to take the next frame, so that it is neither late for the model nor old when the model is free.

A frame that is prepared while the model is busy waits for it, and grows old. It is enough to begin so
early that it is ready when the model is: at the expected end of the run, less the time that
preparing takes. Both are means of the last times, with their mean deviations as the margin, as round trips
are estimated in networks (Jacobson, 1988); a wrong guess costs a little age or a little rate, never a frame.
"""

from __future__ import annotations

import threading
import time

GAIN = 0.125  # share of the newest time in the mean
MARGIN = 2.0  # mean deviations
SLACK_S = 0.001  # for the threads to hand over


class _Estimate:
    """A running mean of times in seconds, and how far they lie from it."""

    def __init__(self) -> None:
        self.mean: float | None = None
        self.deviation = 0.0

    def add(self, seconds: float) -> None:
        if self.mean is None:
            self.mean, self.deviation = seconds, seconds / 2
            return
        self.deviation += 2 * GAIN * (abs(seconds - self.mean) - self.deviation)
        self.mean += GAIN * (seconds - self.mean)


class Pace:
    """Watches the stages ``preprocess`` and ``infer``; asked by the first how long to hold back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prepare, self._infer = _Estimate(), _Estimate()
        self._began: float | None = None

    def prepared(self, seconds: float) -> None:
        """A batch took so long to prepare."""
        with self._lock:
            self._prepare.add(seconds)

    def infer_begins(self) -> None:
        """The model is busy from now on."""
        with self._lock:
            self._began = time.monotonic()

    def infer_ends(self) -> None:
        """The model is free."""
        with self._lock:
            if self._began is not None:
                self._infer.add(time.monotonic() - self._began)
            self._began = None

    def hold_s(self) -> float:
        """How many seconds from now to take the next frame; 0 where the model is free or little is known."""
        with self._lock:
            if self._began is None or self._infer.mean is None or self._prepare.mean is None:
                return 0.0
            free = self._began + self._infer.mean - MARGIN * self._infer.deviation
            needed = self._prepare.mean + MARGIN * self._prepare.deviation + SLACK_S
            return max(0.0, free - needed - time.monotonic())
