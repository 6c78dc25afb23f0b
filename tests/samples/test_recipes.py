"""Every recipe of the samples through the whole road, with seeded weights: the networks are small."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgesmith.calibration.images import Images, pseudo_images, tensors
from edgesmith.converters import Recipe, convert
from edgesmith.converters.sources.factory import make
from edgesmith.sdk import load_model
from edgesmith.sdk.selftest import self_test

FOLDER = Path("samples") / "recipes"
DETECTORS = (
    "yolov3", "yolov5", "yolox", "yolov8", "end_to_end", "centernet", "cornernet", "cornernet_squeeze",
    "detr", "rtdetr",
)  # fmt: skip
OTHERS = ("unet", "espcn", "dncnn", "crnn", "wav2vec")
LARGE = ("fcn", "deeplabv3")
# In every run of the tests: a family whose operators need rewriting.
ALWAYS = "cornernet_squeeze"
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def seeded(root: Path) -> ModuleType:
    """The benchmark's seeded weights."""
    spec = importlib.util.spec_from_file_location("seeded", root / "benchmarks" / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        size = (120 + 20 * number, 260 - 10 * number)
        assert cv2.imwrite(str(folder / f"{number}.png"), pseudo_images(1, number, size)[0])
    return folder


@pytest.fixture(scope="module")
def bundle(root: Path, seeded: ModuleType, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The bundle of a recipe by name; keyword arguments by dotted key replace entries."""

    def build(name: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(name)
        weights = folder / "weights.safetensors"
        weights.touch()
        given = {"model.weights": str(weights), "data.calibration": str(pictures), **changes}
        recipe = Recipe.from_toml(root / FOLDER / f"{name}.toml", given)
        torch.manual_seed(0)
        assert recipe.model.factory is not None
        network = make(recipe.model.factory, [recipe.resolve(p) for p in recipe.model.python_path])
        inputs = np.concatenate(list(tensors(Images.open(pictures), recipe.preprocess())))
        seeded.seed_weights(network, torch.from_numpy(inputs), classifier=False)
        save_file(network.state_dict(), weights)
        convert(recipe, folder / f"{name}.edge")
        return folder / f"{name}.edge"

    return build


def run(path: Path, pictures: Path) -> list[Any]:
    """What the SDK's own class makes of three pictures; the bundle's self-test passes."""
    with load_model(path, backend="cpu", threads=1) as model:
        test: Any = self_test(model)
        assert test.passed, test.outputs
        call: Any = model
        return [call(frame) for frame in Images.open(pictures).pick([0, 5, 9])]


@pytest.mark.slow
def test_a_detector_with_corner_pooling(bundle: Make, pictures: Path) -> None:
    path = bundle(ALWAYS)
    found = run(path, pictures)
    assert sum(len(one) for one in found) > 0
    assert all(0 <= label < 4 for one in found for label in one.labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(n for n in DETECTORS if n != ALWAYS), *OTHERS, *LARGE])
def test_every_recipe_converts_and_runs(name: str, bundle: Make, pictures: Path) -> None:
    if name in LARGE:
        pytest.importorskip("torchvision")
    found = run(bundle(name), pictures)
    if name in DETECTORS:
        assert sum(len(one) for one in found) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_suppression_in_the_graph_equals_the_hosts(name: str, bundle: Make, pictures: Path) -> None:
    """The same candidates on both sides."""
    host = run(bundle(name, **{"nms.candidates": 200}), pictures)
    graph = run(bundle(name, **{"nms.candidates": 200, "nms.where": "graph"}), pictures)
    for one, other in zip(host, graph, strict=True):
        assert len(one) == len(other)
        order, turned = (np.lexsort((*x.boxes.T.round(1), x.labels)) for x in (one, other))
        assert np.abs(one.boxes[order] - other.boxes[turned]).max(initial=0) < 0.05
        assert np.abs(one.scores[order] - other.scores[turned]).max(initial=0) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8", "cornernet", "detr", "crnn", "unet"])
def test_int8(name: str, bundle: Make, pictures: Path) -> None:
    path = bundle(
        name, **{"precision.mode": "int8", "precision.accept_drop": True, "target.variants": ["fp16"]}
    )
    assert len(run(path, pictures)) == 3


def test_every_recipe_is_tested(root: Path) -> None:
    here = {path.stem for path in (root / FOLDER).glob("*.toml") if not path.stem.startswith("torchvision_")}
    assert here == {*DETECTORS, *OTHERS, *LARGE}


def test_a_recipe_says_which_file_is_missing(root: Path) -> None:
    from edgesmith.sdk.errors import RecipeError

    with pytest.raises(RecipeError, match="weights") as caught:
        Recipe.from_toml(root / FOLDER / "yolov8.toml")
    assert caught.value.key == "model.weights"
