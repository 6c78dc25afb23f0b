"""Rows of two detectors' answers brought into one order.

A graph that takes the best K of something gives its rows in the order of their scores. Two engines differ in
the last digits, so near ties swap rows, and at the very end one row may get in for another. As sets the
answers are the same, and as sets they are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MOST_ROWS = 4096  # more than TensorRT's TopK gives: such outputs are dense, and have an order of their own
PIXELS_A_SCORE = 100.0  # a tenth of score weighs as much as ten pixels
EDGE_SCORE = 2e-3  # rows this near to the lowest score may be others
EDGE_SHARE = 0.02  # of the rows


def in_order_of(
    wanted: tuple[Array, Array], got: tuple[Array, Array], *, pixels: float, score: float
) -> tuple[Array, Array]:
    """The rows of ``got`` in the order of ``wanted``; both are boxes (N, K, 4) and scores (N, K, C).

    Answers that agree as they stand, within ``pixels`` and ``score``, that have other shapes, or that are
    dense are given back untouched. Of a list in order of score a few rows with the lowest scores may be
    missing: these are taken as wanted.
    """
    same_shape = wanted[0].shape == got[0].shape and wanted[1].shape == got[1].shape
    if not same_shape or wanted[0].ndim != 3 or wanted[1].ndim != 3 or wanted[0].shape[1] > MOST_ROWS:
        return got
    boxes, scores = got[0].copy(), got[1].copy()
    for image in range(len(boxes)):
        here = wanted[0][image], wanted[1][image]
        if _apart(here, (boxes[image], scores[image]), pixels, score).any():
            order = _nearest(here, (boxes[image], scores[image]))
            boxes[image], scores[image] = boxes[image][order], scores[image][order]
            other = _apart(here, (boxes[image], scores[image]), pixels, score)
            best = here[1].max(1)
            edge = other & (best <= best.min() + EDGE_SCORE)
            if bool((np.diff(best) <= 0).all()) and edge.sum() <= EDGE_SHARE * len(best):
                boxes[image][edge], scores[image][edge] = here[0][edge], here[1][edge]
    return boxes, scores


def _apart(
    wanted: tuple[Array, Array], got: tuple[Array, Array], pixels: float, score: float
) -> NDArray[np.bool_]:
    """Which rows differ by more than is allowed, or hold no numbers."""
    near = (np.abs(wanted[0] - got[0]).max(1) <= pixels) & (np.abs(wanted[1] - got[1]).max(1) <= score)
    return np.asarray(~near)


def _nearest(wanted: tuple[Array, Array], got: tuple[Array, Array]) -> NDArray[np.int64]:
    """For each wanted row, best first, the nearest row that is still free."""
    apart = np.zeros((len(wanted[0]), len(got[0])), np.float32)
    for column in range(4):
        np.maximum(apart, np.abs(wanted[0][:, None, column] - got[0][None, :, column]), out=apart)
    apart += PIXELS_A_SCORE * np.abs(wanted[1].max(1)[:, None] - got[1].max(1)[None])
    apart += PIXELS_A_SCORE * (wanted[1].argmax(1)[:, None] != got[1].argmax(1)[None])
    apart[~np.isfinite(apart)] = 1e30
    order = np.zeros(len(apart), np.int64)
    for row in np.argsort(-wanted[1].max(1), kind="stable"):
        order[row] = apart[row].argmin()
        apart[:, order[row]] = np.inf
    return order
