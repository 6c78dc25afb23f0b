"""A share of the values is clipped (Li et al. 2019, "Fully Quantized Network for Object Detection")."""

from __future__ import annotations

import numpy as np

from edgesmith.calibration.distribution import Distribution, Window, full

KEPT = 0.9999  # 99.99 % of the values stay inside


def window(distribution: Distribution, symmetric: bool) -> Window:
    """Magnitudes up to the 99.99th percentile; of an asymmetric window, half of the rest at each end."""
    if distribution.reach == 0.0:
        return full(distribution, symmetric)
    if symmetric:
        order = np.argsort(np.abs(distribution.values))
        magnitudes = np.abs(distribution.values)[order]
        seen = np.cumsum(distribution.counts[order]) / distribution.counts.sum()
        limit = min(
            float(magnitudes[np.searchsorted(seen, KEPT)]) + distribution.width / 2, distribution.reach
        )
        return Window(-limit, limit) if limit > 0 else full(distribution, symmetric)
    seen = np.cumsum(distribution.counts) / distribution.counts.sum()
    tail = (1 - KEPT) / 2
    # The bin in which the percentile lies stays inside as a whole.
    low = float(distribution.values[np.searchsorted(seen, tail)]) - distribution.width / 2
    high = float(distribution.values[np.searchsorted(seen, 1 - tail)]) + distribution.width / 2
    low, high = min(max(low, distribution.low), 0.0), max(min(high, distribution.high), 0.0)
    return Window(low, high) if high > low and low != -high else full(distribution, symmetric)
