"""A graph's canonical outputs for one image to results.

Boxes are xyxy in input pixels here, and in frame pixels afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.decode.nms import greedy, suppress
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.manifest import Nms
from edgesmith.sdk.preprocess import Geometry
from edgesmith.sdk.results import Classifications, Detections

Outputs = Mapping[str, NDArray[Any]]


def check_thresholds(nms: Nms, score: float | None, iou: float | None) -> None:
    """Refuse thresholds that the graph cannot serve.

    Raises:
        ConfigError: suppression is in the graph, and ``iou`` differs from what it was built with,
            or ``score`` is below what it was built at; or a threshold is outside 0..1.
    """
    for name, value in (("score", score), ("iou", iou)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ConfigError(f"{name} is {value}; it must be 0..1")
    if nms.where == "host":
        return
    if iou is not None and iou != nms.iou:
        raise ConfigError(f"suppression is in this bundle's graph, at iou {nms.iou}: convert again for {iou}")
    if score is not None and score < nms.evaluation_score:
        raise ConfigError(
            f"suppression is in the graph, from score {nms.evaluation_score} on: convert again for {score}"
        )


def detections(
    outputs: Outputs,
    row: int,
    geometry: Geometry,
    nms: Nms,
    names: tuple[str, ...],
    *,
    score: float | None = None,
    iou: float | None = None,
) -> Detections:
    """Image ``row`` of a batch: ``boxes (N, K, 4)`` and ``scores (N, K, C)``, or suppressed in the graph."""
    if nms.where == "graph":
        boxes, scores, labels = _from_graph(outputs, row, nms, nms.score if score is None else score)
    else:
        boxes, scores, labels = suppress(
            outputs["boxes"][row], outputs["scores"][row], nms, score=score, iou=iou
        )
    mapped = geometry.boxes_to_image(boxes.astype(np.float32, copy=False))
    return Detections(mapped, scores.astype(np.float32, copy=False), labels.astype(np.int32), names)


def _from_graph(
    outputs: Outputs, row: int, nms: Nms, score: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    if bool(outputs["converged"][row]):
        count = int(outputs["count"][row])
        boxes, scores = outputs["boxes"][row, :count], outputs["scores"][row, :count]
        labels = outputs["labels"][row, :count]
    else:
        # The fixed point was not reached in the graph's steps: the same candidates, greedily.
        scores = outputs["candidate_scores"][row]
        live = scores > nms.evaluation_score
        boxes, scores = outputs["candidate_boxes"][row][live], scores[live]
        labels = outputs["candidate_labels"][row][live]
        stays = greedy(boxes, labels, nms.iou, nms.max_detections)
        boxes, scores, labels = boxes[stays], scores[stays], labels[stays]
    keep = scores > score
    return boxes[keep], scores[keep], labels[keep].astype(np.int64)


def classifications(outputs: Outputs, row: int, names: tuple[str, ...]) -> Classifications:
    """Image ``row`` of ``logits (N, C)``: softmax, best first, ties in class order."""
    logits = outputs["logits"][row].astype(np.float64)
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    order = np.argsort(-logits, kind="stable")
    return Classifications(order.astype(np.int32), chances[order].astype(np.float32), names)
