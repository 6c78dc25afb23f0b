"""Tasks classify, segment and tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgesmith.converters.adapters import Adapted, adapt
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Task

EXAMPLE = torch.rand(1, 3, 8, 8)


def adapted(network: Any, task: Task, names: int | None = None, head: str = "auto") -> Adapted:
    return adapt(network, head, example=EXAMPLE, task=task, options={}, nms=None, names=names, python_path=[])


def test_logits(fixed: Any) -> None:
    logits = torch.rand(1, 10)
    found = adapted(fixed(logits), "classify", names=10)
    assert (found.family, found.classes, found.output_names) == ("classifier", 10, ("logits",))
    (got,) = found.module(EXAMPLE)
    assert torch.equal(got, logits)
    assert adapted(fixed({"logits": logits, "hidden": None}), "classify").classes == 10
    assert adapted(fixed(logits), "classify", head="classifier").classes == 10


def test_auxiliary_outputs_are_left_out_with_a_note(fixed: Any, caplog: pytest.LogCaptureFixture) -> None:
    logits, auxiliary = torch.rand(1, 10), torch.rand(1, 7)
    found = adapted(fixed((logits, auxiliary)), "classify")
    assert torch.equal(found.module(EXAMPLE)[0], logits)
    assert len(found.module(EXAMPLE)) == 1
    assert "2 outputs in eval mode ((1, 10), (1, 7)): the first is taken" in caplog.text


@pytest.mark.parametrize(
    ("task", "result", "names", "part"),
    [
        ("classify", torch.rand(1, 10), 9, "has 10 classes, the recipe's labels are 9"),
        ("classify", torch.rand(1, 10, 1, 1), None, r"flatten it to \(N, C\)"),
        ("classify", torch.rand(10), None, r"the first output is \(10,\)"),
        ("classify", torch.zeros(1, 10, dtype=torch.int64), None, "int64"),
        ("segment", torch.rand(1, 8, 8), None, r"gives logits \(N, C, H, W\)"),
        ("segment", torch.zeros(1, 2, 8, 8, dtype=torch.int64), None, "leave the argmax out"),
        ("segment", torch.rand(1, 2, 8, 8), 3, "has 2 classes, the recipe's labels are 3"),
    ],
)
def test_refusals(task: Task, result: Any, names: int | None, part: str, fixed: Any) -> None:
    with pytest.raises(SourceError, match=part):
        adapted(fixed(result), task, names)


def test_segmenters_give_logits(fixed: Any, caplog: pytest.LogCaptureFixture) -> None:
    maps, auxiliary = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 4, 4)
    found = adapted(fixed({"out": maps, "aux": auxiliary}), "segment", names=2)
    assert (found.family, found.classes, found.output_names) == ("segmenter", 2, ("logits",))
    assert torch.equal(found.module(EXAMPLE)[0], maps)
    assert "out (1, 2, 8, 8), aux (1, 2, 4, 4)" in caplog.text


def test_tensors_keep_their_names(fixed: Any) -> None:
    a, b = torch.rand(1, 4), torch.zeros(1, 2, dtype=torch.int64)
    for result, names in (
        (a, ("output",)),
        ((a, b), ("output_0", "output_1")),
        ({"depth": a, "index": b}, ("depth", "index")),
        ({"parts": [a, b]}, ("parts.0", "parts.1")),
    ):
        found = adapted(fixed(result), "tensor")
        assert (found.family, found.classes, found.output_names) == ("tensors", 0, names)
        for got, wanted in zip(found.module(EXAMPLE), (a, b), strict=False):
            assert torch.equal(got, wanted)
            assert got.dtype == wanted.dtype


def test_detector_options_do_not_go_with_other_tasks(fixed: Any) -> None:
    with pytest.raises(RecipeError, match="takes no option bins; it takes none"):
        adapt(
            fixed(torch.rand(1, 10)), "classifier", example=EXAMPLE, task="classify",
            options={"bins": 8}, nms=None, names=None, python_path=[],
        )  # fmt: skip
