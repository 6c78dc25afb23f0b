"""What a live camera's threads know together: its state, its counts, and the picture that waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgesmith.sdk.cameras.base import CameraState, CameraStatus
from edgesmith.sdk.cameras.session import Grab

log = logging.getLogger(__name__)

MOST_FAULTS = 100  # lines kept: a camera may run for months

OnState = Callable[[CameraStatus], None]


class Book:
    """State and counts of one live camera; whoever reads or writes a field holds ``lock``.

    Attributes:
        news: told of a picture or a change of state; the reader waits on it.
        events: told of a change of state, a session's end or closing; the supervisor waits on it.
        slot: the newest picture and its number, until the reader takes it.
        error: what ``frames()`` raises, once the camera has failed.
    """

    def __init__(self, name: str, on_state: OnState | None) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.news = threading.Condition(self.lock)
        self.events = threading.Condition(self.lock)
        self.state = CameraState.OPENING
        self.reason = self.detail = ""
        self.closing = False
        self.error: BaseException | None = None
        self.slot: tuple[int, Grab] | None = None
        self.frames = self.delivered = self.reconnects = self.abandoned = 0
        self.last_frame_ns: int | None = None
        self.size: tuple[int, int] | None = None
        self.faults: list[str] = []
        self._since_ns = time.monotonic_ns()
        self._on_state = on_state
        self._untold: list[CameraStatus] = []

    def to(self, state: CameraState, reason: str = "", detail: str = "") -> None:
        """Come into a state; the lock is held."""
        if state is not self.state:
            self._since_ns = time.monotonic_ns()
        elif reason == self.reason:
            self.detail = detail
            return
        self.state, self.reason, self.detail = state, reason, detail
        if self._on_state is not None:
            self._untold.append(self.status())
        self.events.notify_all()
        self.news.notify_all()

    def change(self, state: CameraState, reason: str, detail: str) -> None:
        """Come into a state; takes the lock."""
        with self.lock:
            self.to(state, reason, detail)

    def fail(self, error: BaseException) -> None:
        """Come to a bad end; takes the lock."""
        with self.lock:
            self.error = error
            self.to(CameraState.FAILED, getattr(error, "reason", "") or "error", str(error))

    def close(self) -> None:
        """Wake everybody to go home; takes the lock."""
        with self.lock:
            self.closing = True
            self.slot = None
            self.news.notify_all()
            self.events.notify_all()

    def status(self) -> CameraStatus:
        """All of it at one moment; the lock is held."""
        return CameraStatus(
            state=self.state,
            since_ns=self._since_ns,
            reason=self.reason,
            detail=self.detail,
            reconnects=self.reconnects,
            frames=self.frames,
            delivered=self.delivered,
            dropped=self.frames - self.delivered - (self.slot is not None),
            abandoned=self.abandoned,
            last_frame_ns=self.last_frame_ns,
            size=self.size,
        )

    @property
    def untold(self) -> bool:
        """Whether ``on_state`` has not heard of something yet."""
        return bool(self._untold)

    def tell(self) -> None:
        """Tell ``on_state`` of each change, in order; one thread only, without the lock."""
        while True:
            with self.lock:
                if not self._untold or self._on_state is None:
                    return
                status = self._untold.pop(0)
            try:
                self._on_state(status)
            except Exception:
                log.exception("%s: on_state raised", self.name)

    def fault(self, text: str) -> None:
        """Note what could not be read; takes the lock."""
        log.debug("%s: %s", self.name, text)
        with self.lock:
            if len(self.faults) < MOST_FAULTS:
                self.faults.append(f"{self.name}: {text}")
                if len(self.faults) == MOST_FAULTS:
                    self.faults.append(f"{self.name}: further faults are not listed")
