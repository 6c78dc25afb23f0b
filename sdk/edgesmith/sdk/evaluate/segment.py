"""Intersection over union of class maps, against masks or against another model's maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import length_hint

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.pictures import read_image
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.evaluate.answers import Frame8, I, Outputs, Pictures, Progress, answers, refuse_none
from edgesmith.sdk.evaluate.bootstrap import Counts, Floats, Paired, drawn, interval
from edgesmith.sdk.evaluate.data import EvaluationData, MaskedImage, masked_images, read_mask
from edgesmith.sdk.maps import background_of
from edgesmith.sdk.models import Segmenter
from edgesmith.sdk.preprocess import Geometry

Labels = NDArray[np.integer]


@dataclass(eq=False)
class Overlaps:
    """Class maps against what they should be: pixels of each image and class.

    Attributes:
        both: int64 ``(images, C)``: pixels that have the class in both.
        either: int64 ``(images, C)``: in one of them at least.
        pixels: int64 ``(images,)``: pixels that count.
    """

    both: list[Counts] = field(default_factory=list)
    either: list[Counts] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)

    def add(self, found: Labels, truth: Labels, classes: int) -> None:
        """One image, maps ``(H, W)``; pixels of the truth below 0 do not count."""
        counted = truth >= 0
        mine, wanted = found[counted].astype(np.int64), truth[counted].astype(np.int64)
        table = np.bincount(wanted * classes + mine, minlength=classes * classes).reshape(classes, classes)
        both = np.diagonal(table).copy()
        self.both.append(both)
        self.either.append(table.sum(0) + table.sum(1) - both)
        self.pixels.append(int(counted.sum()))

    def mean_iou(self, counts: Counts | None = None) -> Floats:
        """Percent, ``(draws,)``: IoU of all pixels together, averaged over the classes that occur.

        ``counts`` ``(draws, images)`` says how often each image was drawn; left out, each once.
        """
        both, either = np.stack(self.both), np.stack(self.either)
        weights = np.ones((1, len(both)), np.int64) if counts is None else counts
        shares = _shares(weights @ both, weights @ either)
        return np.asarray(100 * np.nanmean(shares, axis=1))

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """``mIoU`` and ``pixel_accuracy`` of all pixels together, ``mIoU_per_image``, and each class's IoU.

        ``mIoU_per_image`` is the mean over the images of the mean IoU of the classes in view, the background
        left out. All in percent.
        """
        both, either = np.stack(self.both), np.stack(self.either)
        front = np.arange(both.shape[1]) != background_of(names)
        by_image = _shares(both, either)[:, front]
        in_view = by_image[~np.isnan(by_image).all(1)]
        figures = {
            "mIoU": float(self.mean_iou()[0]),
            "mIoU_per_image": 100 * float(np.nanmean(in_view, axis=1).mean()) if len(in_view) else 0.0,
            "pixel_accuracy": 100 * float(both.sum() / max(1, sum(self.pixels))),
        }
        whole = _shares(both.sum(0), either.sum(0))
        for label in np.flatnonzero(~np.isnan(whole)).tolist():
            figures[f"IoU_{names[label] if label < len(names) else label}"] = 100 * float(whole[label])
        return figures


@dataclass(eq=False)
class Compared:
    """Segmenters on the same images: against the masks, and the others against the first."""

    against_truth: list[Overlaps]
    against_first: list[Overlaps]
    images: int = 0
    faults: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()


def mean_ious(
    model: Segmenter, data: EvaluationData, progress: Progress | None
) -> tuple[dict[str, float], int, list[str]]:
    """The figures of :meth:`Overlaps.figures`, the number of images, a line for each unreadable one.

    Raises:
        DataError: the masks cannot be read or do not fit, or no picture could be read.
    """
    got = compare_maps([model], masked_images(data), _photo, progress, pictures=_called(data), data=data)
    return got.against_truth[0].figures(got.names), got.images, got.faults


def paired_maps(
    models: Sequence[Segmenter],
    names: Iterable[str],
    data: EvaluationData,
    draws: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Paired]:
    """The first model against each other one, called by ``names``, on pictures with masks."""
    got = compare_maps(models, masked_images(data), _photo, progress, pictures=_called(data), data=data)
    counts = drawn(got.images, draws, seed)
    figures = [overlaps.figures(got.names) for overlaps in got.against_truth]
    resampled = [overlaps.mean_iou(counts) for overlaps in got.against_truth]
    result = {}
    for number, name in enumerate(names, 1):
        mine = figures[number]
        values = {key: (value, mine[key]) for key, value in figures[0].items() if key in mine}
        before, after = values["mIoU"]
        result[name] = Paired(
            metric="mIoU", exact=before, other=after, values=values, drop=before - after,
            interval=interval(resampled[0] - resampled[number]), images=got.images, labelled=True,
            agreement=float(got.against_first[number].mean_iou()[0]), faults=tuple(got.faults),
        )  # fmt: skip
    return result


def agreeing_maps(
    models: Sequence[Segmenter],
    names: Iterable[str],
    pictures: Pictures[I],
    draws: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Paired]:
    """The same on pictures without masks: the first model's class maps stand for the truth."""
    got = compare_maps(models, pictures.items, pictures.load, progress, pictures=pictures.called)
    counts = drawn(got.images, draws, seed)
    result = {}
    for number, name in enumerate(names, 1):
        overlaps = got.against_first[number]
        result[name] = Paired.agreeing(
            float(overlaps.mean_iou()[0]), interval(100 - overlaps.mean_iou(counts)), got.images, got.faults
        )
    return result


