"""Parity: what passes, what is refused, and with which figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.converters import parity
from edgesmith.converters.runners import Outputs
from edgesmith.sdk.errors import ParityError
from edgesmith.sdk.manifest import Nms, Task

NMS = Nms()
Rows = Sequence[Sequence[float]]


def compared(
    reference: list[Outputs], candidate: list[Outputs], task: Task = "tensor", **more: Any
) -> parity.Parity:
    nms = more.pop("nms", NMS if task == "detect" else None)
    return parity.compare(
        reference, candidate, task=task, nms=nms, size=(64, 64), images=len(reference), tolerance=1e-3, **more
    )


def logits(*rows: list[float]) -> list[Outputs]:
    return [{"logits": np.array([row], np.float32)} for row in rows]


def test_the_same_passes_with_figures() -> None:
    values = logits([0, 1, 5], [3, 2, 1])
    found = compared(values, values, "classify")
    assert found.passed
    assert found.figures() == {
        "images": 2.0, "logits.max_abs": 0.0, "logits.cosine": pytest.approx(1.0),
        "top1_agreement": 1.0, "decisions": 2.0,
    }  # fmt: skip


def test_the_tolerance_is_a_share_of_the_range() -> None:
    reference = [{"y": np.array([[0.0, 100.0]], np.float32)}]
    inside = compared(reference, [{"y": np.array([[0.09, 100.0]], np.float32)}])
    outside = compared(reference, [{"y": np.array([[0.11, 100.0]], np.float32)}])
    assert inside.outputs[0].tolerance == pytest.approx(0.1)
    assert (inside.passed, outside.passed) == (True, False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    reference = [{"y": np.array([[1.0, 2.0]], np.float32)}]
    assert not compared(reference, [{"y": np.array([[1.0, value]], np.float32)}]).passed


def test_another_shape_fails() -> None:
    found = compared([{"y": np.zeros((1, 3), np.float32)}], [{"y": np.zeros((1, 4), np.float32)}])
    assert not found.passed
    assert found.outputs[0].max_abs == np.inf


def test_a_class_that_flips_fails_unless_it_was_a_tie() -> None:
    clear = compared(logits([0, 10, 9.9]), logits([0, 9.9, 10]), "classify")
    assert (clear.agreement, clear.decisions, clear.passed) == (0.0, 1, False)
    tie = compared(logits([0, 10, 9.999]), logits([0, 9.999, 10]), "classify")
    assert (tie.agreement, tie.decisions, tie.passed) == (1.0, 0, True)


def detections(boxes: Rows, scores: Rows) -> Outputs:
    return {"boxes": np.array([boxes], np.float32), "scores": np.array([scores], np.float32)}


BOXES = [[0, 0, 30, 30], [32, 32, 60, 60]]
SCORES = [[0.9, 0.1], [0.2, 0.6]]


def agreement(boxes: Rows, scores: Rows) -> parity.Parity:
    return compared([detections(BOXES, SCORES)], [detections(boxes, scores)], "detect")


def test_the_same_detections() -> None:
    found = agreement(BOXES, SCORES)
    assert (found.agreement, found.decisions, found.passed) == (1.0, 2, True)


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([[0, 0, 30, 30], [33, 32, 60, 60]], SCORES, 0.5),  # IoU 0.96
        (BOXES, [[0.9, 0.1], [0.2, 0.598]], 0.5),  # score moved by 0.002
        (BOXES, [[0.9, 0.1], [0.6, 0.2]], 0.5),  # another class
        (BOXES, [[0.9, 0.1], [0.2, 0.1]], 2 / 3),  # one lost
    ],
)
def test_detections_that_differ(boxes: Rows, scores: Rows, expected: float) -> None:
    found = agreement(boxes, scores)
    assert found.agreement == pytest.approx(expected)
    assert not found.passed


def test_a_score_on_the_threshold_may_fall_either_way() -> None:
    above, below = [[0.9, 0.1], [0.0, 0.2502]], [[0.9, 0.1], [0.0, 0.2499]]
    found = compared([detections(BOXES, above)], [detections(BOXES, below)], "detect")
    assert found.agreement == 1.0


def test_a_partner_counts_once() -> None:
    twice = [[0, 0, 30, 30], [0, 0, 30, 30]]
    one = detections([[0, 0, 30, 30], [50, 50, 51, 51]], [[0.9, 0.0], [0.0, 0.0]])
    nms = Nms(iou=1.0)
    found = compared([detections(twice, [[0.9, 0.0], [0.9, 0.0]])], [one], "detect", nms=nms)
    assert found.agreement == pytest.approx(2 / 3)


def test_refusal_carries_the_figures() -> None:
    found = compared(logits([0, 1, 5]), logits([5, 1, 0]), "classify")
    with pytest.raises(
        ParityError, match=r"it differs on 1 images: logits: max abs 5 \(allowed 0\.005\)"
    ) as caught:
        parity.require(found, "it differs", "Do this.")
    assert "top1 agreement 0.0 % of 1 (needs 100 %)" in str(caught.value)
    assert str(caught.value).endswith("Do this.")
    assert caught.value.figures["logits.max_abs"] == 5.0
    assert caught.value.figures["top1_agreement"] == 0.0
    assert caught.value.exit_status == 4


def nms_graph_outputs(order: list[int]) -> Outputs:
    boxes = np.array([BOXES], np.float32)[:, order]
    scores = np.array([[0.9, 0.8999999]], np.float32)[:, order]
    labels = np.array([[0, 1]], np.int64)[:, order]
    count: NDArray[np.int64] = np.array([2])
    return {
        "boxes": boxes, "scores": scores, "labels": labels, "count": count, "converged": np.array([True]),
        "candidate_boxes": boxes, "candidate_scores": scores, "candidate_labels": labels,
    }  # fmt: skip


def test_rows_of_a_graph_with_nms_may_swap() -> None:
    found = compared(
        [nms_graph_outputs([0, 1])], [nms_graph_outputs([1, 0])], "detect", nms=Nms(where="graph")
    )
    assert found.passed
    assert found.agreement == 1.0
    assert all(output.tolerance is None for output in found.outputs)


def maps(seed: int = 0, classes: int = 3) -> list[Outputs]:
    return [{"logits": np.random.default_rng(seed).normal(0, 1, (1, classes, 20, 30)).astype(np.float32)}]


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_pixels_must_keep_their_class_but_for_near_ties(classes: int) -> None:
    reference = maps(classes=classes)
    found = compared(reference, reference, "segment")
    assert (found.metric, found.agreement, found.passed) == ("pixel_agreement", 1.0, True)
    assert 500 < found.decisions <= 600
    nudged = [{"logits": reference[0]["logits"].copy()}]
    flat = nudged[0]["logits"].reshape(classes, -1)
    pixel = int(np.argmin(np.abs(flat[0]) if classes == 1 else np.ptp(np.sort(flat, 0)[-2:], 0)))
    flat[0 if classes == 1 else flat[:, pixel].argmax(), pixel] -= 2e-3
    assert compared(reference, nudged, "segment").passed
    wrong = compared(reference, maps(1, classes), "segment")
    assert not wrong.passed
    assert wrong.agreement is not None
    assert wrong.agreement < 0.9


def test_masks_of_the_same_boxes_are_compared() -> None:
    nms = Nms(where="graph", max_detections=2)
    boxes = np.array([[[4, 4, 30, 30], [0, 0, 0, 0]]], np.float32)
    reference: Outputs = {
        "boxes": boxes, "scores": np.array([[0.9, 0]], np.float32), "labels": np.zeros((1, 2), np.int32),
        "count": np.array([1], np.int32), "converged": np.array([True]),
        "masks": np.random.default_rng(0).random((1, 2, 28, 28), np.float32),
    }  # fmt: skip
    near = {**reference, "masks": reference["masks"] + np.float32(0.01)}
    far = {**reference, "masks": reference["masks"][..., ::-1].copy()}
    assert compared([reference], [near], "detect", nms=nms).passed
    assert compared([reference], [far], "detect", nms=nms).agreement == 0.0
