"""COCO mean average precision, scored by faster-coco-eval (the COCO protocol of Lin et al. 2014)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgesmith.sdk.cameras.pictures import read_image
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.errors import DataError, MissingExtraError
from edgesmith.sdk.evaluate.answers import Answers, Frame8, I, Outputs, Progress, answers
from edgesmith.sdk.evaluate.data import EvaluationData
from edgesmith.sdk.evaluate.matching import Truth
from edgesmith.sdk.models import Detector
from edgesmith.sdk.preprocess import Geometry
from edgesmith.sdk.results import Detections

# The first six of the twelve figures of the COCO protocol, in its order.
_FIGURES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large")


@dataclass(frozen=True, slots=True, eq=False)
class CocoData:
    """Pictures with COCO annotations, fitted to a model's classes.

    Attributes:
        content: the COCO dictionary.
        images: its image entries in the order of their ids, up to the limit.
        categories: the category id of each class index.
    """

    data: EvaluationData
    content: dict[str, Any]
    images: list[dict[str, Any]]
    categories: list[int]

    @classmethod
    def read(cls, data: EvaluationData, names: Sequence[str]) -> CocoData:
        """The annotations of ``data`` for a model with these class names.

        Raises:
            DataError: they cannot be read, or their categories do not fit.
        """
        content = _annotations(data)
        categories = _categories(data, content["categories"], names)
        return cls(
            data, content, sorted(content["images"], key=lambda image: image["id"])[: data.limit], categories
        )

    def load(self, image: dict[str, Any]) -> Frame8:
        """The picture of an image entry, BGR uint8 ``(H, W, 3)``; CameraError where it cannot be read."""
        return read_image(self.data.images / image["file_name"])

    def truth(self, images: Sequence[dict[str, Any]]) -> Truth:
        """The objects of some image entries, which are numbered as given; classes are category ids."""
        numbers = {image["id"]: n for n, image in enumerate(images)}
        known = {entry["id"] for entry in self.content["categories"]}
        marks = [
            a for a in self.content["annotations"] if a["image_id"] in numbers and a["category_id"] in known
        ]
        return Truth(
            len(images),
            np.array([numbers[a["image_id"]] for a in marks], np.int64),
            np.array([a["category_id"] for a in marks], np.int64),
            np.array([a["bbox"] for a in marks], np.float64).reshape(-1, 4),
            np.array([bool(a["iscrowd"]) for a in marks], np.bool_),
        )

    def figures(self, images: Sequence[dict[str, Any]], found: Sequence[Detections]) -> dict[str, float]:
        """The COCO figures in percent of the detections in some image entries.

        Where detections and annotations have masks, the same of these too, as ``mask_mAP`` and so on.
        """
        ids = [image["id"] for image in images]
        results = [
            item
            for number, detections in zip(ids, found, strict=True)
            for item in detections.to_coco(number, self.categories)
        ]
        figures = coco_figures(self.content, results, ids)
        if any(detections.masks is not None for detections in found) and self._has_masks(images):
            # Without the boxes the evaluator takes sizes from the masks, as it should.
            shapes = [{key: value for key, value in item.items() if key != "bbox"} for item in results]
            masks = coco_figures(self.content, shapes, ids, kind="segm")
            figures |= {f"mask_{name}": value for name, value in masks.items()}
        return figures

    def _has_masks(self, images: Sequence[dict[str, Any]]) -> bool:
        ids = {image["id"] for image in images}
        sized = all("height" in image and "width" in image for image in images)
        return sized and all(
            mark.get("segmentation") for mark in self.content["annotations"] if mark["image_id"] in ids
        )


def detections(
    models: Sequence[Detector],
    items: Iterable[I],
    load: Callable[[I], Frame8],
    progress: Progress | None = None,
) -> Answers[I, Detections]:
    """The detections in each picture by each model, at its bundle's ``evaluation_score``."""
    return answers(models, items, load, _at_evaluation_score, progress=progress)


def mean_average_precision(
    model: Detector, data: EvaluationData, progress: Progress | None
) -> tuple[dict[str, float], int, list[str]]:
    """mAP@[.5:.95], mAP@.5 and the rest in percent, the number of images, a line for each unreadable one.

    Detections are made at the bundle's ``evaluation_score``.

    Raises:
        DataError: the annotations cannot be read, their categories do not fit the model's classes,
            or no picture could be read.
    """
    coco = CocoData.read(data, model.names)
    need_evaluator()
    got = detections([model], coco.images, coco.load, progress)
    got.need_some(f"{data.images}: none of the labelled pictures")
    return coco.figures(got.items, got.results[0]), len(got.items), got.faults


def coco_figures(
    truth: dict[str, Any],
    found: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    *,
    kind: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """The COCO figures in percent of results against a COCO dictionary, over some of its images."""
    coco, evaluator = need_evaluator()
    if not found:
        return dict.fromkeys(_FIGURES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluator prints its table
        reference = coco(truth)
        judge = evaluator(reference, reference.loadRes(list(found)), kind)
        judge.params.imgIds = list(image_ids)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # The protocol gives -1 where there is no object of a size.
    return {name: max(0.0, 100 * float(v)) for name, v in zip(_FIGURES, judge.stats[:6], strict=True)}


def need_evaluator() -> tuple[Any, Any]:
    """The evaluator's two classes, asked for before a long run rather than after it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingExtraError(
            "mAP needs faster-coco-eval: pip install 'edgesmith[eval]'", extra="eval"
        ) from error
    return COCO, COCOeval_faster


def _at_evaluation_score(model: Detector, outputs: Outputs, row: int, geometry: Geometry) -> Detections:
    score = model.nms.evaluation_score
    return canonical.detections(outputs, row, geometry, model.nms, model.names, score=score)


def _annotations(data: EvaluationData) -> dict[str, Any]:
    path = data.annotations
    if path is None:
        raise DataError(f"{data.images}: a detector is scored against COCO JSON: give its annotations file")
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as COCO JSON: {error}") from error
    if not isinstance(truth, dict):
        raise DataError(f"{path}: not COCO JSON: the top level is a {type(truth).__name__}")
    for key, fields in (
        ("images", {"id", "file_name"}),
        ("categories", {"id", "name"}),
        ("annotations", {"image_id", "category_id", "bbox"}),
    ):
        entries = truth.get(key)
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and fields <= e.keys() for e in entries
        ):
            raise DataError(f"{path}: {key} must be a list of objects with {', '.join(sorted(fields))}")
    if not truth["images"]:
        raise DataError(f"{path}: it lists no images")
    for number, mark in enumerate(truth["annotations"], 1):
        box = mark["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
            raise DataError(f"{path}: annotations[{number - 1}]: bbox is {box!r}, not x, y, width, height")
        # The evaluator takes an id of 0 for "not matched", and files without ids or areas are common.
        mark["id"] = number
        mark.setdefault("area", box[2] * box[3])
        mark.setdefault("iscrowd", 0)
    return truth


def _categories(data: EvaluationData, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> list[int]:
    """The category id of each class index: by name, else by rank of the id."""
    by_name = {entry["name"]: int(entry["id"]) for entry in entries}
    if names and all(name in by_name for name in names):
        return [by_name[name] for name in names]
    ids = sorted(int(entry["id"]) for entry in entries)
    if names and len(ids) != len(names):
        raise DataError(
            f"{data.annotations}: {len(ids)} categories for a model of {len(names)} classes, with other names"
        )
    return ids
