"""Detections that a module chose itself, in the forms that exporters write them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Nms

# x1, y1, x2, y2, score, class number; the last row is padding.
ROWS = torch.tensor(
    [[[2, 3, 30, 40, 0.9, 2], [5, 5, 20, 60, 0.75, 0], [1, 2, 60, 61, 0.5, 2], [0, 0, 0, 0, 0, 0]]]
).float()


def run(raw: Any, fixed: Any, head: str = "end_to_end", **given: Any) -> tuple[Tensor, Tensor]:
    settings: dict[str, Any] = {"options": {}, "nms": None, "names": 3, **given}
    adapted = adapt(
        fixed(raw), head, example=torch.rand(1, 3, 64, 64), task="detect", python_path=[], **settings
    )
    assert adapted.family == "end_to_end"
    boxes, scores = adapted.module(torch.rand(1, 3, 64, 64))
    return boxes, scores


def check(boxes: Tensor, scores: Tensor) -> None:
    assert torch.equal(boxes, ROWS[..., :4])
    wanted = torch.tensor([[[0, 0, 0.9], [0.75, 0, 0], [0, 0, 0.5], [0, 0, 0]]])
    assert torch.equal(scores, wanted)


@pytest.mark.parametrize("head", ["end_to_end", "auto"])
def test_one_tensor_of_six_columns(head: str, fixed: Any) -> None:
    check(*run(ROWS, fixed, head))
    # Behind it may stand what the module was trained with.
    check(*run((ROWS, {"one2many": torch.rand(1, 7, 8, 8)}), fixed, head))


@pytest.mark.parametrize(
    "raw",
    [
        (ROWS[..., :4], ROWS[..., 4], ROWS[..., 5].long()),
        (ROWS[..., 5].int(), ROWS[..., :4], ROWS[..., 4]),
        {"labels": ROWS[..., 5], "boxes": ROWS[..., :4], "scores": ROWS[..., 4]},
    ],
)
def test_three_tensors_in_any_order(raw: Any, fixed: Any) -> None:
    check(*run(raw, fixed))


def test_centres_and_sizes_are_told(fixed: Any) -> None:
    centred = torch.cat(
        ((ROWS[..., :2] + ROWS[..., 2:4]) / 2, ROWS[..., 2:4] - ROWS[..., :2], ROWS[..., 4:]), 2
    )
    check(*run(centred, fixed, options={"boxes": "cxcywh"}))


def test_without_labels_the_number_of_classes_is_told(fixed: Any) -> None:
    with pytest.raises(SourceError, match=r"give labels or head_options\.classes"):
        run(ROWS, fixed, names=None)
    assert run(ROWS, fixed, names=None, options={"classes": 5})[1].shape == (1, 4, 5)
    with pytest.raises(SourceError, match="classes is 5, the recipe's labels are 3"):
        run(ROWS, fixed, options={"classes": 5})


def changed(column: int, value: float) -> Tensor:
    rows = ROWS.clone()
    rows[0, 0, column] = value
    return rows


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (changed(5, 1.5), "class numbers are whole"),
        (changed(5, -1), "not below zero"),
        (changed(5, 3), "class number 3 is not one of 3 classes"),
        (changed(4, 1.2), "scores lie in 0..1"),
        (changed(0, 50), "some boxes end before they begin"),
        (ROWS * torch.tensor([0.01] * 4 + [1, 1]), "must be in pixels"),
        (ROWS[..., :5], "it takes one tensor"),
        ((ROWS[..., :4], ROWS[..., 4], ROWS[..., 5]), "name them scores and labels"),
        ((ROWS[..., :4], ROWS[..., 4], ROWS[:, :2, 5].long()), "it takes one tensor"),
    ],
)
def test_outputs_that_are_no_detections(raw: Any, part: str, fixed: Any) -> None:
    with pytest.raises(SourceError, match=part):
        run(raw, fixed)


def test_one_class_leaves_doubt_with_yolox(fixed: Any) -> None:
    # As many rows as YOLOX has cells, six columns: box, objectness and one class, or score and number.
    rows = torch.zeros(1, 84, 6)
    rows[..., 2:4] = 5
    with pytest.raises(RecipeError, match="in doubt"):
        run(rows, fixed, "auto", names=1)


def test_suppression_that_is_on_is_told(fixed: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(ROWS, fixed, nms=Nms(iou=1.0))
    assert "nms.iou" not in caplog.text
    run(ROWS, fixed, nms=Nms(iou=0.65))
    assert "set nms.iou = 1.0" in caplog.text
