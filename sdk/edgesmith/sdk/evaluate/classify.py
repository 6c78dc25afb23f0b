"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.decode import canonical
from edgesmith.sdk.evaluate.answers import Answers, Frame8, I, Outputs, Progress, answers
from edgesmith.sdk.evaluate.data import EvaluationData, labelled_images, pixels
from edgesmith.sdk.models import Classifier
from edgesmith.sdk.preprocess import Geometry

Ints = NDArray[np.int32]
_MOST_AT_ONCE = 16  # frames held in memory at a time
_BEST = 5  # classes kept of an image


def decisions(
    models: Sequence[Classifier],
    items: Iterable[I],
    load: Callable[[I], Frame8],
    progress: Progress | None = None,
) -> Answers[I, Ints]:
    """The best five classes of each picture, best first, by each model."""
    at_once = min(max(model.batch.max for model in models), _MOST_AT_ONCE)
    return answers(models, items, load, _best, at_once=at_once, progress=progress)


def top_figures(best: Ints, labels: Sequence[int] | NDArray[np.int64]) -> dict[str, float]:
    """``top1`` and ``top5`` in percent of the best classes ``(N, k)`` against N labels."""
    right = best == np.asarray(labels).reshape(-1, 1)
    return {f"top{k}": 100 * int(right[:, :k].any(1).sum()) / len(best) for k in (1, _BEST)}


def top_accuracies(
    model: Classifier, data: EvaluationData, progress: Progress | None
) -> tuple[dict[str, float], int, list[str]]:
    """``top1`` and ``top5`` in percent, the number of images, and a line for each unreadable one.

    Raises:
        DataError: the labels cannot be read or do not fit, or no picture could be read.
    """
    got = decisions([model], labelled_images(data, model.names), pixels, progress)
    got.need_some(f"{data.images}: none of the labelled pictures")
    figures = top_figures(np.stack(got.results[0]), [item.label for item in got.items])
    return figures, len(got.items), got.faults


def _best(model: Classifier, outputs: Outputs, row: int, geometry: Geometry) -> Ints:
    # A copy: a slice would hold on to all classes of the image.
    return canonical.classifications(outputs, row, model.names).labels[:_BEST].copy()
