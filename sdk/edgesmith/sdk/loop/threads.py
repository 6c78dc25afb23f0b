"""The threads of a loop: started together, ended together, what one raises is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Threads:
    """Daemon threads with a name; an exception in one goes to ``failed``."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread of its own."""
        thread = threading.Thread(target=self._guarded, args=(work,), name=f"edgesmith-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller's thread raises it
            self._failed(error)

    def join(self, until: float) -> list[str]:
        """Wait until ``time.monotonic()`` is ``until``; the names of the threads that still run."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        return self.alive()

    def alive(self) -> list[str]:
        """The names of the threads that still run, the caller's own left out."""
        me = threading.current_thread()
        return [t.name for t in self._threads if t.is_alive() and t is not me]
