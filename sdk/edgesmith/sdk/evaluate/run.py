"""One call for every task."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from edgesmith.sdk.errors import DataError
from edgesmith.sdk.evaluate.answers import Progress
from edgesmith.sdk.evaluate.data import EvaluationData
from edgesmith.sdk.models import Classifier, Detector, Model, Segmenter, TensorModel


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy in percent, or PSNR in dB; the keys of ``eval --json``.

    ``value`` is the ``metric`` among ``values``. ``faults``: a line for each picture that could not be read
    and was left out.
    """

    metric: str
    value: float
    values: dict[str, float]
    images: int
    backend: str
    variant: str
    seconds: float
    faults: tuple[str, ...] = ()


def evaluate(model: Model[Any], data: EvaluationData, *, progress: Progress | None = None) -> Evaluation:
    """Run the model over labelled images and score it.

    Args:
        model: a loaded detector (COCO mAP at the bundle's ``evaluation_score``), classifier (top-1, top-5),
            segmenter (mean IoU) or tensor model (PSNR).
        data: where the images and labels are.
        progress: called with images done and images in all.

    Raises:
        DataError: the labels cannot be read, do not fit the model, or no image could be read.
    """
    started = time.monotonic()
    if isinstance(model, Detector):
        from edgesmith.sdk.evaluate.detect import mean_average_precision

        metric, (values, images, faults) = "mAP", mean_average_precision(model, data, progress)
    elif isinstance(model, Classifier):
        from edgesmith.sdk.evaluate.classify import top_accuracies

        metric, (values, images, faults) = "top1", top_accuracies(model, data, progress)
    elif isinstance(model, Segmenter):
        from edgesmith.sdk.evaluate.segment import mean_ious

        metric, (values, images, faults) = "mIoU", mean_ious(model, data, progress)
    elif isinstance(model, TensorModel):
        from edgesmith.sdk.evaluate.tensor import mean_psnr

        metric, (values, images, faults) = "psnr", mean_psnr(model, data, progress)
    else:
        raise DataError(f"no evaluation for task {model.task!r}")
    return Evaluation(
        metric=metric,
        value=values[metric],
        values=values,
        images=images,
        backend=model.backend.name,
        variant=model.backend.variant,
        seconds=time.monotonic() - started,
        faults=tuple(faults),
    )
