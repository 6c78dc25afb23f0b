"""Rows of a graph that gives the best K: near ties swap, and nothing else may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.alignment import in_order_of

Pair = tuple[NDArray[Any], NDArray[Any]]


@pytest.fixture
def answers() -> Pair:
    """Fifty boxes of four classes for two images, best first; every second pair of neighbours ties."""
    random = np.random.default_rng(0)
    corner = random.uniform(0, 300, (2, 50, 2))
    boxes = np.concatenate((corner, corner + random.uniform(5, 90, (2, 50, 2))), 2).astype(np.float32)
    best = np.repeat(np.linspace(0.9, 0.1, 25), 2)
    scores = np.zeros((2, 50, 4), np.float32)
    scores[:, np.arange(50), random.integers(0, 4, 50)] = best
    return boxes, scores


def same(answers: Pair, other: Pair) -> tuple[float, float]:
    """Largest differences of boxes and scores, once in order."""
    found = in_order_of(answers, other, pixels=0.5, score=2e-3)
    return float(np.abs(found[0] - answers[0]).max()), float(np.abs(found[1] - answers[1]).max())


def test_near_ties_that_swapped_are_put_back(answers: Pair) -> None:
    order = np.arange(50).reshape(25, 2)[:, ::-1].ravel()
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, answers[0].shape).astype(np.float32)
    boxes, scores = same(answers, (answers[0][:, order] + noise, answers[1][:, order] + 1e-4))
    assert boxes <= 0.1001
    assert scores <= 1.001e-4


def test_a_row_at_the_edge_may_be_another(answers: Pair) -> None:
    boxes, scores = (array.copy() for array in answers)
    boxes[0, 49] = (1, 2, 3, 4)
    assert same(answers, (boxes, scores)) == (0.0, 0.0)
    # Not where rows are few, or in no order of score.
    few = answers[0][:, 40:], answers[1][:, 40:]
    assert same(few, (boxes[:, 40:], scores[:, 40:]))[0] > 5
    turned = answers[0][:, ::-1], answers[1][:, ::-1]
    assert same(turned, (boxes[:, ::-1], scores[:, ::-1]))[0] > 5


def test_what_is_really_different_stays_so(answers: Pair) -> None:
    for row in (0, 20):
        boxes = answers[0].copy()
        boxes[1, row] += 9
        assert same(answers, (boxes, answers[1]))[0] > 5
        scores = answers[1].copy()
        scores[1, row] *= 0.8
        assert same(answers, (answers[0], scores))[1] > 0.05
    # Many rows at the edge are no near ties.
    boxes = answers[0].copy()
    boxes[0, 40:] += 50
    assert same(answers, (boxes, answers[1]))[0] > 20
    broken = answers[0].copy()
    broken[0, 3] = np.nan
    assert not same(answers, (broken, answers[1]))[0] <= 1


def test_another_class_is_another_detection(answers: Pair) -> None:
    assert same(answers, (answers[0], np.roll(answers[1], 1, 2)))[1] > 0.5


def test_answers_that_agree_or_are_dense_or_of_another_shape_are_given_back(answers: Pair) -> None:
    found = in_order_of(answers, answers, pixels=0.5, score=2e-3)
    assert all(np.array_equal(a, b) for a, b in zip(found, answers, strict=True))
    shorter = answers[0][:, :49], answers[1][:, :49]
    assert in_order_of(answers, shorter, pixels=0.5, score=2e-3) is shorter
    dense = np.zeros((1, 5000, 4), np.float32), np.zeros((1, 5000, 2), np.float32)
    other = dense[0] + 1, dense[1]
    assert in_order_of(dense, other, pixels=0.5, score=2e-3) is other
