"""Kalman filters of boxes with constant velocity, many at once.

The state is that of SORT and its successors (Bewley et al., 2016; Wojke et al., 2017): centre x and
y, aspect ratio a = w / h, height h, and the change of each a step. The noise grows with the height:
a near object moves more pixels than a far one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_POSITION, _VELOCITY = 1 / 20, 1 / 160  # standard deviations as shares of the height (Wojke et al., 2017)
_MOTION = np.eye(8)
_MOTION[:4, 4:] = np.eye(4)


def to_state(boxes: Floats) -> Floats:
    """Boxes ``(n, 4)`` xyxy as ``(n, 4)`` centre x, centre y, aspect ratio, height."""
    width = np.maximum(boxes[:, 2] - boxes[:, 0], 1e-3)
    height = np.maximum(boxes[:, 3] - boxes[:, 1], 1e-3)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.column_stack([middle, width / height, height])


def to_boxes(states: Floats) -> Floats:
    """The inverse of :func:`to_state`; further columns are left out."""
    height = np.maximum(states[:, 3], 1e-3)
    half = np.column_stack([np.maximum(states[:, 2], 1e-3) * height, height]) / 2
    return np.concatenate([states[:, :2] - half, states[:, :2] + half], axis=1)


def begin(measured: Floats) -> tuple[Floats, Floats]:
    """Means ``(n, 8)`` and covariances ``(n, 8, 8)`` for boxes seen for the first time, at rest."""
    height = measured[:, 3]
    deviations = np.column_stack(
        [*_spread(height, 2 * _POSITION, 1e-2), *_spread(height, 10 * _VELOCITY, 1e-5)]
    )
    return np.concatenate([measured, np.zeros_like(measured)], axis=1), _diagonal(deviations)


def predict(means: Floats, covariances: Floats) -> tuple[Floats, Floats]:
    """One step on: x = F x, P = F P F' + Q."""
    deviations = np.column_stack(
        [*_spread(means[:, 3], _POSITION, 1e-2), *_spread(means[:, 3], _VELOCITY, 1e-5)]
    )
    return means @ _MOTION.T, _MOTION @ covariances @ _MOTION.T + _diagonal(deviations)


def correct(means: Floats, covariances: Floats, measured: Floats) -> tuple[Floats, Floats]:
    """After a measurement ``(n, 4)``: K = P H' (H P H' + R)^-1, x = x + K (z - H x), P = P - K H P."""
    noise = _diagonal(np.column_stack(_spread(means[:, 3], _POSITION, 1e-1)))
    observed = covariances[:, :4, :4] + noise
    # K' solves (H P H' + R) K' = H P, both sides being symmetric.
    gain = np.swapaxes(np.linalg.solve(observed, covariances[:, :4, :]), 1, 2)
    step = gain @ (measured - means[:, :4])[:, :, None]
    return means + step[:, :, 0], covariances - gain @ covariances[:, :4, :]


def _spread(height: Floats, share: float, ratio: float) -> list[Floats]:
    """Standard deviations of x, y, a and h; the aspect ratio's does not depend on the height."""
    size = np.maximum(height, 1e-3) * share
    return [size, size, np.full_like(size, ratio), size]


def _diagonal(deviations: Floats) -> Floats:
    out = np.zeros((*deviations.shape, deviations.shape[1]))
    index = np.arange(deviations.shape[1])
    out[:, index, index] = deviations**2
    return out
