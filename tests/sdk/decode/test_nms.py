"""Suppression on the host, against the rule written out plainly and against torchvision."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from edgesmith.sdk.decode.nms import candidates, greedy, suppress
from edgesmith.sdk.manifest import Nms

Floats = NDArray[np.float32]
Classes = Literal["best", "all"]


def reference(
    boxes: Floats, scores: Floats, nms: Nms, score: float, iou: float
) -> list[tuple[int, float, int]]:
    """Box number, score and class of what stays: one pair at a time, in float64."""
    entries = []
    for box in range(len(scores)):
        for label in range(scores.shape[1]):
            if nms.classes == "best" and label != int(np.argmax(scores[box])):
                continue
            if scores[box, label] > np.float32(score):
                entries.append((box, float(scores[box, label]), label))
    entries.sort(key=lambda e: -e[1])  # stable: ties stay in the order of the boxes
    kept: list[tuple[int, float, int]] = []
    for entry in entries[: nms.candidates]:
        if all(other[2] != entry[2] or overlap(boxes[other[0]], boxes[entry[0]]) <= iou for other in kept):
            kept.append(entry)
        if len(kept) == nms.max_detections:
            break
    return kept


def overlap(a: Floats, b: Floats) -> float:
    x1, y1, x2, y2 = (float(v) for v in a)
    u1, v1, u2, v2 = (float(v) for v in b)
    inter = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
    union = max(0.0, x2 - x1) * max(0.0, y2 - y1) + max(0.0, u2 - u1) * max(0.0, v2 - v1) - inter
    return inter / union if union > 0 else 0.0


def scene(seed: int, boxes: int, classes: int, spread: float, levels: int = 0) -> tuple[Floats, Floats]:
    """Boxes round a few places; ``levels`` > 0 draws scores from so many values, for ties."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 400, (max(boxes // 8, 1), 2))[rng.integers(0, max(boxes // 8, 1), boxes)]
    centres = centres + rng.normal(0, spread, (boxes, 2))
    half = rng.uniform(8, 60, (boxes, 2))
    corners = np.concatenate((centres - half, centres + half), 1).astype(np.float32)
    scores = rng.uniform(0, 1, (boxes, classes)) ** 3
    if levels:
        scores = np.floor(scores * levels) / levels
    return corners, scores.astype(np.float32)


def check(
    boxes: Floats, scores: Floats, nms: Nms, score: float | None = None, iou: float | None = None
) -> int:
    kept, found, labels = suppress(boxes, scores, nms, score=score, iou=iou)
    wanted = reference(
        boxes, scores, nms, nms.score if score is None else score, nms.iou if iou is None else iou
    )
    np.testing.assert_array_equal(labels, np.array([w[2] for w in wanted], np.int64))
    np.testing.assert_array_equal(found, np.array([w[1] for w in wanted], np.float32))
    np.testing.assert_array_equal(kept, boxes[[w[0] for w in wanted]])
    assert kept.dtype == found.dtype == np.float32
    return len(wanted)


@pytest.mark.parametrize("classes", ["best", "all"])
@pytest.mark.parametrize(
    ("name", "spread", "levels"), [("spread out", 300.0, 0), ("crowded", 6.0, 0), ("equal scores", 6.0, 5)]
)
def test_as_the_rule_says(name: str, spread: float, levels: int, classes: Classes) -> None:
    total = 0
    for seed in range(6):
        boxes, scores = scene(seed, 300, 4, spread, levels)
        for iou in (0.3, 0.65):
            total += check(boxes, scores, Nms(classes=classes, score=0.1, iou=iou, max_detections=400))
    assert total > 500


@pytest.mark.parametrize("score", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("iou", [0.0, 0.5, 1.0])
def test_thresholds_of_the_call_win(score: float, iou: float) -> None:
    boxes, scores = scene(3, 200, 3, 6.0)
    check(boxes, scores, Nms(score=0.5, iou=0.65), score=score, iou=iou)


def test_a_score_equal_to_the_threshold_is_out() -> None:
    boxes = np.array([[0, 0, 9, 9], [50, 50, 60, 60]], np.float32)
    scores = np.array([[0.25], [0.2500001]], np.float32)
    assert suppress(boxes, scores, Nms(score=0.25))[1].tolist() == [scores[1, 0]]


def test_an_overlap_equal_to_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU is one half exactly
    scores = np.array([[0.9], [0.8]], np.float32)
    assert len(suppress(boxes, scores, Nms(iou=0.5))[0]) == 2
    assert len(suppress(boxes, scores, Nms(iou=0.499))[0]) == 1


def test_classes_do_not_suppress_one_another() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    scores = np.array([[0.9, 0.5], [0.1, 0.8], [0.7, 0.6]], np.float32)
    kept = suppress(boxes, scores, Nms(classes="best"))
    assert kept[2].tolist() == [0, 1]
    kept = suppress(boxes, scores, Nms(classes="all", score=0.55))
    assert [round(s, 1) for s in kept[1].tolist()] == [0.9, 0.8]


def test_the_number_of_candidates_and_of_detections_is_bounded() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1e5, (900, 2))
    boxes = np.concatenate((corners, corners + 5), 1).astype(np.float32)
    scores = rng.uniform(0.3, 1, (900, 1)).astype(np.float32)
    for most, entering in ((7, 3000), (100, 3000), (500, 40), (127, 900), (128, 900), (129, 900)):
        nms = Nms(max_detections=most, candidates=entering)
        assert check(boxes, scores, nms) == min(most, entering)


