"""Two models on the same images: what the second loses, with an interval.

paired = compare_models(exact, int8, EvaluationData.found("coco_val"))
paired.drop, paired.interval            # points of mAP, top-1 or mean IoU, dB of PSNR; positive: lost
compare_many(exact, {"int8": int8, "fp16": fp16}, data)["fp16"]     # one pass for all
compare_unlabelled(exact, {"int8": int8}, frames)                   # against exact's own answers
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import ConfigError, DataError
from edgesmith.sdk.evaluate.answers import Frame8, I, Pictures, Progress
from edgesmith.sdk.evaluate.bootstrap import Counts, Floats, Paired, drawn, interval
from edgesmith.sdk.evaluate.classify import decisions, top_figures
from edgesmith.sdk.evaluate.data import (
    EvaluationData,
    labelled_images,
    picture_pixels,
    pixels,
    unlabelled_images,
)
from edgesmith.sdk.evaluate.detect import CocoData, detections, need_evaluator
from edgesmith.sdk.evaluate.matching import Found, Matches, Truth, average_precisions, match
from edgesmith.sdk.evaluate.segment import agreeing_maps, paired_maps
from edgesmith.sdk.evaluate.tensor import agreeing_tensors, paired_psnr
from edgesmith.sdk.models import Classifier, Detector, Model, Segmenter, TensorModel
from edgesmith.sdk.results import Detections

__all__ = ["SURE", "Paired", "compare_many", "compare_models", "compare_unlabelled"]
M = TypeVar("M", bound=Model[Any])
SURE = 0.3  # a model's own detections of at least this score stand for the truth where there are no labels


def compare_models(
    exact: Model[Any],
    other: Model[Any],
    data: EvaluationData,
    *,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Paired:
    """One candidate; see :func:`compare_many`."""
    return compare_many(exact, {"other": other}, data, draws=draws, seed=seed, progress=progress)["other"]


def compare_many(
    exact: Model[Any],
    others: Mapping[str, Model[Any]],
    data: EvaluationData,
    *,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Paired]:
    """Every candidate against one model on labelled images, in one pass over them.

    Args:
        exact: the model that candidates are held against.
        others: candidates by name; each of the task and classes of ``exact``.
        data: where the images and labels are.
        draws: resamplings of the bootstrap.
        seed: of the resampling; the same seed and number of images give the same draws.
        progress: called with images done and images in all.

    Raises:
        ConfigError: there is no candidate, one is for another task or other classes, or ``draws`` < 1.
        DataError: the labels cannot be read, do not fit, or no image could be read.
        MissingExtraError: mAP needs a package that is not installed.
    """
    _check(exact, others, draws)
    if isinstance(exact, Classifier):
        labelled = labelled_images(data, exact.names)
        got = decisions(_all(exact, others, Classifier), labelled, pixels, progress)
        got.need_some(f"{data.images}: none of the labelled pictures")
        labels = np.array([item.label for item in got.items])
        best = [np.stack(result) for result in got.results]
        counts = drawn(len(labels), draws, seed)
        return {
            name: _classified(best[0], one, labels, counts, got.faults)
            for name, one in zip(others, best[1:], strict=True)
        }
    if isinstance(exact, Segmenter):
        return paired_maps(_all(exact, others, Segmenter), others, data, draws, seed, progress)
    if isinstance(exact, TensorModel):
        return paired_psnr(_all(exact, others, TensorModel), others, data, draws, seed, progress)
    return _detected(exact, others, data, draws, seed, progress)


def compare_unlabelled(
    exact: Model[Any],
    others: Mapping[str, Model[Any]],
    images: EvaluationData | Iterable[Frame8],
    *,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Paired]:
    """Every candidate against one model's own answers, in one pass over images without labels.

    The drop of a classifier is the share of images whose decision changed; that of a detector is 100 - mAP
    against the exact model's detections of score >= 0.3; that of a segmenter 100 - mean IoU with its class
    maps; that of a tensor model the relative error of its outputs in percent.

    Args:
        exact, others, draws, seed, progress: as for :func:`compare_many`.
        images: frames, BGR uint8 ``(H, W, 3)``, or where pictures are (labels there are not read).

    Raises:
        ConfigError: there is no candidate, one is for another task or other classes, or ``draws`` < 1.
        DataError: no image could be read, or the exact model finds nothing that it is sure of.
        CameraFormatError: a frame has another shape or type.
    """
    _check(exact, others, draws)
    if isinstance(images, EvaluationData):
        files = Pictures(unlabelled_images(images), picture_pixels, f"{images.images}: none of the pictures")
        return _unlabelled(exact, others, files, draws, seed, progress)
    frames = Pictures(images, lambda frame: frame, "none of the images")
    return _unlabelled(exact, others, frames, draws, seed, progress)


def _unlabelled(
    exact: Model[Any],
    others: Mapping[str, Model[Any]],
    pictures: Pictures[I],
    draws: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Paired]:
    items, load = pictures.items, pictures.load
    if isinstance(exact, Classifier):
        got = decisions(_all(exact, others, Classifier), items, load, progress)
        got.need_some(pictures.called)
        best = [np.stack(result) for result in got.results]
        counts = drawn(len(best[0]), draws, seed)
        return {
            name: _classified(best[0], one, None, counts, got.faults)
            for name, one in zip(others, best[1:], strict=True)
        }
    if isinstance(exact, Segmenter):
        segmenters = _all(exact, others, Segmenter)
        return agreeing_maps(segmenters, others, pictures, draws, seed, progress)
    if isinstance(exact, TensorModel):
        plain = _all(exact, others, TensorModel)
        return agreeing_tensors(plain, others, pictures, draws, seed, progress)
    seen = detections(_all(exact, others, Detector), items, load, progress)
    seen.need_some(pictures.called)
    truth = _sure(seen.results[0])
    if not len(truth.images):
        raise DataError(
            f"the exact model finds nothing of score {SURE} or more in {truth.size} images, so there is "
            "nothing to agree on: give images that show its classes, or labelled ones"
        )
    counts = drawn(truth.size, draws, seed)
    result = {}
    for name, found in zip(others, seen.results[1:], strict=True):
        matches = match(truth, Found.from_detections(found))
        reached = float(_mean(matches)[0])
        result[name] = Paired.agreeing(
            reached, interval(100 - _mean(matches, counts)), truth.size, seen.faults
        )
    return result


def _detected(
    exact: Model[Any],
    others: Mapping[str, Model[Any]],
    data: EvaluationData,
    draws: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Paired]:
    coco = CocoData.read(data, exact.names)
    need_evaluator()
    got = detections(_all(exact, others, Detector), coco.images, coco.load, progress)
    got.need_some(f"{data.images}: none of the labelled pictures")
    truth, sure = coco.truth(got.items), _sure(got.results[0])
    counts = drawn(truth.size, draws, seed)
    figures = [coco.figures(got.items, found) for found in got.results]
    resampled = [
        _mean(match(truth, Found.from_detections(found, coco.categories)), counts) for found in got.results
    ]
    result = {}
    for number, name in enumerate(others, 1):
        values = {key: (figures[0][key], figures[number][key]) for key in figures[0]}
        before, after = values["mAP"]
        agreement = float(_mean(match(sure, Found.from_detections(got.results[number])))[0])
        result[name] = Paired(
            metric="mAP", exact=before, other=after, values=values, drop=before - after,
            interval=interval(resampled[0] - resampled[number]), images=truth.size, labelled=True,
            agreement=None if np.isnan(agreement) else agreement, faults=tuple(got.faults),
        )  # fmt: skip
    return result


def _classified(
    exact: NDArray[np.int32],
    other: NDArray[np.int32],
    labels: NDArray[np.int64] | None,
    counts: Counts,
    faults: Sequence[str],
) -> Paired:
    """Best classes ``(N, k)`` of both; labels ``(N,)``."""
    size = len(exact)
    flips = exact[:, 0] != other[:, 0]
    flipped = int(flips.sum())
    if labels is None:
        same = 100 * (size - flipped) / size
        spread = interval(100 * (counts @ flips) / size)
        return Paired.agreeing(same, spread, size, faults, flipped=flipped)
    lost = (exact[:, 0] == labels).astype(np.int64) - (other[:, 0] == labels)
    before, after = top_figures(exact, labels), top_figures(other, labels)
    return Paired(
        metric="top1", exact=before["top1"], other=after["top1"],
        values={name: (before[name], after[name]) for name in before},
        # From whole decisions, so that a drop of just the budget is inside it.
        drop=100 * int(lost.sum()) / size,
        interval=interval(100 * (counts @ lost) / size),
        images=size, labelled=True, agreement=100 * (size - flipped) / size, flipped=flipped,
        right_to_wrong=int((lost > 0).sum()), wrong_to_right=int((lost < 0).sum()), faults=tuple(faults),
    )  # fmt: skip


def _check(exact: Model[Any], others: Mapping[str, Model[Any]], draws: int) -> None:
    if not isinstance(exact, Classifier | Detector | Segmenter | TensorModel):
        raise ConfigError(f"no comparison for task {exact.task!r}")
    if draws < 1:
        raise ConfigError(f"draws is {draws}: an interval needs at least one, 200 are usual")
    if not others:
        raise ConfigError("nothing to compare: give at least one candidate")
    for name, other in others.items():
        if other.task != exact.task:
            raise ConfigError(f"candidate {name!r} is for task {other.task!r}, not {exact.task!r}")
        if other.names != exact.names:
            raise ConfigError(
                f"candidate {name!r} has other classes ({len(other.names)} names) than the exact model "
                f"({len(exact.names)}): only models of the same classes, in the same order, compare"
            )


def _all(exact: Model[Any], others: Mapping[str, Model[Any]], kind: type[M]) -> list[M]:
    return [model for model in (exact, *others.values()) if isinstance(model, kind)]


def _mean(matches: Matches, counts: Counts | None = None) -> Floats:
    """mAP@[.5:.95] in percent, ``(draws,)``."""
    means: Floats = average_precisions(matches, counts).mean(1)
    return means


def _sure(found: Sequence[Detections]) -> Truth:
    return Truth.from_detections([one.filter(min_score=SURE) for one in found])
