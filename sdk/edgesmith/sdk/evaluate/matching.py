"""COCO average precision that is matched once and scored as often as one likes.

The protocol of Lin et al. 2014 ("Microsoft COCO: Common Objects in Context") as its reference code has it,
for boxes, objects of all sizes, at most 100 detections an image and class. Matching does not depend on which
images are drawn, so a bootstrap needs it once; a draw then is a sum in which each image counts as often as it
was drawn.

    matches = match(truth, found)
    average_precisions(matches)             # (1, 10): one row, a column for each overlap
    average_precisions(matches, counts)     # (draws, 10) for counts (draws, images)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.results import Detections

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_LIMITS = np.minimum(OVERLAPS, 1 - 1e-10)  # the reference's own guard, which no rounded 1.0 falls below
_MOST = 100  # detections of an image and class
_AT_ONCE = 1 << 22  # numbers in one array of a block of draws: 32 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The objects of ``size`` images.

    Attributes:
        size: number of images.
        images: int ``(n,)`` 0..size-1.
        classes: int ``(n,)``.
        boxes: float64 ``(n, 4)`` x, y, width, height.
        crowd: bool ``(n,)``: regions in which detections are neither right nor wrong.
    """

    size: int
    images: Ints
    classes: Ints
    boxes: Floats
    crowd: Bools

    @classmethod
    def from_detections(cls, found: Sequence[Detections]) -> Truth:
        """One model's detections, an entry an image, as another's truth."""
        flat = Found.from_detections(found)
        return cls(len(found), flat.images, flat.classes, flat.boxes, np.zeros(len(flat.images), np.bool_))


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Detections: ``images``, ``classes`` and ``boxes`` as in :class:`Truth`, ``scores`` float64 ``(n,)``."""

    images: Ints
    classes: Ints
    boxes: Floats
    scores: Floats

    @classmethod
    def from_detections(cls, found: Sequence[Detections], categories: Sequence[int] | None = None) -> Found:
        """Detections, an entry an image; ``categories`` gives the number of each class index."""
        images = np.repeat(np.arange(len(found)), [len(f) for f in found])
        none = Detections.empty()
        labels = np.concatenate([none.labels, *(f.labels for f in found)]).astype(np.int64)
        corners = np.concatenate([none.boxes, *(f.boxes for f in found)]).astype(np.float64)
        scores = np.concatenate([none.scores, *(f.scores for f in found)]).astype(np.float64)
        classes = labels if categories is None else np.array(categories, np.int64)[labels]
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return cls(images, classes, boxes, scores)


@dataclass(frozen=True, slots=True, eq=False)
class ClassMatches:
    """What a class's detections matched, best score first (ties in the order of images, then as found).

    Attributes:
        objects: float64 ``(size,)``: objects to be found in each image, crowds left out.
        images: int ``(n,)``: whose detection it is.
        right: bool ``(10, n)``: matched an object, for each overlap.
        ignored: bool ``(10, n)``: lies in a crowd, and counts neither way.
    """

    objects: Floats
    images: Ints
    right: Bools
    ignored: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """``classes`` holds an entry for each class that has objects; ``size`` is the number of images."""

    size: int
    classes: tuple[ClassMatches, ...]


def match(truth: Truth, found: Found) -> Matches:
    """Give each detection its object: greedily by score, the object with the most overlap.

    An object is taken once. A detection that finds none but lies in a crowd by the overlap is ignored;
    overlap with a crowd is the share of the detection's own area.
    """
    order = np.lexsort((-found.scores, found.images, found.classes))  # stable, its last key is the first
    classes, images = found.classes[order], found.images[order]
    spans = {(int(classes[a]), int(images[a])): (a, min(b, a + _MOST)) for a, b in _spans(classes, images)}
    right = np.zeros((len(OVERLAPS), len(order)), np.bool_)
    ignored = np.zeros_like(right)
    stays = np.zeros(len(order), np.bool_)
    for start, stop in spans.values():
        stays[start:stop] = True
    objects = np.lexsort((truth.images, truth.classes))
    for first, last in _spans(truth.classes[objects], truth.images[objects]):
        rows = objects[first:last]
        span = spans.get((int(truth.classes[rows[0]]), int(truth.images[rows[0]])))
        if span is not None:
            at = slice(*span)
            overlaps = _overlaps(found.boxes[order[at]], truth.boxes[rows], truth.crowd[rows])
            right[:, at], ignored[:, at] = _assign(overlaps, truth.crowd[rows])
    parts = []
    for label in np.unique(truth.classes[~truth.crowd]):
        kept = np.flatnonzero(stays & (classes == label))
        kept = kept[np.argsort(-found.scores[order[kept]], kind="stable")]
        mine = truth.images[(truth.classes == label) & ~truth.crowd]
        count = np.bincount(mine, minlength=truth.size).astype(np.float64)
        parts.append(ClassMatches(count, images[kept], right[:, kept], ignored[:, kept]))
    return Matches(truth.size, tuple(parts))


def average_precisions(matches: Matches, counts: NDArray[np.integer] | None = None) -> Floats:
    """AP in percent, averaged over the classes that have objects, for each draw and overlap.

    Args:
        matches: of all images.
        counts: ``(draws, size)``: how often each image was drawn; one draw of each image where left out.

    Returns:
        float64 ``(draws, 10)``; nan for a draw without an object. A copy of an image stands beside it
        in the order of scores.
    """
    drawn = np.ones((1, matches.size)) if counts is None else np.asarray(counts, np.float64)
    total = np.zeros((len(drawn), len(OVERLAPS)))
    seen = np.zeros(len(drawn))
    for part in matches.classes:
        block = max(1, _AT_ONCE // max(len(part.images), 1))
        for at in range(0, len(drawn), block):
            rows = slice(at, at + block)
            objects = drawn[rows] @ part.objects
            precisions = _class_precisions(part, drawn[rows], objects)
            total[rows] += np.where(objects[:, None] > 0, precisions, 0.0)
            seen[rows] += objects > 0
    result = np.full_like(total, np.nan)
    np.divide(100 * total, seen[:, None], out=result, where=seen[:, None] > 0)
    return result


def _spans(*keys: Ints) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of equal keys; the keys are sorted."""
    size = len(keys[0])
    if size == 0:
        return
    new = np.zeros(size, np.bool_)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    edges = [0, *np.flatnonzero(new).tolist(), size]
    yield from pairwise(edges)


