"""How near one graph's answers are to another's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.converters.precision.agreement import agreement, decibels
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.evaluate.detect import coco_figures
from edgesmith.sdk.manifest import Nms
from edgesmith.sdk.preprocess import Geometry

SIZE = (96, 128)
NMS = Nms()
Arrays = dict[str, NDArray[np.float32]]


def logits(*rows: list[float]) -> list[Arrays]:
    return [{"logits": np.array([row], np.float32)} for row in rows]


def scenes(seed: int, noise: float = 0.0) -> list[Arrays]:
    """Outputs of a detector on eight images: 30 boxes, 3 classes; a quarter of them score high."""
    random, shaken = np.random.default_rng(seed), np.random.default_rng(99)
    found = []
    for _ in range(8):
        corner = random.uniform(0, 80, (1, 30, 2))
        boxes = np.concatenate([corner, corner + random.uniform(8, 40, (1, 30, 2))], 2)
        scores = random.uniform(0, 1, (1, 30, 3)) ** 3
        boxes += noise * shaken.normal(0, 1, boxes.shape)
        boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
        scores = np.clip(scores + noise * 0.03 * shaken.normal(0, 1, scores.shape), 0, 1)
        found.append({"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)})
    return found


def test_decisions_of_a_classifier() -> None:
    exact = logits([1, 2, 0], [5, 0, 1], [0, 0, 3], [1, 0, 0])
    other = logits([1, 2, 0], [0, 4, 1], [0, 0, 3], [1, 0, 0])
    found = agreement(exact, other, task="classify", nms=None, size=SIZE)
    assert (found.same, found.flipped, found.decisions) == (75.0, 1, 4)
    signal, noise = 1 + 4 + 25 + 1 + 9 + 1, 25 + 16
    assert found.decibels == pytest.approx(10 * np.log10(signal / noise))
    same = agreement(exact, exact, task="classify", nms=None, size=SIZE)
    assert (same.same, same.flipped, same.decibels) == (100.0, 0, float("inf"))


def test_decibels_pool_all_arrays_and_take_half_precision() -> None:
    one, two = np.array([3.0, 4.0], np.float32), np.array([[10.0]], np.float16)
    assert decibels([one, two], [one + 1, two]) == pytest.approx(10 * np.log10(125 / 2))
    assert decibels([np.zeros(3, np.float32)], [np.ones(3, np.float32)]) < -100


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0, 6.0])
def test_a_detectors_agreement_is_the_protocols_map(noise: float) -> None:
    """Against the reference evaluator on the float model's own detections."""
    exact, other = scenes(1), scenes(1, noise)
    geometry = Geometry(*SIZE, *SIZE)
    truth: dict[str, list[dict[str, object]]] = {
        "images": [], "annotations": [], "categories": [{"id": n, "name": str(n)} for n in range(3)],
    }  # fmt: skip
    results = []
    for number, (a, b) in enumerate(zip(exact, other, strict=True), 1):
        truth["images"].append({"id": number, "width": SIZE[1], "height": SIZE[0]})
        for item in canonical.detections(a, 0, geometry, NMS, (), score=0.3).to_coco(number):
            area = item["bbox"][2] * item["bbox"][3]
            entry = {**item, "id": len(truth["annotations"]) + 1, "area": area, "iscrowd": 0}
            truth["annotations"].append(entry)
        results += canonical.detections(b, 0, geometry, NMS, (), score=NMS.evaluation_score).to_coco(number)
    expected = coco_figures(truth, results, list(range(1, 9)))["mAP"]
    found = agreement(exact, other, task="detect", nms=NMS, size=SIZE)
    assert found.same == pytest.approx(expected, abs=1e-6)
    assert found.decisions == len(truth["annotations"]) > 50
    assert (found.same == 100.0) == (noise == 0.0)
    assert noise != 0.0 or found.flipped == 0


def test_a_detector_that_is_sure_of_nothing_has_no_decisions() -> None:
    exact = [{**one, "scores": one["scores"] * np.float32(0.1)} for one in scenes(1)]
    found = agreement(exact, scenes(1, 3.0), task="detect", nms=NMS, size=SIZE)
    assert (found.same, found.decisions) == (100.0, 0)
    assert np.isfinite(found.decibels)


def test_lost_detections_are_counted() -> None:
    exact = scenes(2)
    blind = [{**one, "scores": np.zeros_like(one["scores"])} for one in exact]
    found = agreement(exact, blind, task="detect", nms=NMS, size=SIZE)
    assert found.same == 0.0
    assert found.flipped == found.decisions > 0


def test_a_segmenter_agrees_by_mean_iou() -> None:
    exact = np.zeros((1, 2, 4, 4), np.float32)
    exact[0, 1, :, 2:] = 1  # right half class 1
    other = exact.copy()
    other[0, 1, 0] = 5  # the first row is class 1 too
    found = agreement([{"logits": exact}], [{"logits": other}], task="segment", nms=None, size=(4, 4))
    assert found.same == pytest.approx(100 * np.mean([6 / 8, 8 / 10]))
    assert (found.flipped, found.decisions) == (2, 16)
    assert found.decibels == decibels([exact], [other])
    same = agreement([{"logits": exact}], [{"logits": exact}], task="segment", nms=None, size=(4, 4))
    assert (same.same, same.flipped) == (100.0, 0)


def test_tensors_agree_by_their_worst_output() -> None:
    exact = {"a": np.full((1, 3), 2, np.float32), "b": np.full((1, 2), 10, np.float32)}
    other = {"a": exact["a"] + 0.2, "b": exact["b"] + 0.1}
    found = agreement([exact], [other], task="tensor", nms=None, size=(1, 1))
    assert found.decibels == pytest.approx(20.0, abs=1e-4)
    assert (found.same, found.decisions) == (100.0, 0)
