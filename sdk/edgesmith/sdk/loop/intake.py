"""The stage ``preprocess``: takes the newest frames when the model can use them, and prepares them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.loop.account import Reason
from edgesmith.sdk.loop.mailbox import HandOver, Mailboxes
from edgesmith.sdk.loop.pace import Pace
from edgesmith.sdk.loop.result import after
from edgesmith.sdk.loop.stages import Batch, Item, Staged, preprocess


class Intake:
    """Frames from the mailboxes to the model.

    Args:
        inbox: a slot a camera.
        slot: where prepared batches go.
        steps: the model.
        most: frames of one batch.
        gather_s: how long the first frame waits for those of other cameras.
        max_age_ms: older frames are dropped; None for none.
        pace: asked when to take the next frame; None to take it at once.
        stopping: set when the loop ends.
        drop: told of a frame that is given up.
    """

    def __init__(
        self,
        inbox: Mailboxes[Item],
        slot: HandOver[Batch],
        steps: Staged,
        *,
        most: int,
        gather_s: float,
        max_age_ms: float | None,
        pace: Pace | None,
        stopping: threading.Event,
        drop: Callable[[int, Reason], None],
    ) -> None:
        self._inbox = inbox
        self._slot = slot
        self._steps = steps
        self._most = most
        self._gather_s = gather_s
        self._max_age_ms = max_age_ms
        self._pace = pace
        self._stopping = stopping
        self._drop = drop
        self._stale: dict[int, Frame] = {}  # the last of each camera, until a fresh one tells of it

    def run(self) -> None:
        """The thread's work, until no more comes."""
        while self._slot.reserve():
            if self._pace is not None:
                self._stopping.wait(self._pace.hold_s())
            taken = self._inbox.take(self._most, self._gather_s)
            if taken is None:
                break
            batch = Batch(self._fresh([item for _, item in taken]))
            if batch.items:
                self._prepare(batch)
        self._slot.finish()

    def _prepare(self, batch: Batch) -> None:
        began = time.monotonic()
        try:
            preprocess(self._steps, batch)
        except BaseException:
            self._give_up(batch, "failed")
            raise
        if self._pace is not None:
            self._pace.prepared(time.monotonic() - began)
        if not self._slot.put(batch):
            self._give_up(batch, "stopped")

    def _give_up(self, batch: Batch, reason: Reason) -> None:
        for item in batch.items:
            self._drop(item.source, reason)

    def _fresh(self, items: list[Item]) -> list[Item]:
        if self._max_age_ms is None:
            return items
        oldest = time.monotonic_ns() - int(self._max_age_ms * 1e6)
        fresh = []
        for item in items:
            before = self._stale.pop(item.source, None)
            if before is not None:
                item.frame = after(before, item.frame)
            if item.frame.captured_ns < oldest:
                self._stale[item.source] = item.frame
                self._drop(item.source, "stale")
            else:
                fresh.append(item)
        return fresh
