"""Modules that give boxes and scores already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgesmith.converters.adapters import Adapted, adapt
from edgesmith.sdk.errors import SourceError


def adapted(network: Any, head: str = "auto", names: int | None = 3) -> Adapted:
    return adapt(
        network, head, example=torch.rand(1, 3, 64, 64), task="detect",
        options={}, nms=None, names=names, python_path=[],
    )  # fmt: skip


@pytest.fixture
def boxes() -> Tensor:
    corner = torch.rand(1, 20, 2, generator=torch.Generator().manual_seed(1)) * 40
    return torch.cat((corner, corner + 10), 2)


@pytest.fixture
def scores() -> Tensor:
    return torch.rand(1, 20, 3, generator=torch.Generator().manual_seed(2))


def test_pairs_and_dicts_pass_through(boxes: Tensor, scores: Tensor, fixed: Any) -> None:
    others = {"scores": scores, "extra": scores, "boxes": boxes}
    for result in ((boxes, scores), [boxes, scores], others):
        found = adapted(fixed(result))
        assert (found.family, found.classes) == ("canonical", 3)
        got = found.module(torch.rand(1, 3, 64, 64))
        assert torch.equal(got[0], boxes)
        assert torch.equal(got[1], scores)


def test_half_precision_becomes_float32(boxes: Tensor, scores: Tensor, fixed: Any) -> None:
    got = adapted(fixed((boxes.half(), scores.half()))).module(torch.rand(1, 3, 64, 64))
    assert {t.dtype for t in got} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda b, s: (b, s * 8 - 4), "not within 0..1; if these are logits"),
        (
            lambda b, s: (torch.cat(((b[..., :2] + b[..., 2:]) / 2, b[..., 2:] - b[..., :2]), 2), s),
            "x1, y1, x2, y2",
        ),
        (lambda b, s: (b / 64, s), "in pixels of the model's input"),
        (lambda b, s: (b / 0, s), "not finite"),
        (lambda b, s: (s, b), "boxes are"),
        (lambda b, s: (b[0], s[0]), r"boxes are \(20, 4\), not \(N, K, 4\)"),
        (lambda b, s: (b, s[:, :10]), "with the K = 20 of the boxes"),
        (lambda b, s: (b, s[..., :2]), "scores have 2 classes, the recipe's labels are 3"),
        (lambda b, s: (b, s.long()), "not floating point"),
        (lambda b, s: (b, s, s), "it takes a pair"),
        (lambda b, s: {"boxes": b, "probabilities": s}, "it takes a pair"),
        (lambda b, s: [{"boxes": b[0], "scores": s[0], "labels": s[0]}], "it takes a pair"),
    ],
)
def test_refusals(change: Any, part: str, boxes: Tensor, scores: Tensor, fixed: Any) -> None:
    with pytest.raises(SourceError, match=part):
        adapted(fixed(change(boxes, scores)), "canonical")


def test_nothing_found_is_canonical(fixed: Any) -> None:
    assert adapted(fixed((torch.zeros(1, 5, 4), torch.zeros(1, 5, 3)))).family == "canonical"