def _overlaps(found: Floats, truth: Floats, crowd: Bools) -> Floats:
    """``(n, m)``: intersection over union, over the detection's area where the object is a crowd."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], truth[None, :, :2] + truth[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0.0), axis=2)
    area, other = np.prod(found[:, 2:], axis=1)[:, None], np.prod(truth[:, 2:], axis=1)
    whole = np.where(crowd, area, area + other - inter)
    # Sides without an extent meet nothing, however small the whole is.
    shares: Floats = np.zeros_like(inter)
    np.divide(inter, whole, out=shares, where=inter > 0)
    return shares


def _assign(overlaps: Floats, crowd: Bools) -> tuple[Bools, Bools]:
    """Right and ignored, bool ``(10, n)``, of overlaps ``(n, m)`` whose rows are best score first."""
    right = np.zeros((len(OVERLAPS), len(overlaps)), np.bool_)
    ignored = np.zeros_like(right)
    objects, crowds = overlaps[:, ~crowd], overlaps[:, crowd]
    if objects.shape[1]:
        # Of equal overlaps the last object is taken, as the reference does: hence the reversal.
        objects = objects[:, ::-1]
        rows = np.arange(len(OVERLAPS))
        free = np.ones((len(OVERLAPS), objects.shape[1]), np.bool_)
        for n in np.flatnonzero(objects.max(1) >= _LIMITS[0]).tolist():
            left = np.where(free, objects[n], -1.0)
            best = left.argmax(1)
            hit = left[rows, best] >= _LIMITS
            right[hit, n] = True
            free[rows[hit], best[hit]] = False
    if crowds.shape[1]:
        ignored = (crowds.max(1) >= _LIMITS[:, None]) & ~right
    return right, ignored


def _class_precisions(part: ClassMatches, drawn: Floats, objects: Floats) -> Floats:
    """AP 0..1, ``(draws, 10)``: precision, made monotone from the right, at 101 points of recall.

    Only right detections need a look: between two of them recall stands and precision falls.
    """
    result = np.zeros((len(drawn), len(OVERLAPS)))
    weights = drawn[:, part.images]
    every = weights.cumsum(1)
    for n, (right, ignored) in enumerate(zip(part.right, part.ignored, strict=True)):
        at = np.flatnonzero(right)
        if not len(at):
            continue
        counted = (weights * ~ignored).cumsum(1)[:, at] if ignored.any() else every[:, at]
        hits = weights[:, at].cumsum(1)
        precision = hits / np.maximum(counted, 1.0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(objects, 1.0)[:, None]
        # How many of the points each detection reaches that the ones before it did not.
        reached = np.searchsorted(_RECALLS, recall, side="right")
        result[:, n] = (envelope * np.diff(reached, axis=1, prepend=0)).sum(1) / len(_RECALLS)
    return result
