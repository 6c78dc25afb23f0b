"""The caller's side of a loop: the next result, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgesmith.sdk.errors import StaleFrameError
from edgesmith.sdk.loop.account import Account
from edgesmith.sdk.loop.faults import Faults
from edgesmith.sdk.loop.mailbox import Mailboxes
from edgesmith.sdk.loop.result import Result


class LoopOver(Exception):
    """No more results will come. Never leaves the loop: each face has its own word for it."""


class Reader:
    """Takes results from the outbox, and raises what the caller has to know.

    Args:
        names: of the cameras.
        outbox: where the last stage lays results.
        account: knows how old each camera's newest frame is.
        faults: what went wrong.
        max_age_ms: nothing older is given; None for no limit.
        go_on: whether the loss of some cameras leaves the loop running.
        state_of: a word for a camera's state.
    """

    def __init__(
        self,
        names: Sequence[str],
        outbox: Mailboxes[Result],
        account: Account,
        faults: Faults,
        *,
        max_age_ms: float | None,
        go_on: bool,
        state_of: Callable[[int], str],
    ) -> None:
        self._names = names
        self._outbox = outbox
        self._account = account
        self._faults = faults
        self._max_age_ms = max_age_ms
        self._go_on = go_on
        self._state_of = state_of
        self._told_stale: dict[int, int] = {}  # when a camera may be called stale again

    def next(self, until: float | None = None) -> Result | None:
        """The next result; None when ``time.monotonic()`` reaches ``until`` first.

        Raises:
            LoopOver: there are no more.
            StaleFrameError: a camera's newest frame is too old.
            CameraError: a camera was lost.
            Exception: what a thread raised.
        """
        while True:
            seen = self._outbox.changes  # taken before the look, so that no change is slept through
            result, timeout = self.poll()
            if result is not None:
                return result
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    return None
                timeout = left if timeout is None else min(left, timeout)
            self._outbox.wait(seen, timeout)

    def poll(self) -> tuple[Result | None, float | None]:
        """A result, or how many seconds until a camera may be stale (None: no such time)."""
        self._faults.check()
        over = self._outbox.over  # asked before the slots: what comes in between is not missed
        self._raise_lost()
        taken = self._outbox.poll()
        if taken is not None:
            self._refuse_old(*taken)
            return taken[1], None
        self._raise_lost()  # it may have been the last of what the lost camera gave
        if over:
            raise LoopOver
        return None, self._stale_in()

    def _refuse_old(self, source: int, result: Result) -> None:
        age_ms = (time.monotonic_ns() - result.frame.captured_ns) / 1e6
        if self._max_age_ms is not None and age_ms > self._max_age_ms:
            self._account.unread(source)
            raise self._stale(source, age_ms, "the model, or the program between two results, takes longer")

    def _stale_in(self) -> float | None:
        if self._max_age_ms is None:
            return None
        now, allowed = time.monotonic_ns(), int(self._max_age_ms * 1e6)
        waits = []
        for source in range(len(self._names)):
            newest = self._account.newest_ns(source)
            if newest is None:
                continue
            due = max(newest + allowed, self._told_stale.get(source, 0))
            if now >= due:
                self._told_stale[source] = now + allowed
                raise self._stale(source, (now - newest) / 1e6, f"the camera is {self._state_of(source)}")
            waits.append(due - now)
        return min(waits) / 1e9 if waits else None

    def _stale(self, source: int, age_ms: float, why: str) -> StaleFrameError:
        name = self._names[source]
        return StaleFrameError(
            f"{name}: the newest frame is {age_ms:.0f} ms old and {self._max_age_ms:g} ms are allowed: "
            f"{why}; ask the loop again to go on",
            camera=name,
            age_ms=age_ms,
        )

    def _raise_lost(self) -> None:
        """Raise what a camera died of, once the results of its frames have been read."""
        if self._go_on and len(self._faults.lost) < len(self._names):
            return
        for source, error in list(self._faults.lost.items()):
            if self._account.at_rest(source) and not self._outbox.holds(source):
                self._faults.add(error)
                self._faults.check()
