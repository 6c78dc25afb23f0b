"""The distribution of a tensor's values, and what a window of integers makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesmith.calibration.statistics import TensorStatistics

Floats64 = NDArray[np.float64]
STEPS = 255  # intervals of an 8-bit integer, -128..127
HALF_STEPS = 127  # of a symmetric one, -127..127


class Window(NamedTuple):
    """Values that the integers cover: ``low <= 0 <= high``."""

    low: float
    high: float

    @property
    def symmetric(self) -> bool:
        """True where zero lies in the middle."""
        return self.low == -self.high

    @property
    def scale(self) -> float:
        """Width of one integer step."""
        return self.high / HALF_STEPS if self.symmetric else (self.high - self.low) / STEPS

    @property
    def shift(self) -> int:
        """Steps between zero and the window's middle: ``q = round(x / scale) - shift``.

        Whole steps, so that zero stays exact.
        """
        return 0 if self.symmetric else round(self.low / self.scale) + 128


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Centres of the occupied bins, the values in each, and the exact extremes (zero included)."""

    values: Floats64
    counts: Floats64
    low: float
    high: float
    width: float  # of a bin

    @classmethod
    def of(cls, statistics: TensorStatistics) -> Distribution:
        """The distribution that the statistics hold."""
        edges = statistics.histogram.edges
        occupied = np.flatnonzero(statistics.histogram.counts)
        centres = (edges[occupied] + edges[occupied + 1]) / 2
        low = float(min(statistics.channel_least.min(), 0.0))
        high = float(max(statistics.channel_largest.max(), 0.0))
        # Bins are wider than the exact extremes; an exact zero (half of a ReLU) sits on a border.
        exact = np.clip(centres, low, high)
        width = edges[1] - edges[0]
        exact[np.abs(exact) <= 0.51 * width] = 0.0
        return cls(exact, statistics.histogram.counts[occupied].astype(np.float64), low, high, float(width))

    @property
    def reach(self) -> float:
        """Largest magnitude."""
        return max(-self.low, self.high)


def full(distribution: Distribution, symmetric: bool) -> Window:
    """The window that loses nothing; a tensor of zeros gets a small one."""
    if distribution.reach == 0.0:
        return Window(-1e-6, 1e-6)
    if symmetric:
        return Window(-distribution.reach, distribution.reach)
    return Window(distribution.low, distribution.high)


def error_of(distribution: Distribution, window: Window) -> float:
    """Mean squared difference that rounding and clipping to the window's integers make."""
    scale, shift = window.scale, window.shift
    least = -HALF_STEPS if window.symmetric else -128
    steps = np.clip(np.rint(distribution.values / scale) - shift, least, 127) + shift
    difference = distribution.values - steps * scale
    # Within one bin values are spread evenly; a bin wider than a step would hide that rounding error.
    return float((distribution.counts * difference * difference).sum() / distribution.counts.sum())


def clipped(distribution: Distribution, window: Window) -> float:
    """Share (0..1) of the values that lie outside the window."""
    slack = window.scale / 2
    outside = (distribution.values < window.low - slack) | (distribution.values > window.high + slack)
    return float(distribution.counts[outside].sum() / distribution.counts.sum())
