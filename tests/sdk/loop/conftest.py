from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.errors import CameraError

Frame8 = NDArray[np.uint8]


def picture_of(number: int) -> Frame8:
    """A picture that carries its number in its pixels."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
    return image


def number_in(image: Frame8) -> int:
    """The number that :func:`picture_of` put there."""
    low, middle, high = (int(value) for value in image[0, 0])
    return low | middle << 8 | high << 16


class NumberedCamera:
    """Pictures that carry their number; at a rate, or as fast as they are read.

    It can end, fail, fall silent (``hang_at``), and refuse to end when closed (``deaf``).
    """

    def __init__(
        self,
        name: str = "camera",
        *,
        rate: float | None = None,
        count: int | None = None,
        error_at: int | None = None,
        hang_at: int | None = None,
        deaf: bool = False,
    ) -> None:
        self.name = name
        self.fps = rate
        self.length = count
        self.live = rate is not None
        self.faults: list[str] = []
        self.closed = threading.Event()
        self.closings = 0
        self._error_at = error_at
        self._hang_at = hang_at
        self._deaf = deaf

    def frames(self) -> Iterator[Frame]:
        number, begun = 0, time.monotonic()
        while self.length is None or number < self.length:
            if number == self._error_at:
                raise CameraError(f"{self.name} was unplugged", reason="lost")
            if number == self._hang_at:
                if self._deaf:
                    time.sleep(1.8)
                self.closed.wait(30)
            if self.fps is not None:
                self.closed.wait(max(0.0, begun + number / self.fps - time.monotonic()))
            if self.closed.is_set():
                return
            yield Frame(picture_of(number), number, time.monotonic_ns(), None, self.name)
            number += 1

    def close(self) -> None:
        self.closings += 1
        self.closed.set()


class Reading:
    """A model that reads the numbers, slowly if told."""

    def __init__(self, seconds: float = 0.0, limit: int = 1) -> None:
        self.seconds = seconds
        self.limit = limit
        self.batches: list[int] = []

    def __call__(self, frames: Sequence[Frame8]) -> list[Any]:
        self.batches.append(len(frames))
        time.sleep(self.seconds)
        return [number_in(frame) for frame in frames]


@pytest.fixture
def camera() -> type[NumberedCamera]:
    return NumberedCamera


@pytest.fixture
def reading() -> type[Reading]:
    return Reading


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test of a loop leaves a thread behind."""
    yield
    deadline = time.monotonic() + 5
    while (left := _ours()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def _ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edgesmith-")]


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """The frames of each camera that nobody had counted when a loop came to rest."""
    from edgesmith.sdk.loop.account import Account

    seen: list[int] = []
    settle = Account.settle

    def watched(self: Account) -> None:
        stats = self.stats([""] * len(self._entries), ())
        seen.extend(row.in_flight for row in stats.cameras)
        settle(self)

    monkeypatch.setattr(Account, "settle", watched)
    return lambda: seen
