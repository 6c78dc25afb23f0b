"""YOLOv8's decode against one written out in NumPy, in all the forms that its modules return."""

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
CLASSES, BINS = 3, 16
PLACES = [(8, 8, 12), (16, 4, 6), (32, 2, 3)]


@pytest.fixture(scope="module")
def maps(noise: Any) -> tuple[Tensor, ...]:
    return tuple(noise(*((1, 4 * BINS + CLASSES, rows, columns) for _, rows, columns in PLACES), seed=8))


def decoded(maps: tuple[Tensor, ...], bins: int = BINS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes xyxy and scores of every cell, one after another."""
    boxes, scores = [], []
    for tensor, (stride, rows, columns) in zip(maps, PLACES, strict=True):
        values = tensor[0].double().numpy()
        for row in range(rows):
            for column in range(columns):
                v = values[:, row, column]
                sides = []
                for side in range(4):
                    e = np.exp(v[side * bins : (side + 1) * bins])
                    sides.append(float((e / e.sum() * np.arange(bins)).sum()))
                x, y = column + 0.5, row + 0.5
                box = np.array([x - sides[0], y - sides[1], x + sides[2], y + sides[3]])
                boxes.append(box * stride)
                scores.append(1 / (1 + np.exp(-v[4 * bins :])))
    return np.array(boxes), np.array(scores)


def own_decode(maps: tuple[Tensor, ...]) -> Tensor:
    """What the authors' module returns in eval mode: (1, 4 + C, K), centre, width, height, scores."""
    boxes, scores = decoded(maps)
    flat = np.hstack(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], scores))
    return torch.from_numpy(flat.T[None]).float()


def run(raw: Any, head: str, fixed: Any, names: int | None = CLASSES, **options: object) -> tuple[Any, ...]:
    example = torch.rand(1, 3, *SIZE)
    adapted = adapt(
        fixed(raw),
        head,
        example=example,
        task="detect",
        options=options,
        nms=None,
        names=names,
        python_path=[],
    )
    with torch.no_grad():
        boxes, scores = adapted.module(example)
    return adapted.family, boxes[0].numpy(), scores[0].numpy()


def check(found: tuple[Any, ...], maps: tuple[Tensor, ...]) -> None:
    family, boxes, scores = found
    wanted_boxes, wanted_scores = decoded(maps)
    assert family == "yolov8"
    assert np.abs(boxes - wanted_boxes).max() < 1e-3
    assert np.abs(scores - wanted_scores).max() < 1e-5


def test_maps_equal_a_decode_cell_by_cell(maps: tuple[Tensor, ...], fixed: Any) -> None:
    check(run(maps, "yolov8", fixed), maps)
    check(run(list(maps), "yolov8", fixed, names=None), maps)


def test_maps_alone_leave_doubt_with_nanodet(maps: tuple[Tensor, ...], fixed: Any) -> None:
    # The same channels: sides before classes here, after them there.
    with pytest.raises(RecipeError, match='"yolov8" or "nanodet"') as caught:
        run(maps, "auto", fixed)
    assert caught.value.key == "model.head"


@pytest.mark.parametrize("nested", [False, True])
def test_decode_and_maps_as_the_authors_return_them(
    nested: bool, maps: tuple[Tensor, ...], fixed: Any
) -> None:
    raw = (own_decode(maps), list(maps)) if nested else (own_decode(maps), *maps)
    check(run(raw, "auto", fixed), maps)


def test_the_decode_alone(maps: tuple[Tensor, ...], fixed: Any) -> None:
    check(run(own_decode(maps), "auto", fixed), maps)  # a width below a centre: no corners
    check(run(own_decode(maps), "yolov8", fixed, names=None, boxes="cxcywh"), maps)
    boxes, scores = decoded(maps)
    corners = torch.from_numpy(np.hstack((boxes, scores)).T[None]).float()
    check(run(corners, "yolov8", fixed, boxes="xyxy"), maps)
    for head, error in (("yolov8", SourceError), ("auto", RecipeError)):
        with pytest.raises(error, match=r'head_options\.boxes = "xyxy" or "cxcywh"'):
            run(corners, head, fixed)


@pytest.mark.parametrize(
    ("change", "options", "part"),
    [
        (
            lambda y: y * torch.tensor([1.0] * 4 + [9.0] * CLASSES).reshape(1, -1, 1),
            {},
            "gone through their sigmoid",
        ),
        (
            lambda y: y * torch.tensor([0.001] * 4 + [1.0] * CLASSES).reshape(1, -1, 1),
            {},
            "must be in pixels",
        ),
        (lambda y: y, {"boxes": "xyxy"}, "some boxes end before they begin"),
        (lambda y: y, {"bins": 16}, "goes with raw maps"),
        (lambda y: y[..., :-1], {}, "not the cells of"),
        (lambda y: y[:, :-1], {}, "makes 2 classes, the recipe's labels are 3"),
    ],
)
def test_a_decode_that_cannot_be(
    change: Any, options: dict[str, Any], part: str, maps: tuple[Tensor, ...], fixed: Any
) -> None:
    with pytest.raises(SourceError, match=part):
        run(change(own_decode(maps)), "yolov8", fixed, **options)


def test_a_decode_that_is_not_that_of_the_maps_is_refused(maps: tuple[Tensor, ...], fixed: Any) -> None:
    with pytest.raises(SourceError, match="should be the decode of the maps, but boxes differ by up to"):
        run((own_decode(maps) * 1.01, *maps), "yolov8", fixed)
    with pytest.raises(SourceError, match="is not a decode of the maps"):
        run((own_decode(maps)[..., 1:], *maps), "yolov8", fixed)


def test_other_bins_are_told(noise: Any, fixed: Any) -> None:
    maps = tuple(noise(*((1, 4 * 8 + CLASSES, rows, columns) for _, rows, columns in PLACES), seed=9))
    with pytest.raises(SourceError, match="35 channels less 4 x 16 bins leaves no class"):
        run(maps, "yolov8", fixed)
    _, boxes, scores = run(maps, "yolov8", fixed, bins=8)
    wanted_boxes, wanted_scores = decoded(maps, 8)
    assert np.abs(boxes - wanted_boxes).max() < 1e-3
    assert np.abs(scores - wanted_scores).max() < 1e-5
