"""Every resize of :mod:`edgesmith.sdk.preprocess` as one thing: a few weighted pixels per axis.

An output pixel is the weighted sum of ``width`` neighbouring source pixels from ``start`` on, along
each axis on its own. Nearest has one tap, linear two, cubic four, the area mean and the
antialiasing filters as many as the shrink factor asks for. The kernel knows nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import Geometry, cubic_weights

# OpenCV keeps the weights of its 8-bit linear and cubic resize in steps of 1/2048.
_STEP = 2048.0
_WHOLE = 1e-12  # how near to a whole number a shrink factor must be to count as one


class Taps(NamedTuple):
    """For ``n`` outputs along one axis: ``start`` int32 ``(n,)`` and ``weights`` float32 ``(n, width)``.

    Every tap lies inside the source: ``0 <= start`` and ``start + width <= size``.
    """

    start: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def width(self) -> int:
        """Source pixels that one output pixel reads."""
        return int(self.weights.shape[1])


def axis_taps(preprocess: Preprocess, geometry: Geometry) -> tuple[Taps, Taps]:
    """The taps of the rows and of the columns, cut to the part of the picture that the input shows."""
    new_rows, new_columns = geometry.resized
    same = (new_rows, new_columns) == (geometry.height, geometry.width)
    kind: str = "nearest" if same else preprocess.interpolation
    if kind == "area" and (new_rows > geometry.height or new_columns > geometry.width):
        kind = "area-enlarged"
    if preprocess.antialias and not same:
        kind = f"smooth-{kind}"
    rows = _taps(geometry.height, new_rows, kind)
    columns = _taps(geometry.width, new_columns, kind)
    top, left = max(0, -int(geometry.offset_y)), max(0, -int(geometry.offset_x))
    return (
        Taps(rows.start[top : top + geometry.rows], rows.weights[top : top + geometry.rows]),
        Taps(columns.start[left : left + geometry.columns], columns.weights[left : left + geometry.columns]),
    )


@lru_cache(maxsize=32)
def _taps(size: int, new: int, kind: str) -> Taps:
    position, weights = _WEIGHTS[kind](size, new)
    return _inside(size, position, weights)


def _inside(size: int, position: NDArray[np.int64], weights: NDArray[np.float64]) -> Taps:
    """Move every tap that lies outside onto the border pixel, and the start into the picture."""
    count = min(weights.shape[1], size)
    start = np.clip(position, 0, size - count)
    moved = np.zeros((len(position), count))
    rows = np.arange(len(position))
    for tap in range(weights.shape[1]):
        source = np.clip(position + tap, 0, size - 1)
        # A tap of a widening filter may lie beyond the border with no weight: it has no place to go.
        place = np.clip(source - start, 0, count - 1)
        np.add.at(moved, (rows, place), weights[:, tap])
    return Taps(start.astype(np.int32), moved.astype(np.float32))


def _nearest(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # The reciprocal of the scale, not the scale: as OpenCV computes it, to the last bit.
    step = 1.0 / (new / size)
    return np.floor(np.arange(new) * step).astype(np.int64), np.ones((new, 1))


def _centres(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    at = (np.arange(new) + 0.5) * (size / new) - 0.5
    whole = np.floor(at)
    return whole.astype(np.int64), at - whole


def _linear(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    whole, part = _centres(size, new)
    right = np.rint(part * _STEP) / _STEP
    return whole, np.stack([1.0 - right, right], 1)


def _cubic(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # The cubic convolution kernel (Keys, 1981) with a = -0.75.
    whole, x = _centres(size, new)
    a = -0.75
    first = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    second = ((a + 2) * x - (a + 3)) * x * x + 1
    third = ((a + 2) * (1 - x) - (a + 3)) * (1 - x) * (1 - x) + 1
    weights = np.stack([first, second, third, 1 - first - second - third], 1)
    return whole - 1, np.rint(weights * _STEP) / _STEP


def _area(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The mean over the source interval that an output pixel covers."""
    ratio = size / new
    if abs(ratio - round(ratio)) < _WHOLE:
        ratio = float(round(ratio))
    low = np.arange(new) * ratio
    high = np.minimum(low + ratio, size)
    first = np.floor(low).astype(np.int64)
    pixels = first[:, None] + np.arange(int(np.ceil(ratio)) + 1)
    covered = np.minimum(pixels + 1, high[:, None]) - np.maximum(pixels, low[:, None])
    weights = np.clip(covered, 0.0, None)
    weights[weights < 1e-3] = 0.0  # as OpenCV, which leaves slivers out
    if not weights[:, -1].any():
        weights = weights[:, :-1]
    return first, weights / weights.sum(1, keepdims=True)


def _area_enlarged(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What the area mean becomes where a side grows: steps with a linear ramp between them."""
    at = np.arange(new)
    whole = np.floor(at * (1.0 / (new / size)))  # the reciprocal, as for nearest
    # OpenCV goes to single precision before it takes the whole part away: a hair below 1 becomes 0.
    part = ((at + 1) - (whole + 1) * (new / size)).astype(np.float32)
    part = np.where(part <= 0, 0.0, part - np.floor(part)).astype(np.float64)
    right = np.rint(part * _STEP) / _STEP
    return whole.astype(np.int64), np.stack([1.0 - right, right], 1)


def _smooth(size: int, new: int, cubic: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The filters of :func:`edgesmith.sdk.preprocess.prepare` with ``antialias``, cut to their support."""
    stretch = max(size / new, 1.0)
    centres = (np.arange(new) + 0.5) * (size / new)
    reach = (2.0 if cubic else 1.0) * stretch
    first = np.floor(centres - reach).astype(np.int64)
    pixels = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 1)
    x = np.abs((pixels + 0.5 - centres[:, None]) / stretch)
    weights = cubic_weights(x) if cubic else np.clip(1 - x, 0, None)
    weights[(pixels < 0) | (pixels >= size)] = 0.0
    return first, weights / weights.sum(1, keepdims=True)


def _smooth_linear(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return _smooth(size, new, cubic=False)


def _smooth_cubic(size: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return _smooth(size, new, cubic=True)


_WEIGHTS = {
    "nearest": _nearest,
    "linear": _linear,
    "cubic": _cubic,
    "area": _area,
    "area-enlarged": _area_enlarged,
    "smooth-linear": _smooth_linear,
    "smooth-cubic": _smooth_cubic,
}
