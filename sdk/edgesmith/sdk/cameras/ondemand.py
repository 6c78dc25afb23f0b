"""A source that waits to be read: every frame, in order, as fast as it is asked."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from edgesmith.sdk.cameras.base import CameraState, CameraStatus, Frame
from edgesmith.sdk.cameras.book import OnState

log = logging.getLogger(__name__)


class OnDemandCamera(ABC):
    """States, counts and closing around a generator of frames, which a subclass gives.

    ``close()`` may come from another thread: the reader ends at the next frame.
    """

    live = False

    def __init__(
        self,
        name: str,
        *,
        fps: float | None = None,
        length: int | None = None,
        on_state: OnState | None = None,
    ) -> None:
        self.name = name
        self.fps = fps
        self.length = length
        self.faults: list[str] = []
        self._on_state = on_state
        self._closed = threading.Event()
        self._status = CameraStatus(state=CameraState.OPENING, since_ns=time.monotonic_ns())

    @abstractmethod
    def _read(self) -> Iterator[Frame]:
        """The frames; where the last call stopped, the next one goes on."""

    def frames(self) -> Iterator[Frame]:
        """Frames in order, until the source ends or is closed.

        Raises:
            CameraError: the source cannot be read on.
        """
        try:
            for frame in self._read():
                if self._closed.is_set():
                    break
                self._count(frame)
                yield frame
        except Exception as error:
            self._to(CameraState.FAILED, getattr(error, "reason", "") or "error", str(error))
            raise
        if not self._status.state.over:
            self._to(CameraState.ENDED, "end", "the source came to its end")

    @property
    def state(self) -> CameraState:
        """Where it is now."""
        return self._status.state

    def status(self) -> CameraStatus:
        """State and counts at this moment."""
        return self._status

    def close(self) -> None:
        """Let go of the source; from any thread, more than once."""
        self._closed.set()
        if not self._status.state.over:
            self._to(CameraState.ENDED, "closed", "the source was closed")

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        log.warning("%s", text)

    def _count(self, frame: Frame) -> None:
        if self._status.state is not CameraState.STREAMING:
            self._to(CameraState.STREAMING, "", "")
        height, width = frame.image.shape[:2]
        self._replace(
            frames=self._status.frames + 1 + frame.dropped,
            delivered=self._status.delivered + 1,
            dropped=self._status.dropped + frame.dropped,
            last_frame_ns=frame.captured_ns,
            size=(width, height),
        )

    def _to(self, state: CameraState, reason: str, detail: str) -> None:
        self._replace(state=state, since_ns=time.monotonic_ns(), reason=reason, detail=detail)
        if self._on_state is not None:
            self._on_state(self._status)

    def _replace(self, **changes: object) -> None:
        fields = {name: getattr(self._status, name) for name in CameraStatus.__struct_fields__}
        self._status = CameraStatus(**{**fields, **changes})
