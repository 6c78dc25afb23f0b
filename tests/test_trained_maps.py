"""The trained enhancer and segmenter of the assets, the whole way: convert, evaluate, every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesmith.converters import Recipe, convert
from edgesmith.sdk import load_model, self_test
from edgesmith.sdk.evaluate import EvaluationData, evaluate

# What PyTorch measures on the same images (the assets' README): figure, and what a conversion may change.
FIGURES = {"fsrcnn_x2": ("psnr", 32.64, 0.05), "sinet": ("mIoU_per_image", 71.07, 0.3)}
AUTO = {"fsrcnn_x2": 0.3, "sinet": 1.0}


def data_of(name: str, assets: Path) -> EvaluationData:
    if name == "sinet":
        return EvaluationData(images=assets / "person_masks", mask_values=(0, 255))
    return EvaluationData(images=assets / "super_resolution", metric="psnr", downscale=2)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["fsrcnn_x2", pytest.param("sinet", marks=pytest.mark.slow)])
def test_it_keeps_the_figure_of_pytorch(name: str, assets: Path, asset_bundle: Callable[..., Path]) -> None:
    metric, figure, allowed = FIGURES[name]
    with load_model(asset_bundle(name), backend="cpu", threads=1) as model:
        assert self_test(model).passed
        result = evaluate(model, data_of(name, assets))
    assert result.faults == ()
    assert result.values[metric] == pytest.approx(figure, abs=allowed)
    if name == "fsrcnn_x2":
        assert result.values["psnr_bicubic"] == pytest.approx(31.87, abs=0.005)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a search with four ways, on whatever else the machine does
@pytest.mark.assets
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("mode", ["auto", "fp16", "int8"])
def test_each_precision(
    name: str, mode: str, assets: Path, asset_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"precision__mode": mode, "precision__accept_drop": mode == "int8"}
    report = convert(asset_recipe(name, **changes), tmp_path / "x.edge")
    assert report.metric == ("psnr" if name == "fsrcnn_x2" else "mIoU")
    with load_model(tmp_path / "x.edge", backend="cpu", variant=mode, threads=1) as model:
        assert self_test(model).passed
        metric, figure, _ = FIGURES[name]
        result = evaluate(model, data_of(name, assets))
    if mode != "int8":
        assert result.values[metric] > figure - AUTO[name]
    if mode != "fp16":
        assert report.int8_macs_share > 0.3
