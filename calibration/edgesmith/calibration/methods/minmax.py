"""Full range: nothing is clipped (Krishnamoorthi 2018, arXiv 1806.08342, section 2.3)."""

from __future__ import annotations

from edgesmith.calibration.distribution import Distribution, Window, full


def window(distribution: Distribution, symmetric: bool) -> Window:
    """From the least to the largest value seen."""
    return full(distribution, symmetric)
