"""FastestDet with its sigmoid and softmax applied before, as its author's own module does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.errors import SourceError


def adapted(network: Any, size: tuple[int, int] = (64, 96)) -> Any:
    example = torch.rand(1, 3, *size)
    found = adapt(
        network, "fastestdet", example=example, task="detect", options={}, nms=None, names=3, python_path=[]
    )
    with torch.no_grad():
        return found.module(example)


def test_applied_activations_are_seen(noise: Any, fixed: Any) -> None:
    (raw,) = noise((1, 8, 4, 6))
    applied = torch.cat((raw[:, :1].sigmoid(), raw[:, 1:5], raw[:, 5:].softmax(1)), 1)
    for got, wanted in zip(adapted(fixed(applied)), adapted(fixed(raw)), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


def test_a_box_by_hand(fixed: Any) -> None:
    raw = torch.zeros(1, 8, 4, 6)
    raw[0, 5:, 2, 1] = torch.tensor([0.0, 0.0, 30.0])
    boxes, scores = adapted(fixed(raw))
    # Centre (16, 32), half of the input wide and high.
    assert torch.allclose(boxes[0, 13], torch.tensor([-8.0, 16.0, 40.0, 48.0]))
    assert torch.allclose(scores[0, 13, 2], torch.tensor(0.5**0.6))


def test_several_maps_are_declined(noise: Any, fixed: Any) -> None:
    with pytest.raises(SourceError, match="it takes one map, these are 2"):
        adapted(fixed(noise((1, 8, 4, 6), (1, 8, 2, 3))))
