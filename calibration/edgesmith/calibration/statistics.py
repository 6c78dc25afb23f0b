"""What is kept of a tensor while images stream through: a histogram that widens, and channel ranges.

Memory does not depend on the number of images, and the same images in the same order give the same
numbers bit for bit.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import CalibrationError

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
BINS = 4096
HALF = BINS // 2
LEAST_LIMIT = 2.0**-100  # its reciprocal is still a float32
SMALL_MAP = 256  # positions; reducing shorter rows one by one costs more than whole tensors element-wise


class Histogram:
    """Counts of values in ``[-limit, limit)``, in :data:`BINS` equal bins around zero.

    ``limit`` is a power of two. A value outside doubles it until it fits, and pairs of bins are merged: no
    value is lost, and no second pass is needed to learn the range.
    """

    __slots__ = ("counts", "limit")

    def __init__(self, counts: Counts | None = None, limit: float = 0.0) -> None:
        self.counts: Counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.limit = limit

    def add(self, values: Floats, largest: float, scratch: Scratch) -> None:
        """Count flat values whose largest magnitude is ``largest``."""
        if largest >= self.limit:
            self._widen(largest)
        bins = scratch.bins(values.size)
        scaled = scratch.floats(values.size)
        np.multiply(values, np.float32(HALF / self.limit), out=scaled)
        np.add(scaled, np.float32(HALF), out=scaled)
        np.copyto(bins, scaled, casting="unsafe")
        # OpenCV counts 16-bit integers three times as fast as numpy's bincount.
        counted = cv2.calcHist([bins.reshape(1, -1)], [0], None, [BINS], [0, BINS])
        self.counts += counted.reshape(-1).astype(np.int64)

    def _widen(self, largest: float) -> None:
        if largest == 0.0:
            self.limit = self.limit or LEAST_LIMIT
            return
        needed = max(LEAST_LIMIT, 2.0 ** (math.floor(math.log2(largest)) + 1))
        if self.counts.any():
            while self.limit < needed:
                self.counts[HALF // 2 : HALF + HALF // 2] = self.counts.reshape(HALF, 2).sum(1)
                self.counts[: HALF // 2] = 0
                self.counts[HALF + HALF // 2 :] = 0
                self.limit *= 2
        self.limit = max(self.limit, needed)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The ``BINS + 1`` borders of the bins."""
        return np.linspace(-self.limit, self.limit, BINS + 1)


class Scratch:
    """Buffers that all tensors of a pass share."""

    def __init__(self) -> None:
        self._bins = np.empty(0, np.uint16)
        self._floats = np.empty(0, np.float32)

    def bins(self, size: int) -> NDArray[np.uint16]:
        """At least ``size`` elements, of which a view is given."""
        if self._bins.size < size:
            self._bins = np.empty(size, np.uint16)
        return self._bins[:size]

    def floats(self, size: int) -> Floats:
        """At least ``size`` elements, of which a view is given."""
        if self._floats.size < size:
            self._floats = np.empty(size, np.float32)
        return self._floats[:size]


class TensorStatistics:
    """One tensor: its histogram, and the least and largest values over the images.

    The extremes are kept by channel. Those of small maps are kept element by element, which gives the
    channels' at the end and is one vector operation an image.
    """

    __slots__ = ("histogram", "images", "largest", "least", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.histogram = Histogram()
        self.least: Floats | None = None
        self.largest: Floats | None = None
        self.images = 0

    def add(self, values: Floats, scratch: Scratch) -> None:
        """Take one image's tensor, ``(N, C, ...)``; it may be overwritten afterwards.

        Raises:
            CalibrationError: it holds a value that is not a number, or an infinite one.
        """
        small = values.ndim > 3 and math.prod(values.shape[2:]) < SMALL_MAP
        least = values if small else by_channel(values, np.minimum)
        largest = values if small else by_channel(values, np.maximum)
        low, high = float(least.min()), float(largest.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) or math.isnan(high) else "an infinite value"
            raise CalibrationError(f"tensor {self.name} holds {kind}")
        self.histogram.add(values.ravel(), max(-low, high), scratch)
        if self.least is None or self.largest is None:
            self.least, self.largest = least.copy(), largest.copy()
        elif self.least.shape == least.shape:
            np.minimum(self.least, least, out=self.least)
            np.maximum(self.largest, largest, out=self.largest)
        else:
            self.least = np.minimum(by_channel(self.least, np.minimum), by_channel(least, np.minimum))
            self.largest = np.maximum(by_channel(self.largest, np.maximum), by_channel(largest, np.maximum))
        self.images += 1

    @property
    def channel_least(self) -> Floats:
        """Least value of each channel, ``(C,)``; the last axis of a matrix counts as its channels."""
        assert self.least is not None
        return by_channel(self.least, np.minimum).reshape(-1)

    @property
    def channel_largest(self) -> Floats:
        """Largest value of each channel, ``(C,)``."""
        assert self.largest is not None
        return by_channel(self.largest, np.maximum).reshape(-1)


def by_channel(values: Floats, reduce: np.ufunc) -> Floats:
    """``(1, C, 1, ...)`` from ``(N, C, H, W)``, ``(1, C)`` from ``(..., C)``."""
    if values.ndim <= 3:
        return np.asarray(reduce.reduce(values.reshape(-1, values.shape[-1]), axis=0)[None])
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    return np.asarray(reduce.reduce(values, axis=axes, keepdims=True))
