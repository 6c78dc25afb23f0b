"""Percentiles of measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_PERCENTS = (50, 90, 99)
_GROWTH = math.log(1.01)  # of a bucket's upper bound over its lower: an answer is within 0.5 %
_SMALLEST = 1e-6


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p90`` and ``p99``, linearly interpolated; zeros where nothing was measured."""
    if not values:
        return {f"p{percent}": 0.0 for percent in _PERCENTS}
    found = np.percentile(np.asarray(values, np.float64), _PERCENTS).tolist()
    return {f"p{percent}": value for percent, value in zip(_PERCENTS, found, strict=True)}


class Spread:
    """Percentiles of values that keep coming, in memory that does not grow with them.

    Counts values in buckets whose bounds grow by 1 %, so that each percentile is within 0.5 % (DDSketch:
    Masson, Rim and Lee, 2019, section 2). Values are 0 or more; those below 1e-6 count as that.

    >>> spread = Spread()
    >>> for value in range(1, 1001):
    ...     spread.add(value)
    >>> {name: round(value) for name, value in spread.percentiles().items()}
    {'p50': 500, 'p90': 899, 'p99': 993}
    """

    def __init__(self) -> None:
        self.count = 0
        self._buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        """Count one value."""
        bucket = math.ceil(math.log(max(value, _SMALLEST)) / _GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def percentiles(self) -> dict[str, float]:
        """``p50``, ``p90`` and ``p99``; zeros where nothing was counted."""
        if not self.count:
            return percentiles([])
        numbers = sorted(self._buckets)
        up_to = np.cumsum([self._buckets[number] for number in numbers])
        found = {}
        for percent in _PERCENTS:
            rank = percent / 100 * (self.count - 1)
            number = numbers[int(np.searchsorted(up_to, rank, side="right"))]
            # The value that is as far, in proportion, from both of the bucket's bounds.
            found[f"p{percent}"] = 2 * math.exp(number * _GROWTH) / (1 + math.exp(_GROWTH))
        return found
