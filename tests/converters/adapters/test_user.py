"""A decode that stands in a file of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgesmith.converters.adapters import Adapted, adapt
from edgesmith.sdk.errors import RecipeError, SourceError

DECODE = """
import torch

FACTOR = {factor}


def decode(outputs, grow=1.0):
    corner, logits = outputs["corner"], outputs["logits"]
    boxes = torch.cat((corner * FACTOR, corner * FACTOR + grow * 10), 1).transpose(1, 2)
    return boxes, logits.sigmoid().transpose(1, 2)


def only_boxes(outputs):
    return outputs["corner"]


def wrong_shape(outputs):
    return outputs["corner"], outputs["logits"]


def logits_left(outputs):
    boxes, _ = decode(outputs)
    return {{"boxes": boxes, "scores": outputs["logits"].transpose(1, 2)}}


def fails(outputs):
    return outputs["missing"]
"""


class Network(nn.Module):
    """A head that no family knows: a dict of (N, 2, 16) and (N, 3, 16)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.corner, self.logits = nn.Conv2d(3, 2, 16, 16), nn.Conv2d(3, 3, 16, 16)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        corner = self.corner(images).abs().flatten(2)
        return {"corner": corner * 20 + 1, "logits": self.logits(images).flatten(2) * 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "house_decode.py").write_text(DECODE.format(factor=1.0))
    return tmp_path


def adapted(
    head: str, python_path: list[Path], options: dict[str, object] | None = None, names: int | None = 3
) -> Adapted:
    return adapt(
        Network(), head, example=torch.rand(1, 3, 64, 64), task="detect",
        options=options or {}, nms=None, names=names, python_path=python_path,
    )  # fmt: skip


def test_it_is_traced_into_the_graph(folder: Path, exported: Any, session: Any) -> None:
    searched = list(sys.path)
    found = adapted("house_decode:decode", [folder], {"grow": 2.0})
    assert sys.path == searched
    assert (found.family, found.classes) == ("house_decode:decode", 3)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        raw = Network()(images)
    got = session(exported(found.module, (images[:1],), found.output_names))(images.numpy())
    corner = raw["corner"].numpy().transpose(0, 2, 1)
    assert np.allclose(got["boxes"], np.concatenate((corner, corner + 20), 2), atol=1e-4)
    assert np.allclose(got["scores"], 1 / (1 + np.exp(-raw["logits"].numpy().transpose(0, 2, 1))), atol=1e-5)


def test_two_recipes_may_bring_files_of_one_name(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "house_decode.py").write_text(DECODE.format(factor=3.0))
    image = torch.rand(1, 3, 64, 64)
    first = adapted("house_decode:decode", [folder])
    second = adapted("house_decode:decode", [other])
    with torch.no_grad():
        assert torch.allclose(second.module(image)[0][..., :2], 3 * first.module(image)[0][..., :2])


@pytest.mark.parametrize(
    ("head", "kind", "part"),
    [
        ("house_decode:only_boxes", SourceError, "must return boxes and scores, it returned 1 tensor$"),
        ("house_decode:wrong_shape", SourceError, r"boxes are \(1, 2, 16\), not \(N, K, 4\)"),
        ("house_decode:logits_left", SourceError, "apply the sigmoid"),
        ("house_decode:fails", SourceError, r"fails on the module's outputs \(corner \(1, 2, 16\).*KeyError"),
        (
            "house_decode:decoed",
            SourceError,
            "model.head: house_decode has no decoed; it has .*decode, only_boxes",
        ),
        ("house_decode:FACTOR", RecipeError, "FACTOR is float, not a function"),
        ("no_such_house:decode", SourceError, "there is no module no_such_house"),
        (":decode", SourceError, "must read module:attribute"),
    ],
)
def test_refusals(head: str, kind: type[Exception], part: str, folder: Path) -> None:
    with pytest.raises(kind, match=part):
        adapted(head, [folder])


def test_options_that_the_function_does_not_take(folder: Path) -> None:
    with pytest.raises(SourceError, match="unexpected keyword argument 'shrink'"):
        adapted("house_decode:decode", [folder], {"shrink": 1.0})


def test_labels_are_compared(folder: Path) -> None:
    with pytest.raises(SourceError, match="scores have 3 classes, the recipe's labels are 80"):
        adapted("house_decode:decode", [folder], names=80)
