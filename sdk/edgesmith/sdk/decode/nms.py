"""Greedy non-maximum suppression on the host, exact, class by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.manifest import Nms

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_BLOCK = 128


def suppress(
    boxes: Floats, scores: Floats, nms: Nms, *, score: float | None = None, iou: float | None = None
) -> tuple[Floats, Floats, Ints]:
    """Canonical boxes and class scores of one image to the boxes that stay, best first.

    Args:
        boxes: float32 ``(K, 4)`` xyxy, any unit.
        scores: float32 ``(K, C)``, 0..1.
        nms: thresholds, classes a box, candidates and most detections.
        score: threshold in place of ``nms.score``: candidates score more than it.
        iou: threshold in place of ``nms.iou``.

    Returns:
        boxes ``(n, 4)``, scores ``(n,)``, class indices int64 ``(n,)``; n <= ``nms.max_detections``.
    """
    chosen, found, labels = candidates(scores, nms, nms.score if score is None else score)
    near = boxes[chosen]
    keep = greedy(near, labels, nms.iou if iou is None else iou, nms.max_detections)
    return near[keep], found[keep], labels[keep]


def candidates(scores: Floats, nms: Nms, threshold: float) -> tuple[Ints, Floats, Ints]:
    """What enters the suppression: box numbers, scores and classes, best first, ties in box order.

    ``scores`` is ``(K, C)``. At most ``nms.candidates`` come back.
    """
    if nms.classes == "all":
        rows, labels = np.nonzero(scores > threshold)
        found = scores[rows, labels]
    else:
        best = scores.max(1) if scores.shape[1] else np.zeros(len(scores), np.float32)
        rows = np.flatnonzero(best > threshold)
        labels = scores[rows].argmax(1) if len(rows) else np.empty(0, np.int64)
        found = best[rows]
    order = np.argsort(-found, kind="stable")[: nms.candidates]
    return rows[order], found[order], labels[order]


def greedy(boxes: Floats, labels: Ints, iou: float, most: int) -> Ints:
    """Numbers of the boxes that stay, of boxes ``(n, 4)`` sorted best first.

    The best box stays, every later one of its class that overlaps it by more than ``iou`` goes,
    and so on, until ``most`` have stayed. Overlap is compared as ``inter > iou * union``, which
    needs no division and takes empty boxes as never overlapping.
    """
    keep: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(keep) < most:
        # A block of rows at a time: one matrix is cheap, and most images end inside the first.
        over = _overlaps(boxes, labels, left[:_BLOCK], left, iou)
        dead = np.zeros(len(left), np.bool_)
        for row in range(min(_BLOCK, len(left))):
            if not dead[row]:
                keep.append(int(left[row]))
                if len(keep) == most:
                    break
                np.logical_or(dead, over[row], out=dead)
        left = left[_BLOCK:][~dead[_BLOCK:]]
    return np.array(keep, np.int64)


def _overlaps(boxes: Floats, labels: Ints, rows: Ints, columns: Ints, iou: float) -> NDArray[np.bool_]:
    """bool ``(rows, columns)``: same class, and overlapping by more than ``iou``."""
    a, b = boxes[rows].T[:, :, None], boxes[columns].T[:, None]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    inter = np.maximum(width, 0, out=width)
    inter *= np.maximum(height, 0, out=height)
    area_a = np.maximum(a[2] - a[0], 0) * np.maximum(a[3] - a[1], 0)
    area_b = np.maximum(b[2] - b[0], 0) * np.maximum(b[3] - b[1], 0)
    union = area_a + area_b - inter
    union *= np.float32(iou)
    return np.asarray((inter > union) & (labels[rows][:, None] == labels[columns][None]))
