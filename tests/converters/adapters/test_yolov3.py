"""YOLOv3's decode against one written out in NumPy, cell by cell, and told apart from YOLOv5's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError

SIZE = (64, 96)
ANCHORS = {
    8: [(10, 13), (16, 30), (33, 23)],
    16: [(30, 61), (62, 45), (59, 119)],
    32: [(116, 90), (156, 198), (373, 326)],
}
CLASSES = 4
ROWS = 3 * (8 * 12 + 4 * 6 + 2 * 3)


@pytest.fixture(scope="module")
def maps(noise: Any) -> tuple[Tensor, ...]:
    return tuple(0.4 * m for m in noise((1, 27, 8, 12), (1, 27, 4, 6), (1, 27, 2, 3), seed=5))


def decoded(maps: tuple[Tensor, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x, y, w, h in pixels and, for each class, objectness times class, one cell after another."""
    places, scores = [], []
    for tensor, (stride, anchors) in zip(maps, ANCHORS.items(), strict=True):
        values = tensor[0].double().numpy().reshape(3, 9, *tensor.shape[2:])
        for anchor, (width, height) in enumerate(anchors):
            for row, column in np.ndindex(*tensor.shape[2:]):
                v = values[anchor, :, row, column]
                s = [1 / (1 + math.exp(-x)) for x in v]
                places.append(
                    [
                        (s[0] + column) * stride,
                        (s[1] + row) * stride,
                        math.exp(v[2]) * width,
                        math.exp(v[3]) * height,
                    ]
                )
                scores.append([s[4], *s[5:]])
    return np.array(places), np.array(scores)


def run(raw: Any, head: str, fixed: Any, **options: object) -> tuple[str, NDArray[Any], NDArray[Any]]:
    adapted = adapt(
        fixed(raw), head, example=torch.rand(1, 3, *SIZE), task="detect", options=options, nms=None,
        names=CLASSES, python_path=[],
    )  # fmt: skip
    with torch.no_grad():
        boxes, scores = adapted.module(torch.rand(1, 3, *SIZE))
    return adapted.family, boxes[0].numpy(), scores[0].numpy()


def check(boxes: NDArray[Any], scores: NDArray[Any], maps: tuple[Tensor, ...]) -> None:
    places, chances = decoded(maps)
    corners = np.hstack((places[:, :2] - places[:, 2:] / 2, places[:, :2] + places[:, 2:] / 2))
    assert boxes.shape == (ROWS, 4)
    assert np.abs(boxes - corners).max() < 1e-2
    assert np.abs(scores - chances[:, :1] * chances[:, 1:]).max() < 1e-5


def test_equals_a_decode_cell_by_cell(maps: tuple[Tensor, ...], fixed: Any) -> None:
    family, boxes, scores = run(maps, "yolov3", fixed)
    assert family == "yolov3"
    check(boxes, scores, maps)
    split = tuple(m.reshape(1, 3, 9, *m.shape[2:]).permute(0, 1, 3, 4, 2) for m in maps)
    check(*run(split, "yolov3", fixed)[1:], maps)


def test_maps_alone_leave_doubt_with_yolov5(maps: tuple[Tensor, ...], fixed: Any) -> None:
    with pytest.raises(RecipeError, match=r'Set model\.head to "yolov5" or "yolov3"') as caught:
        run(maps, "auto", fixed)
    assert caught.value.key == "model.head"


def test_the_modules_own_decode_beside_the_maps_ends_the_doubt(maps: tuple[Tensor, ...], fixed: Any) -> None:
    joined = torch.from_numpy(np.hstack(decoded(maps))).float()[None]
    family, boxes, scores = run((joined, *maps), "auto", fixed)
    assert family == "yolov3"
    check(boxes, scores, maps)
    with pytest.raises(SourceError, match="should be the decode of the maps, but boxes differ"):
        run((joined, *maps), "yolov5", fixed)


def test_the_modules_own_decode_alone(maps: tuple[Tensor, ...], fixed: Any) -> None:
    joined = torch.from_numpy(np.hstack(decoded(maps))).float()[None]
    check(*run(joined, "yolov3", fixed, decoded=True)[1:], maps)
    with pytest.raises(SourceError, match="decoded = true, or return the raw maps"):
        run(joined, "yolov3", fixed)
    with pytest.raises(SourceError, match="a width or height is below zero"):
        run(-joined, "yolov3", fixed, decoded=True)
    with pytest.raises(SourceError, match=r"outside 0\.\.1"):
        run(joined * 3, "yolov3", fixed, decoded=True)
    with pytest.raises(SourceError, match="not the cells of"):
        run(joined[:, :-3], "yolov3", fixed, decoded=True)
    with pytest.raises(SourceError, match="not with maps"):
        run(maps, "yolov3", fixed, decoded=True)


def test_sigmoids_that_the_module_applied_leave_sizes_raw(maps: tuple[Tensor, ...], fixed: Any) -> None:
    def activated(tensor: Tensor) -> Tensor:
        split = tensor.reshape(1, 3, 9, *tensor.shape[2:])
        return torch.cat((split[:, :, :2].sigmoid(), split[:, :, 2:4], split[:, :, 4:].sigmoid()), 2).flatten(
            1, 2
        )

    check(*run([activated(m) for m in maps], "yolov3", fixed, activated=True)[1:], maps)
    with pytest.raises(SourceError, match="activated = true or false"):
        run([activated(m) for m in maps], "yolov3", fixed)
