"""Percentiles of measured times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p90`` and ``p99``, linearly interpolated; zeros where nothing was measured."""
    if not values:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    p50, p90, p99 = np.percentile(np.asarray(values, np.float64), (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99}
