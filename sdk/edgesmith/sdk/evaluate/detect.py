"""COCO mean average precision, scored by faster-coco-eval (the COCO protocol of Lin et al. 2014)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from edgesmith.sdk.cameras.pictures import read_image
from edgesmith.sdk.errors import CameraError, DataError, MissingExtraError
from edgesmith.sdk.evaluate.data import EvaluationData
from edgesmith.sdk.models import Detector

# The first six of the twelve figures of the COCO protocol, in its order.
_FIGURES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large")


def mean_average_precision(
    model: Detector, data: EvaluationData, progress: Callable[[int, int], None] | None
) -> tuple[dict[str, float], int, list[str]]:
    """mAP@[.5:.95], mAP@.5 and the rest in percent, the number of images, a line for each unreadable one.

    Detections are made at the bundle's ``evaluation_score``.

    Raises:
        DataError: the annotations cannot be read, or their categories do not fit the model's classes.
    """
    truth = _annotations(data)
    categories = _categories(data, truth["categories"], model.names)
    wanted = sorted(truth["images"], key=lambda image: image["id"])[: data.limit]
    found: list[dict[str, Any]] = []
    seen: list[int] = []
    faults: list[str] = []
    for number, image in enumerate(wanted, 1):
        try:
            frame = read_image(data.images / image["file_name"])
        except CameraError as error:
            faults.append(str(error))
            continue
        detections = model(frame, score=model.nms.evaluation_score)
        found += detections.to_coco(image["id"], categories)
        seen.append(image["id"])
        if progress is not None:
            progress(number, len(wanted))
    return coco_figures(truth, found, seen), len(seen), faults


def coco_figures(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], image_ids: Sequence[int]
) -> dict[str, float]:
    """The COCO figures in percent of results against a COCO dictionary, over some of its images."""
    coco, evaluator = _evaluator()
    if not found:
        return dict.fromkeys(_FIGURES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluator prints its table
        reference = coco(truth)
        judge = evaluator(reference, reference.loadRes(list(found)), "bbox")
        judge.params.imgIds = list(image_ids)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # The protocol gives -1 where there is no object of a size.
    return {name: max(0.0, 100 * float(v)) for name, v in zip(_FIGURES, judge.stats[:6], strict=True)}


def _evaluator() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingExtraError(
            "mAP needs faster-coco-eval: pip install 'edgesmith[eval]'", extra="eval"
        ) from error
    return COCO, COCOeval_faster


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
