"""Proof that a step computes what the step before it did, by output and by the task's decisions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.converters.runners import Array, Outputs
from edgesmith.sdk.alignment import in_order_of
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.errors import ParityError
from edgesmith.sdk.manifest import Nms, Task
from edgesmith.sdk.masks import BoxMasks
from edgesmith.sdk.preprocess import Geometry
from edgesmith.sdk.results import Detections
from edgesmith.sdk.selftest import cosine

# Share of an output's range by which two float32 runs of one network may differ. Sums of thousands
# of terms in another order differ by 1e-6 to 1e-4 of it; a wrong weight, layout or padding by 1e-2 and more.
EXPORT_TOLERANCE = 1e-3
# Simplifying only reorders and folds constants, and both sides run in onnxruntime.
SLIM_TOLERANCE = 1e-4
MIN_COSINE = 0.9999
# Classes whose scores lie nearer to each other than the tolerance may swap; all others must agree.
MIN_TOP1 = 1.0
# A detection is the same when boxes overlap and scores agree like this; one in a hundred may
# differ, since a score at the threshold or an overlap at the NMS's limit can fall either way.
SAME_IOU = 0.99
SAME_SCORE = 1e-3
MIN_BOXES = 0.99
# Pixels whose classes' logits lie nearer to each other than the tolerance may swap; all others must agree.
MIN_PIXELS = 1.0
# Of a mask's probabilities, in the frame of a box that is the same.
SAME_MASK = 2e-2
# Outputs of a graph with NMS are lists in order of score: near ties swap rows, so only what is
# found is compared there, and not the arrays.
_IN_ORDER = frozenset(
    {
        "boxes",
        "scores",
        "labels",
        "count",
        "converged",
        "candidate_boxes",
        "candidate_scores",
        "candidate_labels",
        "masks",
    }
)


class OutputParity(msgspec.Struct, frozen=True, kw_only=True):
    """One output over all images: ``tolerance`` is in the output's own units, None where rows may swap."""

    name: str
    max_abs: float
    cosine: float
    range: float
    tolerance: float | None

    @property
    def passed(self) -> bool:
        """Inside the tolerance and the same direction; NaN passes neither."""
        return self.tolerance is None or (self.max_abs <= self.tolerance and self.cosine >= MIN_COSINE)


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Two steps compared. ``images`` counts real ones; 0 means that seeded pseudo-images stood in.

    ``metric`` is ``top1_agreement``, ``box_agreement`` (of masks too) or ``pixel_agreement`` (0..1), over
    ``decisions`` of them, with ``needed`` the least that passes.
    """

    images: int
    outputs: tuple[OutputParity, ...]
    metric: str | None = None
    agreement: float | None = None
    decisions: int = 0
    needed: float = 0.0

    @property
    def passed(self) -> bool:
        """Every output inside its tolerance, and the task's decisions agree."""
        agrees = self.agreement is None or self.agreement >= self.needed
        return agrees and all(output.passed for output in self.outputs)

    def figures(self) -> dict[str, float]:
        """By name, as they stand in the manifest."""
        figures: dict[str, float] = {"images": float(self.images)}
        for output in self.outputs:
            figures[f"{output.name}.max_abs"] = output.max_abs
            figures[f"{output.name}.cosine"] = output.cosine
        if self.metric is not None and self.agreement is not None:
            figures[self.metric] = self.agreement
            figures["decisions"] = float(self.decisions)
        return figures


def compare(
    reference: Sequence[Outputs],
    candidate: Sequence[Outputs],
    *,
    task: Task,
    nms: Nms | None,
    size: tuple[int, int],
    images: int,
    tolerance: float,
) -> Parity:
    """Compare what two steps gave for the same images, one entry an image.

    Args:
        reference: outputs by name, each with a batch axis of 1.
        candidate: the same from the step under test.
        task: decides which decisions are compared.
        nms: for detectors.
        size: (H, W) of the input, for boxes.
        images: how many of them are real.
        tolerance: share of each output's range that it may differ by.
    """
    in_order = nms is not None and nms.where == "graph"
    aligned = candidate
    if task == "detect" and not in_order:
        aligned = [_same_rows(r, c, tolerance, size) for r, c in zip(reference, candidate, strict=True)]
    outputs = tuple(
        _output(
            name,
            [r[name] for r in reference],
            [c[name] for c in aligned],
            None if in_order and name in _IN_ORDER else tolerance,
        )
        for name in reference[0]
    )
    if task == "classify":
        limit = 2 * tolerance * outputs[0].range
        agreement, decisions = _top1(
            [r["logits"] for r in reference], [c["logits"] for c in candidate], limit
        )
        metric, needed = "top1_agreement", MIN_TOP1
    elif task == "detect" and nms is not None:
        agreement, decisions = _boxes(reference, candidate, nms, size)
        metric, needed = "box_agreement", MIN_BOXES
    elif task == "segment":
        limit = 2 * tolerance * outputs[0].range
        agreement, decisions = _pixels(
            [r["logits"] for r in reference], [c["logits"] for c in candidate], limit
        )
        metric, needed = "pixel_agreement", MIN_PIXELS
    else:
        return Parity(images=images, outputs=outputs)
    return Parity(
        images=images, outputs=outputs, metric=metric, agreement=agreement, decisions=decisions, needed=needed
    )


