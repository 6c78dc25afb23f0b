"""Least Kullback-Leibler divergence between the values and their integers (Migacz 2017, "8-bit inference").

The magnitudes lie in 2,048 bins. For each candidate limit the reference is the histogram up to it with
the rest added to its last bin; the candidate is the same histogram, without that rest, merged into 128
levels and spread back over its occupied bins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgesmith.calibration.distribution import Distribution, Window, full

LEVELS = 128
BINS = 2048
STRIDE = 32  # bins between two candidate limits


def window(distribution: Distribution, symmetric: bool) -> Window:
    """Magnitudes up to the limit of least divergence; an asymmetric window is cut at the same limit."""
    whole = full(distribution, symmetric)
    if distribution.reach == 0.0:
        return whole
    best = _limit(distribution)
    if symmetric:
        return Window(-best, best)
    return Window(max(whole.low, -best), min(whole.high, best))


@lru_cache(maxsize=1)  # the symmetric and the asymmetric window ask one after the other
def _limit(distribution: Distribution) -> float:
    width = distribution.reach / BINS
    at = np.minimum((np.abs(distribution.values) / width).astype(np.int64), BINS - 1)
    counts = np.bincount(at, weights=distribution.counts, minlength=BINS).astype(np.float64)
    # Exact zeros are exact at any scale and would outweigh everything else.
    counts[0] = counts[1]
    limits = range(LEVELS, BINS + 1, STRIDE)
    return min(limits, key=lambda limit: _divergence(counts, limit)) * width


def _divergence(counts: NDArray[np.float64], limit: int) -> float:
    inside = counts[:limit]
    reference = inside.copy()
    reference[-1] += counts[limit:].sum()
    level = np.arange(limit) * LEVELS // limit
    occupied = inside > 0
    sums = np.bincount(level, weights=inside, minlength=LEVELS)
    members = np.bincount(level, weights=occupied, minlength=LEVELS)
    spread = np.where(occupied, sums[level] / np.maximum(members[level], 1), 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
    seen = p > 0
    # A bin that only the reference occupies (the clipped rest) costs as if it held almost nothing.
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
