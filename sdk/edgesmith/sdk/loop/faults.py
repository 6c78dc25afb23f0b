"""What went wrong in the threads of a loop, until the caller has been told."""

from __future__ import annotations

import logging
import threading

from edgesmith.sdk.errors import CameraError

log = logging.getLogger(__name__)


class Faults:
    """The first error of a stage, and the cameras that were lost.

    Attributes:
        lost: the error of each camera that failed, by its number.
    """

    def __init__(self) -> None:
        self.lost: dict[int, CameraError] = {}
        self._error: BaseException | None = None
        self._told = False
        self._lock = threading.Lock()

    def add(self, error: BaseException) -> None:
        """A thread failed. The first error is the one that the caller gets; others are logged."""
        with self._lock:
            if self._error is None:
                self._error = error
                return
        if error is not self._error:
            log.error("also failed: %s: %s", type(error).__name__, error)

    def lose(self, source: int, error: CameraError) -> None:
        """A camera failed."""
        with self._lock:
            self.lost[source] = error

    def check(self) -> None:
        """Raise the error, if there is one, with the traceback of its thread."""
        if self._error is not None:
            self._told = True
            raise self._error

    def check_untold(self) -> None:
        """Raise the error if the caller has not seen it yet."""
        if not self._told:
            self.check()
