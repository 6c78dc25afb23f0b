"""The stages of a conversion as they pass: shown where somebody looks, timed in any case."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from edgesmith.sdk.cli.output import console

log = logging.getLogger(__name__)


class Stages:
    """``with Stages() as stage: stage("export") ...``: each call ends the stage before it.

    ``seconds`` holds the time of each stage by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._began_ns = time.monotonic_ns()
        self._started_ns = self._began_ns
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> Stages:
        if self._status is not None:
            self._status.start()
        return self

    def __call__(self, name: str) -> None:
        """Begin a stage."""
        self._close()
        self._name, self._began_ns = name, time.monotonic_ns()
        log.info("%s", name)
        if self._status is not None:
            self._status.update(f"{name} ...")

    def say(self, text: str) -> None:
        """Tell where the running stage stands."""
        log.debug("%s: %s", self._name, text)
        if self._status is not None:
            self._status.update(f"{self._name}: {text}")

    @property
    def total(self) -> float:
        """Seconds since the first stage could begin."""
        return (time.monotonic_ns() - self._started_ns) / 1e9

    def _close(self) -> None:
        if self._name is None:
            return
        spent = (time.monotonic_ns() - self._began_ns) / 1e9
        self.seconds[self._name] = spent
        if self._status is not None:
            console.print(f"[green]done[/] {self._name} [dim]{spent:.1f} s[/]")
        self._name = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        if error is None:
            self._close()
