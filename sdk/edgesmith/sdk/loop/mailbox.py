"""Where threads hand things to one another: one slot a source, one slot between two stages.

Nothing here queues. A slot holds one thing; a fuller hand-over would only make what is handed over
older. Closing wakes every waiter at once and returns what was left, so that it can be counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

Policy = Literal["latest", "every"]
POLICIES: tuple[Policy, ...] = ("latest", "every")
T = TypeVar("T")


class Mailboxes(Generic[T]):
    """One slot for each source, and one reader who is fair to all of them.

    Under ``latest`` a new item takes the place of one that nobody took; under ``every`` the writer
    waits until the slot is free.

    Args:
        policies: the policy of each source.
        merge: makes, of the item that is passed over and the new one, the item to keep.
        passed_over: told the source of each item that was passed over.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        merge: Callable[[T, T], T],
        passed_over: Callable[[int], None],
    ) -> None:
        self._policies = tuple(policies)
        self._merge = merge
        self._passed_over = passed_over
        self._slots: list[T | None] = [None] * len(self._policies)
        self._ended = [False] * len(self._policies)
        self._turn = 0  # who is asked first
        self._changes = 0
        self._closed = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)
        self._listeners: list[Callable[[], None]] = []

    def put(self, source: int, item: T) -> bool:
        """Leave an item; False where the mailboxes were closed, and it was not taken."""
        with self._lock:
            if self._policies[source] == "every":
                while self._slots[source] is not None and not self._closed:
                    self._emptied.wait()
            if self._closed:
                return False
            old = self._slots[source]
            if old is not None:
                item = self._merge(old, item)
                self._passed_over(source)
            self._slots[source] = item
            self._tell()
        return True

    def take(self, most: int = 1, gather_s: float = 0.0) -> list[tuple[int, T]] | None:
        """Wait for items, at most one a source; None when no more will come.

        The source after the one served last comes first, so that none is passed over for ever.

        Args:
            most: how many at once.
            gather_s: after the first item, wait up to so many seconds for items of other sources.
        """
        with self._lock:
            while not self._ready():
                if self._closed or all(self._ended):
                    return None
                self._filled.wait()
            until = time.monotonic() + gather_s
            while not self._closed and self._ready() < min(most, self._possible()):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._filled.wait(left)
            return None if self._closed else self._pick(most)

    def poll(self) -> tuple[int, T] | None:
        """The next item if there is one."""
        with self._lock:
            picked = self._pick(1)
        return picked[0] if picked else None

    @property
    def changes(self) -> int:
        """A number that grows with each change: for :meth:`wait`."""
        return self._changes

    @property
    def over(self) -> bool:
        """Whether no source will give more; what lies in the slots can still be taken."""
        return self._closed or all(self._ended)

    def wait(self, seen: int, timeout_s: float | None) -> None:
        """Sleep until there is a change since ``seen``, or the time is over."""
        with self._lock:
            self._filled.wait_for(lambda: self._changes != seen, timeout_s)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` at each change, in the thread that made it; returns what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def wake(self) -> None:
        """Let whoever waits look again."""
        with self._lock:
            self._tell()

    def holds(self, source: int) -> bool:
        """Whether the source's slot is full."""
        with self._lock:
            return self._slots[source] is not None

    def end(self, source: int) -> None:
        """No more comes from this source; what lies in its slot can still be taken."""
        with self._lock:
            self._ended[source] = True
            self._tell()

    def close(self) -> list[int]:
        """Refuse everything from now on; returns the sources of the items that were left."""
        with self._lock:
            self._closed = True
            left = [source for source, item in enumerate(self._slots) if item is not None]
            self._slots = [None] * len(self._slots)
            self._tell()
            self._emptied.notify_all()
        return left

    def _tell(self) -> None:
        self._changes += 1
        self._filled.notify_all()
        for listener in tuple(self._listeners):
            listener()

    def _ready(self) -> int:
        return sum(item is not None for item in self._slots)

    def _possible(self) -> int:
        return sum(
            item is not None or not ended for item, ended in zip(self._slots, self._ended, strict=True)
        )

    def _pick(self, most: int) -> list[tuple[int, T]]:
        picked: list[tuple[int, T]] = []
        count, first = len(self._slots), self._turn
        for step in range(count):
            source = (first + step) % count
            item = self._slots[source]
            if item is not None and len(picked) < most:
                picked.append((source, item))
                self._slots[source] = None
                self._turn = (source + 1) % count
        if picked:
            self._emptied.notify_all()
        return picked


class HandOver(Generic[T]):
    """One thing between two stages.

    The writer asks for the empty slot *before* it begins its work, so that what it makes is made of
    the newest there is, and never waits behind another. A reader who waits already counts as an empty
    slot: the writer goes on at once, and does not stand still until the reader's thread has woken.
    """

    def __init__(self) -> None:
        self._item: T | None = None
        self._reader_waits = False
        self._finished = False
        self._closed = False
        self._changed = threading.Condition(threading.Lock())

    def reserve(self) -> bool:
        """Wait for the slot to be empty, or about to be; False when the hand-over was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is None or self._reader_waits or self._closed)
            return not self._closed

    def put(self, item: T) -> bool:
        """Leave the item in the slot that was reserved; False when the hand-over was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is None or self._closed)
            if self._closed:
                return False
            self._item = item
            self._changed.notify_all()
            return True

    def take(self) -> T | None:
        """Wait for an item; None when no more will come."""
        with self._changed:
            self._reader_waits = True
            self._changed.wait_for(lambda: self._item is not None or self._finished or self._closed)
            self._reader_waits = False
            item, self._item = self._item, None
            self._changed.notify_all()
            return item

    def finish(self) -> None:
        """No more will be put; what lies there can still be taken."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def close(self) -> T | None:
        """Refuse everything from now on; returns what was left."""
        with self._changed:
            self._closed = True
            item, self._item = self._item, None
            self._changed.notify_all()
            return item
