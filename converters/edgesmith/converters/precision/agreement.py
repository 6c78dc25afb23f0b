"""How near a changed graph stays to the float one, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.converters.runners import Outputs
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.evaluate.detect import coco_figures
from edgesmith.sdk.manifest import Nms, Task
from edgesmith.sdk.preprocess import Geometry

# The float model's own detections over this score stand for the truth.
SURE = 0.3


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """A graph against the float graph on the same images.

    ``same`` is in percent: decisions that are the same (classifiers), or mAP@[.5:.95] against the float
    model's detections (detectors). ``decibels`` is the signal-to-noise ratio of the outputs that carry the
    decision. ``flipped`` counts decisions that changed, of ``decisions``.
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
    name = next(iter(exact[0]))
    ratio = decibels([o[name] for o in exact], [o[name] for o in other])
    if task != "classify":
        return Agreement(same=100.0, decibels=ratio, flipped=0, decisions=0)
    flipped = sum(int(a[name][0].argmax() != b[name][0].argmax()) for a, b in zip(exact, other, strict=True))
    same = 100 * (1 - flipped / len(exact))
    return Agreement(same=same, decibels=ratio, flipped=flipped, decisions=len(exact))


def decibels(exact: Sequence[NDArray[np.generic]], other: Sequence[NDArray[np.generic]]) -> float:
    """Signal-to-quantization-noise ratio: 10 log10(sum x^2 / sum (x - y)^2)."""
    signal = noise = 0.0
    for a, b in zip(exact, other, strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        signal += float((x * x).sum())
        noise += float(((x - y) ** 2).sum())
    return float("inf") if noise == 0.0 else 10 * float(np.log10(max(signal, 1e-30) / noise))


def _of_detections(
    exact: Sequence[Outputs], other: Sequence[Outputs], nms: Nms, size: tuple[int, int]
) -> Agreement:
    geometry = Geometry(*size, *size)
    truth: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    found: list[dict[str, object]] = []
    labels: set[int] = set()
    changed = total = 0
    for number, (a, b) in enumerate(zip(exact, other, strict=True), 1):
        sure = canonical.detections(a, 0, geometry, nms, (), score=SURE)
        truth["images"].append({"id": number, "width": size[1], "height": size[0]})
        for item in sure.to_coco(number):
            width, height = item["bbox"][2:]
            entry = {**item, "id": len(truth["annotations"]) + 1, "area": width * height, "iscrowd": 0}
            truth["annotations"].append(entry)
            labels.add(int(item["category_id"]))
        theirs = canonical.detections(b, 0, geometry, nms, (), score=nms.evaluation_score)
        found += theirs.to_coco(number)
        total += len(sure)
        changed += abs(len(sure) - len(theirs.filter(min_score=SURE)))
    truth["categories"] = [{"id": label, "name": str(label)} for label in sorted(labels)]
    found = [item for item in found if item["category_id"] in labels]
    ratio = (
        decibels([o["scores"] for o in exact], [o["scores"] for o in other]) if "scores" in exact[0] else 0.0
    )
    same = coco_figures(truth, found, [n["id"] for n in truth["images"]])["mAP"] if labels else 100.0  # type: ignore[misc]
    return Agreement(same=same, decibels=ratio, flipped=changed, decisions=total)
