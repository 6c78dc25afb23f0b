"""DETR's two kinds of scores against arithmetic written out in NumPy, and the doubt between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError

SIZE = (64, 96)
QUERIES, CLASSES = 10, 4


@pytest.fixture(scope="module")
def boxes(noise: Any) -> Tensor:
    (raw,) = noise((1, QUERIES, 4), seed=3)
    placed: Tensor = raw.sigmoid()
    return placed


def logits(noise: Any, width: int) -> Tensor:
    (raw,) = noise((1, QUERIES, width), seed=4)
    found: Tensor = raw
    return found


def run(raw: Any, fixed: Any, head: str = "detr", **given: Any) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    settings: dict[str, Any] = {"options": {}, "names": CLASSES, **given}
    adapted = adapt(
        fixed(raw), head, example=torch.rand(1, 3, *SIZE), task="detect", nms=None, python_path=[], **settings
    )
    found, scores = adapted.module(torch.rand(1, 3, *SIZE))
    return adapted, found[0].numpy(), scores[0].numpy()


def corners(boxes: Tensor) -> NDArray[np.float64]:
    x, y, w, h = boxes[0].double().numpy().T
    height, width = SIZE
    return np.stack(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), 1)


def sigmoid(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-values[0].double().numpy())))


def softmax(values: Tensor) -> NDArray[np.float64]:
    e = np.exp(values[0].double().numpy())
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("head", ["detr", "auto"])
def test_a_sigmoid_for_each_class(head: str, boxes: Tensor, noise: Any, fixed: Any) -> None:
    scores = logits(noise, CLASSES)
    raw = {"pred_logits": scores, "pred_boxes": boxes, "aux_outputs": [{"pred_logits": scores * 9}]}
    adapted, found, given = run(raw, fixed, head)
    assert (adapted.family, adapted.classes) == ("detr", CLASSES)
    assert np.abs(found - corners(boxes)).max() < 1e-4
    assert np.abs(given - sigmoid(scores)).max() < 1e-6


def test_a_softmax_with_no_object(boxes: Tensor, noise: Any, fixed: Any) -> None:
    scores = logits(noise, CLASSES + 1)
    raw = {"logits": scores, "pred_boxes": boxes}
    for head, error in (("detr", SourceError), ("auto", RecipeError)):
        with pytest.raises(error, match="no-object under a softmax, or 5 classes with a sigmoid each"):
            run(raw, fixed, head)
    options = {"activation": "softmax"}
    adapted, found, given = run(raw, fixed, options=options)
    assert adapted.classes == CLASSES
    assert np.abs(found - corners(boxes)).max() < 1e-4
    assert np.abs(given - softmax(scores)[:, :-1]).max() < 1e-6
    # A pair in the order of the authors' dict.
    assert np.array_equal(run((scores, boxes), fixed, options=options)[2], given)


def test_without_labels_the_activation_is_told(boxes: Tensor, noise: Any, fixed: Any) -> None:
    raw = {"pred_logits": logits(noise, 6), "pred_boxes": boxes}
    with pytest.raises(SourceError, match=r'head_options\.activation = "softmax" or "sigmoid"'):
        run(raw, fixed, names=None)
    assert run(raw, fixed, names=None, options={"activation": "softmax"})[0].classes == 5
    assert run(raw, fixed, names=None, options={"activation": "sigmoid"})[0].classes == 6


def test_one_joined_tensor_of_boxes_and_scores(boxes: Tensor, noise: Any, fixed: Any) -> None:
    scores = logits(noise, CLASSES)
    joined = torch.cat((boxes, scores.sigmoid()), 2)
    with pytest.raises(SourceError, match="activated = true or false"):
        run(joined, fixed)
    _, found, given = run(joined, fixed, options={"activated": True})
    assert np.abs(found - corners(boxes)).max() < 1e-4
    assert np.abs(given - sigmoid(scores)).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "options", "part"),
    [
        ({"pred_boxes": torch.full((1, QUERIES, 4), 3.0)}, {}, "shares of the input"),
        ({"pred_boxes": torch.rand(1, QUERIES + 1, 4)}, {}, r"not \(N, Q, C\) and \(N, Q, 4\)"),
        ({"pred_logits": torch.randn(1, QUERIES, 9)}, {}, "9 logits are not 4 classes"),
        ({}, {"activation": "softmax"}, "are 3 classes, the recipe's labels are 4"),
        ({}, {"activation": "tanh"}, "Invalid enum value"),
    ],
)
def test_outputs_that_are_not_detr(
    change: dict[str, Tensor], options: dict[str, object], part: str, boxes: Tensor, noise: Any, fixed: Any
) -> None:
    raw = {"pred_logits": logits(noise, CLASSES), "pred_boxes": boxes, **change}
    with pytest.raises((SourceError, RecipeError), match=part):
        run(raw, fixed, options=options)
