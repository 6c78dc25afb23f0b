"""Least squared error between values and integers (Sung et al. 2015; Nagel et al. 2021, equation 5)."""

from __future__ import annotations

import numpy as np

from edgesmith.calibration.distribution import Distribution, Window, error_of, full

# Shares of the full range for the larger end: a coarse walk, then a fine one around its best.
COARSE = np.linspace(0.2, 1.0, 17)
FINE = np.linspace(-0.04, 0.04, 9)
LOWER = (1.0, 0.8, 0.6)  # for the smaller end, which holds few steps (the dip of a SiLU)


def window(distribution: Distribution, symmetric: bool) -> Window:
    """The best of a grid of windows inside the full range, which is among them."""
    whole = full(distribution, symmetric)
    if distribution.reach == 0.0:
        return whole
    found = [whole]
    for part in (1.0,) if symmetric or not min(-whole.low, whole.high) else LOWER:
        share = min(COARSE, key=lambda s: error_of(distribution, _cut(whole, s, part)))
        near = [share + step for step in FINE if share + step <= 1.0]
        found.append(_cut(whole, min(near, key=lambda s: error_of(distribution, _cut(whole, s, part))), part))
    return min(found, key=lambda w: error_of(distribution, w))


def _cut(whole: Window, share: float, part: float) -> Window:
    """The window with its larger end cut to ``share`` and its smaller end to ``part``."""
    if whole.symmetric:
        return Window(-whole.high * share, whole.high * share)
    if -whole.low <= whole.high:
        return Window(whole.low * part, whole.high * share)
    return Window(whole.low * share, whole.high * part)
