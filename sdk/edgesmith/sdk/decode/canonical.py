"""A graph's canonical outputs for one image to results.

Boxes are xyxy in input pixels here, and in frame pixels afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.decode.ctc import best_path
from edgesmith.sdk.decode.nms import greedy, suppress
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.manifest import Nms, Preprocess
from edgesmith.sdk.maps import Segmentation, Tensors, map_type
from edgesmith.sdk.masks import BoxMasks
from edgesmith.sdk.preprocess import Geometry
from edgesmith.sdk.results import Classifications, Detections

Outputs = Mapping[str, NDArray[Any]]
BOTH = 2  # classes of a segmenter with one map: the object and all else


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
    masks = None
    if nms.where == "graph":
        boxes, scores, labels, rows = _from_graph(outputs, row, nms, nms.score if score is None else score)
        if rows is not None:
            # In the frames of the boxes before those are cut at the image's border.
            corners = geometry.points_to_image(boxes.reshape(-1, 2)).reshape(-1, 4)
            masks = BoxMasks(outputs["masks"][row][rows], corners, (geometry.height, geometry.width))
    else:
        boxes, scores, labels = suppress(
            outputs["boxes"][row], outputs["scores"][row], nms, score=score, iou=iou
        )
    mapped = geometry.boxes_to_image(boxes.astype(np.float32, copy=False))
    return Detections(mapped, scores.astype(np.float32, copy=False), labels.astype(np.int32), names, masks)


def _from_graph(
    outputs: Outputs, row: int, nms: Nms, score: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64] | None]:
    """Boxes, scores and classes, and where there are masks the rows that they stand in."""
    with_masks = "masks" in outputs
    settled = bool(outputs["converged"][row])
    if settled or with_masks:
        count = int(outputs["count"][row])
        boxes, scores = outputs["boxes"][row, :count], outputs["scores"][row, :count]
        labels = outputs["labels"][row, :count]
        rows = np.arange(count)
        if not settled:
            # Masks exist for what the graph kept alone. After an even number of steps that is too much and
            # never too little, so the greedy suppression finds its own answer in it.
            rows = greedy(boxes, labels, nms.iou, nms.max_detections)
            boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
    else:
        # The fixed point was not reached in the graph's steps: the same candidates, greedily.
        scores = outputs["candidate_scores"][row]
        live = scores > nms.evaluation_score
        boxes, scores = outputs["candidate_boxes"][row][live], scores[live]
        labels = outputs["candidate_labels"][row][live]
        rows = greedy(boxes, labels, nms.iou, nms.max_detections)
        boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
    keep = scores > score
    return boxes[keep], scores[keep], labels[keep].astype(np.int64), rows[keep] if with_masks else None


def classifications(outputs: Outputs, row: int, names: tuple[str, ...]) -> Classifications:
    """Image ``row`` of ``logits (N, C)``: softmax, best first, ties in class order."""
    logits = outputs["logits"][row].astype(np.float64)
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    order = np.argsort(-logits, kind="stable")
    return Classifications(order.astype(np.int32), chances[order].astype(np.float32), names)


def segmentation(outputs: Outputs, row: int, geometry: Geometry, names: tuple[str, ...]) -> Segmentation:
    """Image ``row`` of ``logits (N, C, H, W)``: the class of each of the image's pixels.

    The logits are brought to the image's size, and then the largest is taken: edges are those between the
    classes, not those of the coarser map. A single map is that of the object (class 1), where it is above 0.
    """
    logits = outputs["logits"][row].astype(np.float32, copy=False)
    if len(logits) <= BOTH:
        # Of two classes the difference decides, and resizing is linear.
        margin = logits[0] if len(logits) == 1 else logits[1] - logits[0]
        if len(logits) == 1 and len(names) == 1:
            names = ("background", *names)
        return Segmentation((geometry.map_to_image(margin) > 0).astype(np.uint8), names)
    best = geometry.map_to_image(logits[0])
    class_map = np.zeros(best.shape, map_type(len(logits)))
    for label in range(1, len(logits)):
        values = geometry.map_to_image(logits[label])
        class_map[values > best] = label
        np.maximum(best, values, out=best)
    return Segmentation(class_map, names)


def best_classes(logits: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """The class of each place of ``logits (C, h, w)``, as :func:`segmentation` decides, at their own size."""
    if len(logits) == 1:
        return np.asarray(logits[0] > 0, np.uint8)
    return np.asarray(logits.argmax(0), map_type(len(logits)))


def tensors(outputs: Outputs, row: int, preprocess: Preprocess, alphabet: tuple[str, ...] = ()) -> Tensors:
    """Image ``row`` of every output under its own name; copies. A single number has no rows.

    With an ``alphabet`` (the first entry for the blank) the first output ``(N, T, C)`` with a class for each
    of it is read as text.
    """
    arrays = {name: np.array(values[row] if values.ndim else values) for name, values in outputs.items()}
    steps = next((v for v in arrays.values() if v.ndim == 2 and v.shape[1] == len(alphabet)), None)
    return Tensors(arrays, preprocess, None if steps is None else best_path(steps, alphabet))
