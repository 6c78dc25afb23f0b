"""TorchScript archives: what is traced back to a module, and what cannot be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.converters import Recipe
from edgesmith.converters.sources import load_source
from edgesmith.sdk.errors import SourceError


def recipe(base: Path) -> Recipe:
    table = {"task": "classify", "model": {"torchscript": "net.ts"}, "input": {"size": [64, 64]}}
    return Recipe.from_dict(table, base=base)


class OfSizes(nn.Module):
    """Computes with its input's size, as attention over cells does: a trace holds sizes as tensors."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch, channels, rows, columns = images.shape
        cells = images.view(batch, channels, rows * columns)
        mixed: torch.Tensor = cells.mean(2) + cells[..., : (rows + columns) // 2].sum(2) * float(rows) ** -0.5
        return mixed


class OfValues(nn.Module):
    """Goes one way or the other by what the picture shows."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool(images.mean() > 0.5):
            return images.mean((2, 3))
        return images.amax((2, 3))


class OfCounts(nn.Module):
    """As many values as are above a threshold: a detector with its suppression is like this."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = int((images > 0.5).sum())
        return images.flatten(1)[:, :found].sum(1, keepdim=True)


def scripted(module: nn.Module, path: Path, *, traced: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; the user's archive is what it is
        trace: Any = torch.jit.trace
        torch.jit.save(trace(module, torch.zeros(1, 3, 64, 64)) if traced else torch.jit.script(module), path)
    return path


@pytest.mark.parametrize("traced", [True, False])
def test_torchscript_that_computes_with_sizes(tmp_path: Path, tensor: torch.Tensor, traced: bool) -> None:
    scripted(OfSizes(), tmp_path / "net.ts", traced=traced)
    loaded = load_source(recipe(tmp_path))
    assert loaded.module is not None
    torch.testing.assert_close(loaded.module(tensor[:1]), OfSizes()(tensor[:1]))


@pytest.mark.parametrize("module", [OfValues(), OfCounts()], ids=["values", "counts"])
def test_torchscript_that_depends_on_values_says_so(tmp_path: Path, module: nn.Module) -> None:
    scripted(module, tmp_path / "net.ts")
    with pytest.raises(
        SourceError, match=r"net\.ts: its code reads a number out of a tensor .*model\.factory"
    ):
        load_source(recipe(tmp_path))


def test_torchscript_that_does_not_fit_the_input(tmp_path: Path) -> None:
    scripted(nn.Conv2d(4, 2, 1), tmp_path / "net.ts")
    with pytest.raises(
        SourceError, match=r"does not run on an input of \(1, 3, 64, 64\): .*4 channels.*convolution"
    ):
        load_source(recipe(tmp_path))
