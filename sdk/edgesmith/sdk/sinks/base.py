"""What every sink takes."""

from __future__ import annotations

from typing import Protocol

from edgesmith.sdk.loop.result import Result


class Sink(Protocol):  # not a base class: an integrator's sink fits without importing us
    """Takes results one by one; closed once, also after an error.

    Attributes:
        notes: lines that a person should read at the end (a codec that was not to be had).
    """

    notes: list[str]

    def write(self, result: Result) -> None:
        """Take one result.

        Raises:
            SinkError: it cannot be written.
        """
        ...

    def close(self) -> None:
        """Finish what was begun, so that it can be opened by others."""
        ...
