"""The last stage: results are made, tracked, given to sinks and callbacks, and laid out for the reader."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.account import Account
from edgesmith.sdk.loop.mailbox import Mailboxes
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.loop.stages import Batch, Item
from edgesmith.sdk.loop.track import Tracker
from edgesmith.sdk.results import Detections


class Writer(Protocol):
    """What the loop asks of a sink; see :class:`edgesmith.sdk.sinks.base.Sink`."""

    notes: list[str]

    def write(self, result: Result) -> None:
        """Take one result."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class Delivery:
    """Gives each result of a batch to everyone who is to have it.

    Args:
        names: of the cameras.
        sinks: written in order.
        trackers: one a camera, or none.
        account: told of each result.
        outbox: where the loop's reader takes results from.
        stop: ends the loop, when the limit is reached.
        stopping: once set, what was not delivered yet is given up.

    Attributes:
        at: how many of the batch at hand were delivered.
        on_result: called after the sinks.
        left: how many results are still wanted; None for no limit.
    """

    def __init__(
        self,
        names: Sequence[str],
        sinks: Sequence[Writer],
        trackers: Sequence[Tracker],
        account: Account,
        outbox: Mailboxes[Result],
        stop: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        self.at = 0
        self.on_result: Callable[[Result], object] | None = None
        self.left: int | None = None
        self._names = names
        self._sinks = sinks
        self._trackers = trackers
        self._account = account
        self._outbox = outbox
        self._stop = stop
        self._stopping = stopping

    def deliver(self, batch: Batch) -> None:
        """Deliver a batch, in the order of its frames."""
        self.at = 0
        for item, answer in zip(batch.items, batch.answers, strict=True):
            if self._stopping.is_set():
                self._account.dropped(item.source, "stopped")
                self.at += 1
                continue
            result = self._result(item, answer, batch)
            for sink in self._sinks:
                sink.write(result)
            if self.on_result is not None:
                self.on_result(result)
            read = self._outbox.put(item.source, result)
            self._account.processed(item.source)
            self.at += 1
            if not read:
                self._account.unread(item.source)
            self._outbox.wake()
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    self._stop()

    def _result(self, item: Item, answer: Any, batch: Batch) -> Result:
        done_ns = batch.done_ns
        if self._trackers:
            if not isinstance(answer, Detections):
                raise ConfigError(
                    f"track goes with detectors: this model answers {type(answer).__name__}; leave it out"
                )
            started = time.monotonic_ns()
            # Frames that were passed over are steps of the motion too.
            answer = self._trackers[item.source].update(answer, steps=1 + item.frame.dropped)
            done_ns = time.monotonic_ns()
            item.stages_ms["track"] = (done_ns - started) / 1e6
            item.ages_ms["track"] = (done_ns - item.frame.captured_ns) / 1e6
        return Result(
            item.frame,
            answer,
            item.stages_ms,
            done_ns,
            item.ages_ms,
            self._names[item.source],
            len(batch.items),
        )


def behind_a_queue(sink: Writer) -> Writer:
    """The sink with a bounded queue and a thread of its own, where it has none yet."""
    # By path: sinks take this package's results, so the import goes the other way.
    background: Any = importlib.import_module("edgesmith.sdk.sinks.base").BackgroundSink
    wrapped: Writer = sink if isinstance(sink, background) else background(sink)
    return wrapped
