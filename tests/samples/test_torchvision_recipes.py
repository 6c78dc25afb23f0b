"""The recipes for torchvision's detectors: their thresholds are the library's, and one of them is run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import Recipe, convert
from edgesmith.sdk.models import Detector

RECIPES = "samples/recipes"


@pytest.fixture
def recipe_of(root: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """``recipe_of(name, state)``: a recipe in a folder of its own, with its labels, weights and images."""

    def make(name: str, state: dict[str, Any]) -> Recipe:
        shutil.copy(root / RECIPES / "coco_90.txt", tmp_path)
        shutil.copy(root / RECIPES / f"torchvision_{name}.toml", tmp_path)
        for folder in ("weights", "images"):
            (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / "weights" / f"{name}.pt")
        for number, frame in enumerate(pseudo_images(4, 0, (240, 320))):
            cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), frame)
        return Recipe.from_toml(tmp_path / f"torchvision_{name}.toml")

    return make


def names() -> list[str]:
    here = Path(__file__).resolve().parent.parent.parent / RECIPES
    return sorted(path.stem.removeprefix("torchvision_") for path in here.glob("torchvision_*.toml"))


def test_there_is_one_for_each_detector_of_the_library() -> None:
    from torchvision.models import detection, list_models

    theirs = set(list_models(module=detection)) - {"keypointrcnn_resnet50_fpn"}
    assert set(names()) == theirs


@pytest.mark.parametrize("name", names())
def test_thresholds_and_size_are_the_librarys(name: str, recipe_of: Callable[..., Recipe]) -> None:
    from torchvision.models import get_model

    recipe = recipe_of(name, {})
    with torch.device("meta"):  # no weights are needed to look at the settings
        network: Any = get_model(name, weights=None, weights_backbone=None)
    theirs = getattr(network, "roi_heads", network)
    nms, preprocess = recipe.nms_spec(), recipe.preprocess()
    assert nms is not None
    assert (nms.evaluation_score, nms.iou) == (theirs.score_thresh, theirs.nms_thresh)
    assert (nms.max_detections, nms.classes) == (theirs.detections_per_img, "all")
    assert (preprocess.color, preprocess.scale, preprocess.mean, preprocess.std) == (
        "rgb", 1 / 255, (0.0,), (1.0,),
    )  # fmt: skip
    fixed = network.transform.fixed_size
    if fixed is not None:
        assert preprocess.size == (fixed[1], fixed[0])
        assert preprocess.fit == "stretch"
    assert len(recipe.names()) == 90
    assert recipe.names()[0] == "person"
    assert recipe.names()[89] == "toothbrush"


@pytest.mark.slow
def test_ssdlite_is_converted_and_runs(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    from torchvision.models import get_model

    name = "ssdlite320_mobilenet_v3_large"
    torch.manual_seed(0)
    network = get_model(name, weights=None, weights_backbone=None)
    convert(recipe_of(name, network.state_dict()), tmp_path / "model.edge")
    with Detector.load(tmp_path / "model.edge", backend="cpu", threads=1) as detector:
        assert detector.names[0] == "person"
        frame = np.zeros((240, 320, 3), np.uint8)
        assert len(detector(frame, score=0.0)) <= 300
