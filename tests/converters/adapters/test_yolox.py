"""YOLOX's other forms: one joined tensor, with or without its sigmoids and its decode; odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import SourceError

SIZE = (64, 96)
SHAPES = [(1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]


def adapted(
    network: Any, options: dict[str, object], size: tuple[int, int] = SIZE, names: int | None = 3
) -> Any:
    example = torch.rand(1, 3, *size)
    found = adapt(
        network,
        "yolox",
        example=example,
        task="detect",
        options=options,
        nms=None,
        names=names,
        python_path=[],
    )
    with torch.no_grad():
        return found.module(example)


@pytest.fixture
def maps(noise: Any) -> tuple[Tensor, ...]:
    made: tuple[Tensor, ...] = noise(*SHAPES)
    return made


def joined(maps: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2)


def test_a_box_by_hand(fixed: Any) -> None:
    raw = torch.zeros(1, 8, 2, 3)
    raw[0, :, 1, 2] = torch.tensor([0.25, -0.5, 1.0, 0.0, 2.0, -1.0, 0.0, 3.0])
    boxes, scores = adapted(fixed(raw), {})
    e = torch.e
    middle_x, middle_y = (2 + 0.25) * 32, (1 - 0.5) * 32
    wanted = torch.tensor([middle_x - 16 * e, middle_y - 16, middle_x + 16 * e, middle_y + 16])
    assert torch.allclose(boxes[0, 5], wanted)
    assert torch.allclose(
        scores[0, 5], torch.sigmoid(torch.tensor(2.0)) * torch.tensor([-1.0, 0, 3]).sigmoid()
    )


def test_joined_logits_are_the_maps(maps: tuple[Tensor, ...], fixed: Any) -> None:
    for got, wanted in zip(adapted(fixed(joined(maps)), {}), adapted(fixed(maps), {}), strict=True):
        assert torch.allclose(got, wanted, atol=1e-4)


def test_levels_may_come_in_any_order(maps: tuple[Tensor, ...], fixed: Any) -> None:
    boxes, scores = adapted(fixed(maps), {})
    turned_boxes, turned_scores = adapted(fixed(maps[::-1]), {})
    order = torch.cat((torch.arange(120, 126), torch.arange(96, 120), torch.arange(96)))
    assert torch.allclose(turned_boxes, boxes[:, order], atol=1e-4)
    assert torch.allclose(turned_scores, scores[:, order], atol=1e-6)


def test_sigmoids_and_decode_done_before(maps: tuple[Tensor, ...], fixed: Any) -> None:
    boxes, scores = adapted(fixed(maps), {})
    flat = joined(maps)
    activated = torch.cat((flat[..., :4], flat[..., 4:].sigmoid()), 2)
    with pytest.raises(SourceError, match="activated = true or false"):
        adapted(fixed(activated), {})
    got_boxes, got_scores = adapted(fixed(activated), {"activated": True})
    assert torch.allclose(got_boxes, boxes, atol=1e-4)
    assert torch.allclose(got_scores, scores, atol=1e-6)

    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    decoded = torch.cat((centre, size, activated[..., 4:]), 2)
    with pytest.raises(SourceError, match="decoded = true or false"):
        adapted(fixed(decoded), {"activated": True})
    got_boxes, got_scores = adapted(fixed(decoded), {"activated": True, "decoded": True})
    assert torch.allclose(got_boxes, boxes, atol=1e-3)
    assert torch.allclose(got_scores, scores, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"activated": True}, "these are logits"),
        ({"decoded": True}, "not above zero"),
        ({"strides": [8, 16]}, "126 rows are not the cells of head_options.strides"),
    ],
)
def test_options_that_the_values_contradict(
    maps: tuple[Tensor, ...], fixed: Any, options: dict[str, object], part: str
) -> None:
    with pytest.raises(SourceError, match=part):
        adapted(fixed(joined(maps)), options)


def test_rounded_up_maps_have_their_power_of_two(noise: Any, fixed: Any) -> None:
    # 100 x 150 at strides 8, 16, 32, each rounded up.
    boxes, _ = adapted(fixed(noise((1, 8, 13, 19), (1, 8, 7, 10), (1, 8, 4, 5))), {}, size=(100, 150))
    assert boxes.shape == (1, 13 * 19 + 7 * 10 + 4 * 5, 4)


@pytest.mark.parametrize(
    ("shapes", "names", "part"),
    [
        ([(1, 8, 8, 8)], 3, "no one stride makes a map of 8 x 8"),
        ([(1, 8, 8, 12), (1, 8, 8, 12)], 3, "two maps have the same stride"),
        ([(1, 8, 8, 12), (1, 9, 4, 6)], 3, "different channels"),
        ([(1, 8, 8, 12)], 80, "makes 3 classes, the recipe's labels are 80"),
        ([(1, 5, 8, 12)], None, "leaves no class"),
        ([(1, 126, 8), (1, 126, 8)], 3, "it takes maps"),
        ([(1, 100, 8)], 3, "100 rows are not the cells"),
    ],
)
def test_outputs_that_are_not_yolox(
    shapes: list[tuple[int, ...]], names: int | None, part: str, noise: Any, fixed: Any
) -> None:
    with pytest.raises(SourceError, match=part):
        adapted(fixed(noise(*shapes)), {}, names=names)