def require(parity: Parity, what: str, advice: str) -> Parity:
    """The parity itself where it passed.

    Raises:
        ParityError: with every figure that was measured.
    """
    if parity.passed:
        return parity
    parts = [
        f"{o.name}: max abs {o.max_abs:.3g} (allowed {o.tolerance:.3g}), cosine {o.cosine:.6f}"
        for o in parity.outputs
        if not o.passed
    ]
    if parity.agreement is not None and parity.agreement < parity.needed:
        name = (parity.metric or "").replace("_", " ")
        parts.append(
            f"{name} {100 * parity.agreement:.1f} % of {parity.decisions} (needs {100 * parity.needed:.0f} %)"
        )
    count = f"{parity.images} images" if parity.images else "seeded pseudo-images"
    raise ParityError(f"{what} on {count}: {'; '.join(parts)}. {advice}", figures=parity.figures())


def _output(name: str, reference: list[Array], candidate: list[Array], share: float | None) -> OutputParity:
    low = min(float(r.min()) for r in reference if r.size) if any(r.size for r in reference) else 0.0
    high = max(float(r.max()) for r in reference if r.size) if any(r.size for r in reference) else 0.0
    spread = high - low or abs(high) or 1.0
    if any(r.shape != c.shape for r, c in zip(reference, candidate, strict=True)):
        return OutputParity(
            name=name, max_abs=float("inf"), cosine=0.0, range=spread, tolerance=(share or 0) * spread
        )
    a = np.concatenate([r.astype(np.float64).ravel() for r in reference])
    b = np.concatenate([c.astype(np.float64).ravel() for c in candidate])
    difference = float(np.abs(a - b).max()) if a.size else 0.0
    if not np.isfinite(difference):
        difference = float("inf")
    return OutputParity(
        name=name,
        max_abs=difference,
        cosine=cosine(a, b),
        range=spread,
        tolerance=None if share is None else share * spread,
    )


def _same_rows(reference: Outputs, candidate: Outputs, share: float, size: tuple[int, int]) -> Outputs:
    """The candidate's boxes and scores in the reference's order, where a graph gives the best K of them."""
    boxes, scores = in_order_of(
        (reference["boxes"], reference["scores"]),
        (candidate["boxes"], candidate["scores"]),
        pixels=share * max(size),
        score=share,
    )
    return {**candidate, "boxes": boxes, "scores": scores}


def _top1(reference: list[Array], candidate: list[Array], limit: float) -> tuple[float, int]:
    """Share of images with the same best class; near ties within ``limit`` are left out."""
    agree = decided = 0
    for r, c in zip(reference, candidate, strict=True):
        ranked = np.sort(r[0])[::-1]
        if len(ranked) > 1 and ranked[0] - ranked[1] <= limit:
            continue
        decided += 1
        agree += int(r[0].argmax() == c[0].argmax())
    return (agree / decided if decided else 1.0), decided


def _pixels(reference: list[Array], candidate: list[Array], limit: float) -> tuple[float, int]:
    """Share of pixels with the same class; near ties within ``limit`` are left out."""
    agree = decided = 0
    for r, c in zip(reference, candidate, strict=True):
        if r.shape != c.shape:
            return 0.0, 0
        if r.shape[1] == 1:
            clear = np.abs(r[0, 0]) > limit
        else:
            ranked = np.partition(r[0], -2, 0)
            clear = ranked[-1] - ranked[-2] > limit
        same = canonical.best_classes(r[0]) == canonical.best_classes(c[0])
        decided += int(clear.sum())
        agree += int((same & clear).sum())
    return (agree / decided if decided else 1.0), decided


def _boxes(
    reference: Sequence[Outputs], candidate: Sequence[Outputs], nms: Nms, size: tuple[int, int]
) -> tuple[float, int]:
    """Share of detections, of both sides together, that the other side has too."""
    geometry = Geometry(*size, *size)
    low = max(nms.score - SAME_SCORE, nms.evaluation_score if nms.where == "graph" else 0.0)
    found = same = 0
    for r, c in zip(reference, candidate, strict=True):
        for one, other in ((r, c), (c, r)):
            mine = canonical.detections(one, 0, geometry, nms, (), score=nms.score)
            # A hair below the threshold, so that a score on it does not count as lost.
            theirs = canonical.detections(other, 0, geometry, nms, (), score=low)
            found += len(mine)
            same += _matched(mine, theirs)
    return (same / found if found else 1.0), found // 2


def _matched(mine: Detections, theirs: Detections) -> int:
    """How many of ``mine`` find a partner of their own in ``theirs``: class, overlap and score."""
    if not len(mine) or not len(theirs):
        return 0
    fits = (
        (_iou(mine.boxes, theirs.boxes) >= SAME_IOU)
        & (np.abs(mine.scores[:, None] - theirs.scores[None]) <= SAME_SCORE)
        & (mine.labels[:, None] == theirs.labels[None])
    )
    if isinstance(mine.masks, BoxMasks) and isinstance(theirs.masks, BoxMasks):
        apart = np.abs(mine.masks.probabilities[:, None] - theirs.masks.probabilities[None])
        fits &= apart.max((2, 3)) <= SAME_MASK
    free = np.ones(len(theirs), np.bool_)
    count = 0
    for row in fits:
        partners = np.flatnonzero(row & free)
        if len(partners):
            free[partners[0]] = False
            count += 1
    return count


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Overlap of boxes ``(n, 4)`` and ``(m, 4)`` xyxy, as ``(n, m)``; equal empty boxes count as the same."""
    x, y = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    sides = np.minimum(x[..., 2:], y[..., 2:]) - np.maximum(x[..., :2], y[..., :2])
    inter = np.clip(sides, 0, None).prod(-1)
    union = (x[..., 2:] - x[..., :2]).prod(-1) + (y[..., 2:] - y[..., :2]).prod(-1) - inter
    overlap: NDArray[np.float64] = np.where(
        union > 0, inter / np.where(union > 0, union, 1), (x == y).all(-1).astype(np.float64)
    )
    return overlap
