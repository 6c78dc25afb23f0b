"""From the distribution of a tensor to the window of values that its integers cover, one file a method."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from edgesmith.calibration.distribution import Distribution, Window, error_of

# name: module with `window(distribution, symmetric) -> Window`
METHODS: dict[str, str] = {
    "minmax": "edgesmith.calibration.methods.minmax",
    "percentile": "edgesmith.calibration.methods.percentile",
    "entropy": "edgesmith.calibration.methods.entropy",
    "mse": "edgesmith.calibration.methods.mse",
}


def windows_of(distribution: Distribution, *, symmetric: bool) -> dict[str, Window]:
    """The window that each method chooses, and under ``auto`` the one with the least squared error."""
    windows = {}
    for name, path in METHODS.items():
        find: Callable[[Distribution, bool], Window] = importlib.import_module(path).window
        windows[name] = find(distribution, symmetric)
    windows["auto"] = min(windows.values(), key=lambda window: error_of(distribution, window))
    return windows
