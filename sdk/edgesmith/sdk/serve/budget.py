"""Bytes that requests may hold at one time: uploads and the pixels they become."""

from __future__ import annotations

from types import TracebackType

from edgesmith.sdk.serve.refusal import Refusal


class Budget:
    """A number of bytes, taken and given back; for the thread of the event loop alone."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def hold(self) -> Hold:
        """A request's part, empty at first: ``with budget.hold() as held: held.take(n)``."""
        return Hold(self)


class Hold:
    """What one request holds; given back at the end of its ``with`` block."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._bytes = 0

    def take(self, count: int) -> None:
        """Take more.

        Raises:
            Refusal: 429, others hold too much at this moment; 413, it is more than there is at all.
        """
        budget = self._budget
        if self._bytes + count > budget.limit_bytes:
            raise Refusal(
                413,
                f"the request needs more than the {budget.limit_bytes:,} bytes there are for all: "
                "send smaller or fewer pictures",
                close=True,
            )
        if budget.used_bytes + count > budget.limit_bytes:
            raise Refusal(429, "too many large requests at this moment", retry_after_s=1, close=True)
        budget.used_bytes += count
        self._bytes += count

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.used_bytes -= self._bytes
        self._bytes = 0