@pytest.mark.parametrize("classes", ["best", "all"])
@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0), (5, 3)])
def test_nothing_gives_nothing(shape: tuple[int, int], classes: Classes) -> None:
    boxes = np.zeros((shape[0], 4), np.float32)
    kept, scores, labels = suppress(boxes, np.zeros(shape, np.float32), Nms(classes=classes))
    assert (kept.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
    assert kept.dtype == scores.dtype == np.float32


def test_boxes_without_area_stay() -> None:
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 3, 3], [0, 0, 20, 20]], np.float32)
    scores = np.array([[0.9], [0.8], [0.7], [0.6]], np.float32)
    assert len(suppress(boxes, scores, Nms(iou=0.0))[0]) == 4


def test_candidates_come_best_first_with_ties_in_box_order() -> None:
    scores = np.array([[0.5, 0.7], [0.7, 0.7], [0.2, 0.1], [0.9, 0.0]], np.float32)
    rows, found, labels = candidates(scores, Nms(classes="all"), 0.3)
    assert rows.tolist() == [3, 0, 1, 1, 0]
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert (np.diff(found) <= 0).all()
    rows, _, labels = candidates(scores, Nms(classes="best", candidates=2), 0.3)
    assert (rows.tolist(), labels.tolist()) == ([3, 0], [0, 1])


def test_a_score_that_is_no_number_is_out() -> None:
    boxes = np.array([[0, 0, 5, 5], [30, 30, 40, 40]], np.float32)
    scores = np.array([[np.nan], [0.5]], np.float32)
    for classes in ("best", "all"):
        assert suppress(boxes, scores, Nms(classes=classes))[1].tolist() == [0.5]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    boxes=st.integers(0, 150),
    classes=st.integers(1, 5),
    spread=st.sampled_from([0.0, 4.0, 80.0]),
    levels=st.sampled_from([0, 2, 6]),
    mode=st.sampled_from(["best", "all"]),
    most=st.integers(1, 60),
    entering=st.integers(1, 200),
)
def test_any_scene_is_as_the_rule_says(
    seed: int, boxes: int, classes: int, spread: float, levels: int, mode: Classes, most: int, entering: int
) -> None:
    corners, scores = scene(seed, boxes, classes, spread, levels)
    nms = Nms(classes=mode, score=0.05, iou=0.45, max_detections=most, candidates=entering)
    check(corners, scores, nms)


@pytest.mark.parametrize("seed", range(4))
def test_torchvision_agrees(seed: int) -> None:
    # As a detector leaves them: thousands of boxes, 20 classes, most scores near zero.
    boxes, scores = scene(seed, 3549, 20, 4.0)
    scores = scores**15
    nms = Nms(classes="all", candidates=10**6, max_detections=10**6)
    rows, found, labels = candidates(scores, nms, 0.05)
    # In float64: their way of keeping classes apart moves boxes far out, which costs float32 its bits.
    theirs = batched_nms(
        torch.from_numpy(boxes[rows]).double(),
        torch.from_numpy(found).double(),
        torch.from_numpy(labels),
        0.5,
    ).numpy()
    assert 1000 < len(theirs) < 0.9 * len(rows)
    ours = greedy(boxes[rows], labels, 0.5, 10**6)
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))  # they order ties as they like
    np.testing.assert_array_equal(found[ours], found[theirs])


def test_greedy_works_across_blocks() -> None:
    # One box suppresses all of its class, far behind in the order; the last of another class stays.
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (1000, 1))
    labels = np.zeros(1000, np.int64)
    labels[-1] = 1
    assert greedy(boxes, labels, 0.5, 100).tolist() == [0, 999]
