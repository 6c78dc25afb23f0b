"""What every sink takes, and the thread that keeps a slow or dead one away from the loop."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import msgspec
import numpy as np

from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result

log = logging.getLogger(__name__)

Overflow = Literal["oldest", "newest", "wait"]
MOST_BYTES = 128 << 20


class Sink(Protocol):  # not a base class: an integrator's sink fits without importing us
    """Takes results one by one; closed once, also after an error.

    A sink that never looks at pictures says so with ``reads_image = False``, and its queue holds none.

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


@runtime_checkable
class Reopens(Protocol):
    """A sink that can begin anew after an error: called before the next write, with growing pauses."""

    def reopen(self) -> None:
        """Let go of what broke and open it again.

        Raises:
            SinkError: not yet possible.
        """
        ...


@runtime_checkable
class ShowsStates(Protocol):
    """A sink that shows the state of each camera, also of those that give no results."""

    status: Callable[[], Mapping[str, str]] | None


class SinkStats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the results that a sink was given: their number is the sum of the four counts.

    Attributes:
        name: the sink's name.
        written: results that it took.
        dropped: results passed over, because it was too slow, was failing, or ended.
        errors: results that it refused.
        queued: results that wait, the one at hand included.
        error: what it said last, None while it works.
    """

    name: str
    written: int
    dropped: int
    errors: int
    queued: int
    error: str | None


class BackgroundSink:
    """A sink behind a bounded queue and a thread of its own.

    :meth:`write` never raises what the sink raises. After an error the sink is left alone for a while
    (0.2 s, doubling to 5 s, with jitter), opened again where it can be (:class:`Reopens`), and tried with
    the next result; an error is told once, and again only after the sink worked in between.

    Args:
        sink: what to feed. It is written and closed in this thread alone.
        capacity: results that may wait.
        name: what to call it in messages.
        overflow: what a full queue does: ``oldest`` passes over what waits longest (live sinks: a page, a
            broker), ``newest`` what comes (recordings: what was begun stays whole), ``wait`` holds the
            caller up (files, where each frame counts), though never for a sink that is failing.
        most_bytes: size of the pictures that may wait; one result may always.
        flush_s: how long :meth:`close` lets the queue run empty, and again how long it waits for the
            sink to finish.
        backoff_s: shortest and longest pause after an error, in seconds.

    Raises:
        ConfigError: ``capacity`` is below 1, or there is no such ``overflow``.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        capacity: int = 8,
        name: str | None = None,
        overflow: Overflow = "oldest",
        most_bytes: int = MOST_BYTES,
        flush_s: float = 2.0,
        backoff_s: tuple[float, float] = (0.2, 5.0),
    ) -> None:
        self.name = name or type(sink).__name__
        if capacity < 1:
            raise ConfigError(f"sink {self.name}: capacity is {capacity}: at least one result has to fit")
        if overflow not in ("oldest", "newest", "wait"):
            raise ConfigError(f"sink {self.name}: overflow is {overflow!r}: oldest, newest or wait")
        self.sink = sink
        self.notes = sink.notes  # the same list: what either says is read in one place
        self._capacity, self._overflow, self._most_bytes = capacity, overflow, most_bytes
        self._pictures = bool(getattr(sink, "reads_image", True))
        self._flush_s, self._backoff_s = flush_s, backoff_s
        self._changed = threading.Condition()
        self._queue: deque[Result] = deque()
        self._bytes = 0  # of the pictures in the queue
        self._at_hand = 0
        self._written = self._dropped = self._errors = 0
        self._error: str | None = None
        self._failure: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"sink-{self.name}", daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """Queue one result.

        Raises:
            SinkError: the sink was closed before.
        """
        if not self._pictures:
            result = _without_picture(result)
        size = self._size(result)
        with self._changed:
            if self._overflow == "wait":
                self._changed.wait_for(
                    lambda: not self._full(size) or self._error is not None or self._closing
                )
            if self._closing:
                raise SinkError(f"{self.name}: a result came after the sink was closed")
            while self._full(size):
                self._dropped += 1
                if self._overflow != "oldest":
                    return
                self._bytes -= self._size(self._queue.popleft())
            self._queue.append(result)
            self._bytes += size
            self._changed.notify_all()

    def _size(self, result: Result) -> int:
        return result.frame.image.nbytes if self._pictures else 0

    def _full(self, size: int) -> bool:
        waiting = len(self._queue)
        return waiting >= self._capacity or (waiting > 0 and self._bytes + size > self._most_bytes)

    def stats(self) -> SinkStats:
        """The counts of this moment."""
        with self._changed:
            return SinkStats(
                name=self.name,
                written=self._written,
                dropped=self._dropped,
                errors=self._errors,
                queued=len(self._queue) + self._at_hand,
                error=self._error,
            )

    def close(self) -> None:
        """Let the queue run empty and the sink finish, both in bounded time; what is left is counted.

        A sink that does not come back is left to its thread, which a note tells.

        Raises:
            Exception: what the sink raised that was no :class:`SinkError`, a mistake in it.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self._flush_s)
        if self._thread.is_alive():
            with self._changed:
                self._dropped += len(self._queue)
                self._queue.clear()
                self._bytes = 0
            self._thread.join(self._flush_s)
        self._sum_up()
        if self._failure is not None:
            raise self._failure

    def _sum_up(self) -> None:
        stats = self.stats()
        if self._thread.is_alive():
            self.notes.append(f"{self.name}: did not finish in {2 * self._flush_s:g} s and was left alone")
            log.warning("%s", self.notes[-1])
        if stats.errors:
            self.notes.append(f"{self.name}: {stats.errors} results could not be written: {self._last}")
        if stats.dropped:
            self.notes.append(
                f"{self.name}: {stats.dropped} of "
                f"{stats.written + stats.dropped + stats.errors + stats.queued} results were passed over"
            )

    _last = ""  # the text of the latest error, also after the sink recovered

    def _work(self) -> None:
        shortest, longest = self._backoff_s
        pause = shortest
        while (result := self._next()) is not None:
            if self._try(result):
                pause = shortest
                continue
            with self._changed:
                # Jitter: sinks that lost the same disk or broker do not come back in step.
                self._changed.wait_for(lambda: self._closing, pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, longest)
        try:
            self.sink.close()
        except SinkError as error:
            self._told(error)
            self.notes.append(f"{self.name}: could not be finished: {error}")
        except Exception as error:  # a mistake in the sink: close() raises it in the caller's thread
            log.exception("%s: failed while it was closed", self.name)
            self._failure = error

    def _next(self) -> Result | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closing)
            if not self._queue:
                return None
            self._at_hand = 1
            result = self._queue.popleft()
            self._bytes -= self._size(result)
            self._changed.notify_all()
            return result

    def _try(self, result: Result) -> bool:
        """Write one result; False where it failed."""
        failed: Exception | None = None
        try:
            if self._error is not None and isinstance(self.sink, Reopens):
                self.sink.reopen()
            self.sink.write(result)
        except SinkError as error:
            failed = error
        except Exception as error:  # a mistake in the sink must not end the robot's loop
            if self._failure is None:
                log.exception("%s: raised what is no SinkError", self.name)
            failed = self._failure = error
        with self._changed:
            self._at_hand = 0
            if failed is None:
                self._written += 1
                if self._error is not None:
                    log.warning("%s: works again; %d results could not be written", self.name, self._errors)
                self._error = None
            else:
                self._errors += 1
                self._told(failed)
            self._changed.notify_all()
        return failed is None

    def _told(self, error: Exception) -> None:
        self._last = str(error) or type(error).__name__
        if self._error is None:
            log.warning("%s: %s (repeats are counted, not told)", self.name, self._last)
        self._error = self._last


def _without_picture(result: Result) -> Result:
    """The result with a black picture of the same shape that takes no memory."""
    black = np.broadcast_to(np.uint8(0), result.frame.image.shape)
    return replace(result, frame=replace(result.frame, image=black))


def show_states(sinks: Iterable[Sink], status: Callable[[], Mapping[str, str]]) -> None:
    """Let those sinks that show them (the page) ask for the cameras' states, by name of the camera."""
    for sink in sinks:
        shown = sink.sink if isinstance(sink, BackgroundSink) else sink
        if isinstance(shown, ShowsStates):
            shown.status = status


def wall_ns(monotonic_ns: int) -> int:
    """The time of day, in nanoseconds since 1970, of a moment on the monotonic clock.

    Taken anew for each result: a robot's clock is often set while it runs.
    """
    return time.time_ns() - (time.monotonic_ns() - monotonic_ns)