def compare_maps(
    models: Sequence[Segmenter],
    items: Iterable[I],
    load: Callable[[I], Frame8],
    progress: Progress | None,
    *,
    pictures: str,
    data: EvaluationData | None = None,
) -> Compared:
    """Run every model over every picture; one picture's maps are held at a time.

    Args:
        models: of the same classes.
        items: what stands for the pictures; :class:`MaskedImage` where there is ``data``.
        load: an item's picture.
        progress: called with pictures done and pictures in all.
        pictures: what the images are called in a message.
        data: where the masks are; None: the models are compared with the first one alone.

    Raises:
        DataError: a mask cannot be read or has another size, or no picture could be read.
    """
    got = Compared([Overlaps() for _ in models], [Overlaps() for _ in models])
    total = length_hint(items, 0)
    for done, item in enumerate(items, 1):
        one = answers(models, [item], load, _classes_of)
        got.faults += one.faults
        if one.items:
            maps = [result[0][0] for result in one.results]
            classes, got.names = one.results[0][0][1:]
            truth = read_mask(item, data, classes, maps[0].shape) if isinstance(item, MaskedImage) else None
            for number, found in enumerate(maps):
                if truth is not None:
                    got.against_truth[number].add(found, truth, classes)
                got.against_first[number].add(found, maps[0], classes)
            got.images += 1
        if progress is not None:
            progress(done, max(done, total))
    if not got.images:
        refuse_none(pictures, got.faults)
    return got


def _classes_of(
    model: Segmenter, outputs: Outputs, row: int, geometry: Geometry
) -> tuple[Labels, int, tuple[str, ...]]:
    """The class map, how many classes there are, and what they are called."""
    found = canonical.segmentation(outputs, row, geometry, model.names)
    return found.class_map, max(canonical.BOTH, outputs["logits"].shape[1]), found.names


def _called(data: EvaluationData) -> str:
    return f"{data.images}: none of the pictures with masks"


def _photo(item: MaskedImage) -> Frame8:
    return read_image(item.image)


def _shares(both: NDArray[np.integer], either: NDArray[np.integer]) -> Floats:
    """Quotients; nan where there is nothing."""
    shares = np.full(both.shape, np.nan)
    np.divide(both, either, out=shares, where=either > 0)
    return shares
