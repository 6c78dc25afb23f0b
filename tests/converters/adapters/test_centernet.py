"""CenterNet's decode against a search for peaks written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError

SIZE = (68, 92)  # odd numbers of cells
ROWS, COLUMNS, CLASSES = 17, 23, 3


@pytest.fixture(scope="module")
def maps(noise: Any) -> dict[str, Tensor]:
    heat, size, offset = noise(
        (1, CLASSES, ROWS, COLUMNS), (1, 2, ROWS, COLUMNS), (1, 2, ROWS, COLUMNS), seed=6
    )
    return {"hm": heat - 2, "wh": 3 + size, "reg": offset.sigmoid()}


def decoded(maps: dict[str, Tensor], count: int) -> list[tuple[float, int, tuple[float, ...]]]:
    """Score, class and box of the best peaks of all classes."""
    heat = 1 / (1 + np.exp(-maps["hm"][0].double().numpy()))
    size = maps["wh"][0].double().numpy()
    offset = maps["reg"][0].double().numpy() if "reg" in maps else np.zeros_like(size)
    found: list[tuple[float, int, tuple[float, ...]]] = []
    for label, row, column in np.ndindex(CLASSES, ROWS, COLUMNS):
        window = heat[label, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if heat[label, row, column] < window.max():
            continue
        x, y = (column + offset[0, row, column]) * 4, (row + offset[1, row, column]) * 4
        w, h = np.maximum(size[:, row, column], 0) * 4
        found.append((float(heat[label, row, column]), label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    return sorted(found, reverse=True)[:count]


def run(raw: Any, fixed: Any, head: str = "centernet", **given: Any) -> tuple[Any, Tensor, Tensor]:
    settings: dict[str, Any] = {"options": {}, "names": CLASSES, **given}
    adapted = adapt(
        fixed(raw), head, example=torch.rand(1, 3, *SIZE), task="detect", nms=None, python_path=[], **settings
    )
    assert adapted.family == "centernet"
    boxes, scores = adapted.module(torch.rand(1, 3, *SIZE))
    return adapted, boxes, scores


def best(boxes: Tensor, scores: Tensor, count: int) -> list[tuple[float, int, tuple[float, ...]]]:
    """The best pairs of box and class, as the host takes them with ``nms.classes = "all"``."""
    rows: NDArray[Any] = scores[0].numpy()
    order = np.argsort(-rows, axis=None, kind="stable")[:count]
    places = [np.unravel_index(i, rows.shape) for i in order]
    return [(float(rows[k, c]), int(c), tuple(boxes[0, k].tolist())) for k, c in places]


@pytest.mark.parametrize("head", ["centernet", "auto"])
@pytest.mark.parametrize("stacks", [1, 2])
def test_the_best_peaks(head: str, stacks: int, maps: dict[str, Tensor], fixed: Any) -> None:
    earlier = {name: value + 1 for name, value in maps.items()}
    _, boxes, scores = run([earlier, maps][2 - stacks :], fixed, head)  # of several stacks the last counts
    assert boxes.shape == (1, 100, 4)
    assert scores.shape == (1, 100, CLASSES)
    for mine, theirs in zip(best(boxes, scores, 30), decoded(maps, 30), strict=True):
        assert abs(mine[0] - theirs[0]) < 1e-6
        assert mine[1] == theirs[1]
        assert np.abs(np.subtract(mine[2], theirs[2])).max() < 1e-3


def test_candidates_and_no_offsets(maps: dict[str, Tensor], fixed: Any) -> None:
    two = {"hm": maps["hm"], "wh": maps["wh"]}
    _, boxes, scores = run(two, fixed, options={"candidates": 7})
    assert boxes.shape == (1, 7, 4)
    for mine, theirs in zip(best(boxes, scores, 5), decoded(two, 5), strict=True):
        assert mine[1] == theirs[1]
        assert np.abs(np.subtract(mine[2], theirs[2])).max() < 1e-3
    # No more candidates than cells.
    assert run(two, fixed, options={"candidates": 3000})[1].shape == (1, ROWS * COLUMNS, 4)


def test_maps_without_names_leave_doubt(maps: dict[str, Tensor], fixed: Any) -> None:
    raw = tuple(maps.values())
    for head, error in (("centernet", SourceError), ("auto", RecipeError)):
        with pytest.raises(error, match=r"head_options.maps, as \['heatmap', 'size', 'offset'\]"):
            run(raw, fixed, head)
    _, boxes, scores = run(raw, fixed, options={"maps": ["heatmap", "size", "offset"]})
    _, *named = run(maps, fixed)
    assert torch.equal(boxes, named[0])
    assert torch.equal(scores, named[1])
    skipped = (maps["reg"], torch.rand(1, 5), maps["wh"], maps["hm"])
    told = {"maps": ["offset", "-", "size", "heatmap"]}
    assert torch.equal(run(skipped, fixed, options=told)[1], boxes)


def test_sigmoids_done_before_are_told(maps: dict[str, Tensor], fixed: Any) -> None:
    raw = {**maps, "hm": maps["hm"].sigmoid()}
    with pytest.raises(SourceError, match="activated = true or false"):
        run(raw, fixed)
    _, boxes, scores = run(raw, fixed, options={"activated": True})
    _, *plain = run(maps, fixed)
    assert torch.equal(boxes, plain[0])
    assert torch.allclose(scores, plain[1])


@pytest.mark.parametrize(
    ("change", "given", "part"),
    [
        ({"wh": torch.rand(1, 4, ROWS, COLUMNS)}, {}, "sizes and offsets have 2 channels"),
        ({"wh": torch.rand(1, 2, ROWS, ROWS)}, {}, "the same rows and columns"),
        ({}, {"names": 5}, "3 heatmaps makes 3 classes, the recipe's labels are 5"),
        ({}, {"options": {"maps": ["heatmap", "size"]}}, "names 2 outputs, these are 3"),
        (
            {},
            {"options": {"maps": ["heatmap", "size", "depth"]}},
            "head_options.maps has depth; there are heatmap",
        ),
        ({}, {"options": {"maps": ["-", "size", "offset"]}}, "at least a heatmap"),
    ],
)
def test_outputs_that_are_not_centernet(
    change: dict[str, Tensor], given: dict[str, Any], part: str, maps: dict[str, Tensor], fixed: Any
) -> None:
    with pytest.raises(SourceError, match=part):
        run({**maps, **change}, fixed, **given)


def test_no_more_candidates_than_topk_takes(maps: dict[str, Tensor], fixed: Any) -> None:
    with pytest.raises(RecipeError, match="3840") as caught:
        run(maps, fixed, options={"candidates": 4000})
    assert caught.value.key == "model.head_options.candidates"
