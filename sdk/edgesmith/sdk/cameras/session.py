"""One connection to a source: what runs it, and the line on which it hands pictures over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class Grab:
    """One picture as it was grabbed; copied out or decoded only when somebody wants the pixels.

    Attributes:
        captured_ns: ``time.monotonic_ns`` at the grab.
        source_ns: the stream's own timestamp, or None.
        size: ``(width, height)``, or None where that is known only after decoding.
    """

    __slots__ = ("_pixels", "captured_ns", "size", "source_ns")

    def __init__(
        self,
        pixels: Pixels | Callable[[], Pixels],
        *,
        captured_ns: int | None = None,
        source_ns: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._pixels = pixels
        self.captured_ns = time.monotonic_ns() if captured_ns is None else captured_ns
        self.source_ns = source_ns
        self.size = size if callable(pixels) else (pixels.shape[1], pixels.shape[0])

    def image(self) -> Pixels:
        """BGR uint8 ``(H, W, 3)``; the work is done once.

        Raises:
            CameraError: the picture is damaged.
        """
        if callable(self._pixels):
            self._pixels = self._pixels()
            self.size = (self._pixels.shape[1], self._pixels.shape[0])
        return self._pixels


class Link(Protocol):
    """The line from one connection to its camera; the connection's thread calls all of this."""

    @property
    def closing(self) -> bool:
        """Whether to let go and return: the camera was closed, or this connection was given up."""
        ...

    def put(self, grab: Grab) -> None:
        """Hand over the newest picture; one that still waits is dropped and counted.

        Raises:
            CameraFormatError: the picture does not have the size that was asked for.
        """
        ...

    def rate(self, fps: float) -> None:
        """State the source's nominal rate, once it is known.

        Raises:
            CameraFormatError: another one was asked for.
        """
        ...

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past closing; returns whether it is closing."""
        ...

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Set what wakes a blocked read; called from another thread, must not block."""
        ...

    def hint(self, reason: str, detail: str) -> None:
        """What a stall, should one follow, is due to."""
        ...

    def fault(self, text: str) -> None:
        """Something could not be read, and reading goes on."""
        ...


# Connects, hands pictures over until the source ends (then it returns) or `link.closing`, and lets go of
# everything before it returns. Raises CameraError: the connection failed or was lost; its `reason` says
# whether trying again can help.
Session = Callable[[Link], None]
