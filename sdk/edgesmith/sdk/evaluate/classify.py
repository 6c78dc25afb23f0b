"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable

from edgesmith.sdk.errors import CameraError
from edgesmith.sdk.evaluate.data import EvaluationData, labelled_images, pixels
from edgesmith.sdk.models import Classifier

_MOST_AT_ONCE = 16  # frames held in memory at a time


def top_accuracies(
    model: Classifier, data: EvaluationData, progress: Callable[[int, int], None] | None
) -> tuple[dict[str, float], int, list[str]]:
    """``top1`` and ``top5`` in percent, the number of images, and a line for each unreadable one."""
    items = labelled_images(data, model.names)
    step = min(model.bundle.manifest.batch.max, _MOST_AT_ONCE)
    hits = {1: 0, 5: 0}
    images, faults = 0, list[str]()
    for at in range(0, len(items), step):
        frames, labels = [], []
        for item in items[at : at + step]:
            try:
                frames.append(pixels(item))
                labels.append(item.label)
            except CameraError as error:
                faults.append(str(error))
        for classes, label in zip(model(frames), labels, strict=True):
            for k in hits:
                hits[k] += label in classes.labels[:k].tolist()
        images += len(frames)
        if progress is not None:
            progress(min(at + step, len(items)), len(items))
    return {f"top{k}": 100 * n / max(images, 1) for k, n in hits.items()}, images, faults
