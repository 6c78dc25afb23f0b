"""CornerNet's pairing of corners against one written out in NumPy, with and without centres."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError

SIZE = (63, 95)  # as the authors' 511 on 128 cells: no whole stride
ROWS, COLUMNS, CLASSES = 16, 24, 3
CANDIDATES = 40
NAMES = (
    "tl_heat", "br_heat", "tl_tag", "br_tag", "tl_off", "br_off", "ct_heat", "ct_regr",
)  # fmt: skip
Found = list[tuple[float, int, NDArray[np.float64]]]


@pytest.fixture(scope="module")
def maps(noise: Any) -> dict[str, Tensor]:
    channels = (CLASSES, CLASSES, 1, 1, 2, 2, CLASSES, 2)
    raw = noise(*((1, c, ROWS, COLUMNS) for c in channels), seed=2)
    made = dict(zip(NAMES, raw, strict=True))
    for name in ("tl_tag", "br_tag"):
        made[name] = 0.2 * made[name]
    for name in ("tl_off", "br_off", "ct_regr"):
        made[name] = made[name].sigmoid()
    return made


def points(heat: Tensor, offset: Tensor, tag: Tensor | None) -> list[dict[str, float]]:
    """The best peaks of all classes, in pixels, best first."""
    scores = 1 / (1 + np.exp(-heat[0].double().numpy()))
    shift = offset[0].double().numpy()
    found = []
    for label, row, column in np.ndindex(CLASSES, ROWS, COLUMNS):
        window = scores[label, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if scores[label, row, column] >= window.max():
            x, y = column + shift[0, row, column], row + shift[1, row, column]
            point = {"score": float(scores[label, row, column]), "label": label}
            point |= {"x": x * SIZE[1] / COLUMNS, "y": y * SIZE[0] / ROWS}
            point["tag"] = float(tag[0, 0, row, column]) if tag is not None else 0.0
            found.append(point)
    return sorted(found, key=lambda p: -p["score"])[:CANDIDATES]


def pairs(maps: dict[str, Tensor]) -> Found:
    """Score, class and box of each pair of corners that fit, best first."""
    found: Found = []
    for one in points(maps["tl_heat"], maps["tl_off"], maps["tl_tag"]):
        for other in points(maps["br_heat"], maps["br_off"], maps["br_tag"]):
            if one["label"] != other["label"] or abs(one["tag"] - other["tag"]) > 0.5:
                continue
            if other["x"] >= one["x"] and other["y"] >= one["y"]:
                box = np.array([one["x"], one["y"], other["x"], other["y"]])
                found.append(((one["score"] + other["score"]) / 2, int(one["label"]), box))
    return sorted(found, key=lambda f: -f[0])


def with_centres(found: Found, maps: dict[str, Tensor]) -> Found:
    """Those pairs whose middle holds a centre of their class."""
    kept: Found = []
    centres = points(maps["ct_heat"], maps["ct_regr"], None)
    for score, label, box in found:
        n = 3 if (box[2] - box[0]) * (box[3] - box[1]) <= 150**2 else 5
        low = ((n + 1) * box[:2] + (n - 1) * box[2:]) / (2 * n)
        high = ((n - 1) * box[:2] + (n + 1) * box[2:]) / (2 * n)
        inside = [
            c["score"]
            for c in centres
            if c["label"] == label and low[0] < c["x"] < high[0] and low[1] < c["y"] < high[1]
        ]
        if inside:
            kept.append(((2 * score + max(inside)) / 3, label, box))
    return sorted(kept, key=lambda f: -f[0])


def run(raw: Any, fixed: Any, head: str = "cornernet", **given: Any) -> Found:
    settings: dict[str, Any] = {"options": {"candidates": CANDIDATES}, "names": CLASSES, **given}
    if head == "auto":
        settings["options"] = {}
    adapted = adapt(
        fixed(raw), head, example=torch.rand(1, 3, *SIZE), task="detect", nms=None, python_path=[], **settings
    )
    assert adapted.family == "cornernet"
    boxes, scores = adapted.module(torch.rand(1, 3, *SIZE))
    assert (scores > 0).sum(2).max() == 1  # each box has one class
    rows = [
        (float(s.max()), int(s.argmax()), b.double().numpy())
        for s, b in zip(scores[0], boxes[0], strict=True)
    ]
    return sorted((row for row in rows if row[0] > 0), key=lambda f: -f[0])


def check(found: Found, wanted: Found) -> None:
    assert len(found) == len(wanted) > 5
    for (score, label, box), (other, name, place) in zip(found, wanted, strict=True):
        assert abs(score - other) < 1e-6
        assert label == name
        assert np.abs(box - place).max() < 1e-3


@pytest.mark.parametrize("named", [False, True])
def test_pairs_of_corners(named: bool, maps: dict[str, Tensor], fixed: Any) -> None:
    six = {name: maps[name] for name in NAMES[:6]}
    check(run(six if named else tuple(six.values()), fixed), pairs(maps))


def test_centres_rule(maps: dict[str, Tensor], fixed: Any) -> None:
    wanted = with_centres(pairs(maps), maps)
    assert len(wanted) < len(pairs(maps))
    check(run(maps, fixed), wanted)
    order = ("tl_heat", "br_heat", "ct_heat", "tl_tag", "br_tag", "tl_off", "br_off", "ct_regr")
    check(run(tuple(maps[name] for name in order), fixed), wanted)


def test_a_large_box_has_a_smaller_middle(fixed: Any) -> None:
    """A centre at 0.37 of the side lies in the middle third of a box, and outside the middle fifth of one."""
    size, cells = 512, 128

    def spot(x: int, y: int) -> Tensor:
        heat = torch.full((1, CLASSES, cells, cells), -9.0)
        heat[0, 1, y, x] = 3.0
        return heat

    zero, half = torch.zeros(1, 1, cells, cells), torch.zeros(1, 2, cells, cells)
    for side, kept in ((30, True), (100, False)):
        raw = {
            "tl_heat": spot(4, 4), "br_heat": spot(4 + side, 4 + side),
            "ct_heat": spot(4 + round(0.37 * side), 4 + side // 2),
            "tl_tag": zero, "br_tag": zero, "tl_off": half, "br_off": half, "ct_regr": half,
        }  # fmt: skip
        adapted = adapt(
            fixed(raw), "cornernet", example=torch.rand(1, 3, size, size), task="detect",
            options={"candidates": 5}, nms=None, names=CLASSES, python_path=[],
        )  # fmt: skip
        boxes, scores = adapted.module(torch.rand(1, 3, size, size))
        assert (float(scores.max()) > 0.9) == kept
        if kept:
            assert boxes[0, scores[0].amax(1).argmax()].tolist() == [16, 16, 16 + 4 * side, 16 + 4 * side]


def test_auto_takes_six_maps_in_the_authors_order(maps: dict[str, Tensor], fixed: Any) -> None:
    assert len(run(tuple(maps[name] for name in NAMES[:6]), fixed, "auto")) > 0


def test_few_classes_without_names_leave_doubt(maps: dict[str, Tensor], fixed: Any) -> None:
    two = {name: maps[name][:, :2] for name in NAMES[:6]}
    for head, error in (("cornernet", SourceError), ("auto", RecipeError)):
        with pytest.raises(error, match=r"say head_options\.maps"):
            run(tuple(two.values()), fixed, head, names=2)
    assert run(two, fixed, names=2)


@pytest.mark.parametrize(
    ("change", "names", "part"),
    [
        ({"br_tag": torch.rand(1, 2, ROWS, COLUMNS)}, CLASSES, "bottom_right_tag is"),
        ({"br_heat": torch.rand(1, 4, ROWS, COLUMNS)}, CLASSES, "bottom_right is"),
        ({"br_tag": None}, CLASSES, "bottom_right_tag is missing"),
        ({"ct_regr": None}, CLASSES, "centre or centre_offset is missing"),
        ({}, 7, "the recipe's labels are 7"),
    ],
)
def test_outputs_that_are_not_cornernet(
    change: dict[str, Any], names: int, part: str, maps: dict[str, Tensor], fixed: Any
) -> None:
    with pytest.raises(SourceError, match=part):
        run({**maps, **change}, fixed, names=names)
