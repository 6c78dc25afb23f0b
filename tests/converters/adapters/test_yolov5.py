"""YOLOv5's decode against one written out in NumPy, cell by cell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError

ANCHORS = {
    8: [(10, 13), (16, 30), (33, 23)],
    16: [(30, 61), (62, 45), (59, 119)],
    32: [(116, 90), (156, 198), (373, 326)],
}


class Seeded(nn.Module):
    """Three maps of A * (5 + C) channels at strides 8, 16, 32, with seeded weights."""

    def __init__(self, classes: int, *, form: str = "maps", order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.width, self.form, self.order = 5 + classes, form, order
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.down = nn.ModuleList(nn.Conv2d(16, 16, 2, 2) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(16, 3 * self.width, 1) for _ in range(3))
        with torch.no_grad():
            for head in self.heads:
                head.weight.mul_(6)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Any:
        x = self.stem(images)
        levels = [x]
        for down in self.down:
            levels.append(down(torch.tanh(levels[-1])))
        maps = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        split = [m.unflatten(1, (3, self.width)).permute(0, 1, 3, 4, 2) for m in maps]
        if self.form == "maps":
            return [maps[i] for i in self.order]
        if self.form == "split":
            return [split[i] for i in self.order]
        joined = torch.cat([own_decode(s, 8 * 2**n) for n, s in enumerate(split)], 1)
        return joined if self.form == "joined" else (joined, split)


def own_decode(split: Tensor, stride: int) -> Tensor:
    """What the authors' module returns in eval mode: x, y, w, h in pixels, then the sigmoids."""
    s = split.sigmoid()
    rows, columns = s.shape[2:4]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = (s[..., :2] * 2 - 0.5 + torch.stack((x, y), -1)) * stride
    size = (s[..., 2:4] * 2) ** 2 * torch.tensor(ANCHORS[stride]).reshape(1, 3, 1, 1, 2)
    return torch.cat((centre, size, s[..., 4:]), -1).flatten(1, 3)


def decoded(maps: list[NDArray[np.float32]], order: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """Boxes and scores of the first image, one cell after another, in float64."""
    boxes, scores = [], []
    for place in order:
        stride = (8, 16, 32)[place]
        for a, (anchor_w, anchor_h) in enumerate(ANCHORS[stride]):
            values = np.split(maps[place][0].astype(np.float64), 3)[a]
            for row in range(values.shape[1]):
                for column in range(values.shape[2]):
                    s = [1 / (1 + math.exp(-v)) for v in values[:, row, column]]
                    x, y = (2 * s[0] - 0.5 + column) * stride, (2 * s[1] - 0.5 + row) * stride
                    w, h = (2 * s[2]) ** 2 * anchor_w, (2 * s[3]) ** 2 * anchor_h
                    boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                    scores.append([s[4] * c for c in s[5:]])
    return boxes, scores


@pytest.mark.parametrize("form", ["maps", "split", "joined and split", "joined"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_equals_a_decode_cell_by_cell(form: str, order: tuple[int, ...]) -> None:
    if form.startswith("joined"):
        order = (0, 1, 2)
    network = Seeded(4, form=form, order=order)
    image = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(3))
    # The maps look like YOLOv3's: only where the module's own decode stands beside them can it be told.
    head = "auto" if form == "joined and split" else "yolov5"
    options = {"decoded": True} if form == "joined" else {}
    adapted = adapt(
        network, head, example=image, task="detect", options=options, nms=None, names=4, python_path=[]
    )
    assert adapted.family == "yolov5"
    with torch.no_grad():
        boxes, scores = adapted.module(image)
        maps = [m.numpy() for m in Seeded(4)(image)]
    wanted_boxes, wanted_scores = decoded(maps, order)
    assert boxes.shape == (1, 3 * (12 * 20 + 6 * 10 + 3 * 5), 4)
    assert np.abs(boxes[0].numpy() - np.array(wanted_boxes)).max() < 1e-3
    assert np.abs(scores[0].numpy() - np.array(wanted_scores)).max() < 1e-5


def test_a_decode_that_is_not_that_of_the_maps_is_refused() -> None:
    doubled = {"anchors": [[2 * v for pair in ANCHORS[s] for v in pair] for s in (8, 16, 32)]}
    with pytest.raises(SourceError, match=r"boxes differ by up to .* check head_options.anchors"):
        adapt(
            Seeded(4, form="joined and split"), "yolov5", example=torch.rand(1, 3, 64, 64), task="detect",
            options=doubled, nms=None, names=4, python_path=[],
        )  # fmt: skip


def test_anchors_of_the_users_own_belong_to_the_strides_given() -> None:
    network = Seeded(4, order=(2, 0, 1))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    flat = {stride: [v * 2 for pair in pairs for v in pair] for stride, pairs in ANCHORS.items()}

    def run(options: dict[str, object]) -> tuple[Tensor, Tensor]:
        adapted = adapt(
            network,
            "yolov5",
            example=image,
            task="detect",
            options=options,
            nms=None,
            names=4,
            python_path=[],
        )
        with torch.no_grad():
            boxes, _ = adapted.module(image)
        return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]

    centre, size = run({})
    trials: list[dict[str, object]] = [
        {"anchors": [flat[8], flat[16], flat[32]]},
        {"anchors": [flat[32], flat[8], flat[16]], "strides": [32, 8, 16]},
    ]
    for options in trials:
        other_centre, other_size = run(options)
        assert torch.allclose(other_centre, centre, atol=1e-3)
        assert torch.allclose(other_size, 2 * size, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"anchors": [[10, 13], [30, 61], [116, 90]]}, "do not fit|does not fit"),
        ({"anchors": [[10, 13, 16, 30, 33, 23]] * 2}, "anchors for 2 levels"),
        ({"anchors": [[10, 13, 16]] * 3}, r"anchors\[0\] has 3 numbers"),
        ({"anchors": [[10, -13]] * 3}, "model.head_options"),
        ({"strides": [8, 16]}, "head_options.strides has 2 numbers"),
        ({"strides": [8, 16, 64]}, "has no stride 64"),
        ({"bins": 8}, "takes no option bins"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], part: str) -> None:
    with pytest.raises((RecipeError, SourceError), match=part):
        adapt(
            Seeded(4), "yolov5", example=torch.rand(1, 3, 64, 64), task="detect",
            options=options, nms=None, names=4, python_path=[],
        )  # fmt: skip


def test_default_anchors_are_for_three_levels(noise: Any, fixed: Any) -> None:
    network = fixed(noise((1, 27, 4, 4), (1, 27, 2, 2)))
    with pytest.raises(SourceError, match="anchors for 3 levels"):
        adapt(
            network, "yolov5", example=torch.rand(1, 3, 64, 64), task="detect",
            options={}, nms=None, names=4, python_path=[],
        )  # fmt: skip
