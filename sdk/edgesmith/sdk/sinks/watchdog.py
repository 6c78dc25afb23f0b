"""systemd's readiness and watchdog protocol, in plain Python.

A service with ``Type=notify`` and ``WatchdogSec=`` is told ``READY=1`` at the first result, then
``WATCHDOG=1`` as results come: a loop that hangs, or a camera that gives nothing, ends in a restart.
The protocol is a datagram of ``KEY=VALUE`` lines to the socket in ``NOTIFY_SOCKET`` (sd_notify(3)).
"""

from __future__ import annotations

import logging
import os
import socket
import time

from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.vitals import Vitals

log = logging.getLogger(__name__)


def notify(*lines: str) -> bool:
    """Send lines such as ``READY=1`` to the service manager.

    Returns:
        False where no service manager listens (``NOTIFY_SOCKET`` is not set).

    Raises:
        OSError: the socket does not take it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.settimeout(1.0)
        to.connect(address)
        to.sendall("\n".join(lines).encode())
    return True


def watchdog_s() -> float | None:
    """Seconds within which the service manager wants to hear of this process; None where it does not."""
    given = os.environ.get("WATCHDOG_USEC", "")
    # The variable is handed on to children, whose sign of life is not wanted.
    if (
        not given.isdecimal()
        or int(given) == 0
        or os.environ.get("WATCHDOG_PID") not in (None, str(os.getpid()))
    ):
        return None
    return int(given) / 1e6


class SystemdWatchdog:
    """A sink that feeds the watchdog: at the first result, then twice and more in its time.

    ``STATUS=`` (``systemctl status``) says the number of results, the rate and the age. Without a service
    manager it does nothing, which a note tells.

    Args:
        status_s: seconds between two status lines.
    """

    reads_image = False

    def __init__(self, *, status_s: float = 5.0) -> None:
        self.notes: list[str] = []
        self._listens = bool(os.environ.get("NOTIFY_SOCKET"))
        if not self._listens:
            self.notes.append("watchdog: no service manager listens (NOTIFY_SOCKET is not set)")
        wanted = watchdog_s()
        # A third of the time: one late result does not end in a restart.
        self._every_s = min(status_s, wanted / 3) if wanted is not None else status_s
        self._status_s = status_s
        self._vitals = Vitals()
        self._fed: float | None = None
        self._told: float | None = None

    def write(self, result: Result) -> None:
        """A sign of life.

        Raises:
            SinkError: the service manager's socket does not take it.
        """
        if not self._listens:
            return
        self._vitals.add(result)
        now = time.monotonic()
        if self._fed is not None and now - self._fed < self._every_s:
            return
        lines = ["WATCHDOG=1"] if self._fed is not None else ["READY=1", "WATCHDOG=1"]
        if self._told is None or now - self._told >= self._status_s:
            lines.append(f"STATUS={self._status()}")
            self._told = now
        self._send(*lines)
        self._fed = now

    def _status(self) -> str:
        cameras = self._vitals.cameras()
        frames = sum(c["frames"] for c in cameras)
        fps = sum(c["fps"] for c in cameras)
        age = max(c["age_ms"]["p50"] for c in cameras)
        return f"{frames} results from {len(cameras)} cameras, {fps:.1f} a second, {age:.0f} ms old"

    def close(self) -> None:
        """Tell that the end is on purpose."""
        if self._listens:
            self._send("STOPPING=1")

    @staticmethod
    def _send(*lines: str) -> None:
        try:
            notify(*lines)
        except OSError as error:
            raise SinkError(f"watchdog: NOTIFY_SOCKET: {error.strerror or error}") from error
