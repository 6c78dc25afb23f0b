"""How near a changed graph stays to the float one, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.converters.runners import Outputs
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.evaluate.matching import Found, Truth, average_precisions, match
from edgesmith.sdk.evaluate.paired import SURE
from edgesmith.sdk.evaluate.segment import Overlaps
from edgesmith.sdk.manifest import Nms, Task
from edgesmith.sdk.preprocess import Geometry
from edgesmith.sdk.results import Detections


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """A graph against the float graph on the same images.

    ``same`` is in percent: decisions that are the same (classifiers), mAP@[.5:.95] against the float model's
    detections of score >= 0.3 (detectors; 100 where it has none), mean IoU with its class maps (segmenters),
    100 for tensors, which have no decisions. ``decibels`` is the signal-to-noise ratio of the outputs that
    carry the decision, of tensors that of the worst output. ``flipped`` counts decisions that changed
    (detectors: by how many the count of such detections differs; segmenters: pixels), of ``decisions``.
    """

    same: float
    decibels: float
    flipped: int
    decisions: int


def agreement(
    exact: Sequence[Outputs], other: Sequence[Outputs], *, task: Task, nms: Nms | None, size: tuple[int, int]
) -> Agreement:
    """Compare outputs by name, one entry an image, each with a batch axis of 1.

    Args:
        exact: of the float graph.
        other: of the graph under test.
        task: decides what a decision is.
        nms: for detectors.
        size: (H, W) of the input.
    """
    if task == "detect" and nms is not None:
        return _of_detections(exact, other, nms, size)
    if task == "tensor":
        ratio = min(decibels([o[name] for o in exact], [o[name] for o in other]) for name in exact[0])
        return Agreement(same=100.0, decibels=ratio, flipped=0, decisions=0)
    name = next(iter(exact[0]))
    ratio = decibels([o[name] for o in exact], [o[name] for o in other])
    if task == "segment":
        return _of_maps([o[name] for o in exact], [o[name] for o in other], ratio)
    flipped = sum(int(a[name][0].argmax() != b[name][0].argmax()) for a, b in zip(exact, other, strict=True))
    same = 100 * (1 - flipped / len(exact))
    return Agreement(same=same, decibels=ratio, flipped=flipped, decisions=len(exact))


def decibels(exact: Sequence[NDArray[np.generic]], other: Sequence[NDArray[np.generic]]) -> float:
    """Signal-to-quantization-noise ratio in dB over all arrays: 10 log10(sum x^2 / sum (x - y)^2).

    Infinite where they are the same.
    """
    signal = noise = 0.0
    for a, b in zip(exact, other, strict=True):
        x, y = a.astype(np.float32, copy=False), b.astype(np.float32, copy=False)
        difference = x - y
        signal += float(np.vdot(x, x))
        noise += float(np.vdot(difference, difference))
    return float("inf") if noise == 0.0 else 10 * float(np.log10(max(signal, 1e-30) / noise))


def _of_maps(
    exact: Sequence[NDArray[np.generic]], other: Sequence[NDArray[np.generic]], ratio: float
) -> Agreement:
    """Class maps of logits ``(1, C, h, w)``, at their own size."""
    overlaps = Overlaps()
    for a, b in zip(exact, other, strict=True):
        overlaps.add(
            canonical.best_classes(b[0]), canonical.best_classes(a[0]), max(canonical.BOTH, a.shape[1])
        )
    changed = sum(overlaps.pixels) - int(np.stack(overlaps.both).sum())
    same = float(overlaps.mean_iou()[0])
    return Agreement(same=same, decibels=ratio, flipped=changed, decisions=sum(overlaps.pixels))


def _of_detections(
    exact: Sequence[Outputs], other: Sequence[Outputs], nms: Nms, size: tuple[int, int]
) -> Agreement:
    geometry = Geometry(*size, *size)

    def found(outputs: Outputs) -> Detections:
        return canonical.detections(outputs, 0, geometry, nms, (), score=nms.evaluation_score)

    sure = [found(outputs).filter(min_score=SURE) for outputs in exact]
    theirs = [found(outputs) for outputs in other]
    changed = sum(
        abs(len(mine) - len(one.filter(min_score=SURE))) for mine, one in zip(sure, theirs, strict=True)
    )
    truth = Truth.from_detections(sure)
    total = len(truth.images)
    precisions = average_precisions(match(truth, Found.from_detections(theirs)))
    # The graph with suppression in it has scores too: those of its detections, best first.
    ratio = decibels([o["scores"] for o in exact], [o["scores"] for o in other])
    same = float(precisions.mean()) if total else 100.0
    return Agreement(same=same, decibels=ratio, flipped=changed, decisions=total)
