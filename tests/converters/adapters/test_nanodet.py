"""NanoDet's bins by hand, cut boxes, and what it declines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import RecipeError, SourceError


def adapted(network: Any, options: dict[str, object], names: int | None) -> Any:
    example = torch.rand(1, 3, 64, 64)
    found = adapt(
        network,
        "nanodet",
        example=example,
        task="detect",
        options=options,
        nms=None,
        names=names,
        python_path=[],
    )
    with torch.no_grad():
        return found.module(example)


def test_distances_are_expectations_and_boxes_are_cut(fixed: Any) -> None:
    raw = torch.zeros(1, 2 + 4 * 5, 4, 4)
    raw[0, 0] = -3.0
    # Left, top, right, bottom of cell (row 1, column 2): nearly certain of 1, 2, 3 and 4 strides.
    for side in range(4):
        raw[0, 2 + 5 * side + side + 1, 1, 2] = 60.0
    boxes, scores = adapted(fixed(raw), {}, names=2)
    # Stride 16, centre (40, 24): top and bottom leave the input.
    assert torch.allclose(boxes[0, 6], torch.tensor([24.0, 0.0, 64.0, 64.0]))
    # Even chances of 0 .. 4 are an expectation of 2 strides around the centre (8, 8).
    assert torch.allclose(boxes[0, 0], torch.tensor([0.0, 0.0, 40.0, 40.0]))
    assert torch.allclose(scores[0, 0], torch.tensor([-3.0, 0.0]).sigmoid())


def test_bins_follow_from_the_labels_or_are_told(noise: Any, fixed: Any) -> None:
    maps = noise((1, 7 + 4 * 6, 8, 8), (1, 7 + 4 * 6, 4, 4))
    by_labels = adapted(fixed(maps), {}, names=7)
    by_option = adapted(fixed(maps), {"bins": 6}, names=None)
    for got, wanted in zip(by_labels, by_option, strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(SourceError, match=r"give labels or head_options\.bins"):
        adapted(fixed(maps), {}, names=None)
    with pytest.raises(SourceError, match="makes 3 classes, the recipe's labels are 7"):
        adapted(fixed(maps), {"bins": 7}, names=7)
    with pytest.raises(SourceError, match="are not 4 sides"):
        adapted(fixed(maps), {}, names=8)
    with pytest.raises(RecipeError, match="bins"):
        adapted(fixed(maps), {"bins": "eight"}, names=7)
    told = adapted(fixed(tuple(torch.cat((m[:, :7].sigmoid(), m[:, 7:]), 1) for m in maps)),
                   {"activated": True}, names=7)  # fmt: skip
    assert torch.allclose(told[1], by_labels[1], atol=1e-6)
