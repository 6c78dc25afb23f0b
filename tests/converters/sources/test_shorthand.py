"""``torchvision:NAME`` and ``timm:NAME``: what the libraries know is taken over, nothing fetched unasked."""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources import load_source, shorthand, zoo
from edgesmith.sdk.errors import MissingExtraError, SourceError
from edgesmith.sdk.preprocess import prepared

torchvision = pytest.importorskip("torchvision", reason="needs edgesmith[dev]")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgesmith" / "zoo"


@pytest.fixture
def trained(tmp_path: Path, seeded: Callable[[nn.Module], nn.Module]) -> Path:
    """A file that stands for the trained weights of SqueezeNet."""
    path = tmp_path / "squeezenet.pt"
    torch.save(seeded(torchvision.models.squeezenet1_1(weights=None)).state_dict(), path)
    return path


def read(table: dict[str, Any], path: Path) -> Recipe:
    table["model"]["weights"] = str(path)
    return Recipe.from_dict(table)


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_b0", "resnet50"])
def test_the_preprocess_is_the_librarys(name: str, trained: Path) -> None:
    table = shorthand.table_of(f"torchvision:{name}")
    recipe = read(table, trained)
    assert (recipe.task, len(recipe.names()), recipe.names()[1]) == ("classify", 1000, "goldfish")
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    for shape in ((500, 333), (360, 480)):
        image = pseudo_images(1, 3, shape)[0]
        mine = prepared(recipe.preprocess(), image)[0]
        theirs = preset(torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()))[None].numpy()
        assert mine.shape == theirs.shape
        # An 8-bit step is 0.018 after the division by std; rounding differs here and there.
        assert np.abs(mine - theirs).max() < 0.04
        assert np.abs(mine - theirs).mean() < 0.003


def test_networks_that_turn_the_normalization_back_get_theirs() -> None:
    given = shorthand.table_of("torchvision:inception_v3")["input"]
    assert (given["size"], given["shorter_side"], given["mean"], given["std"]) == ([299, 299], 342, 0.5, 0.5)


def test_segmenters_and_detectors_have_their_tasks(trained: Path) -> None:
    table = shorthand.table_of("torchvision:lraspp_mobilenet_v3_large")
    recipe = read(table, trained)
    assert (recipe.task, recipe.names()[0], len(recipe.names())) == ("segment", "__background__", 21)
    assert recipe.preprocess().size == (520, 520)
    recipe = read(shorthand.table_of("torchvision:ssdlite320_mobilenet_v3_large"), trained)
    assert (recipe.task, recipe.names()[0], recipe.preprocess().fit) == ("detect", "person", "stretch")
    assert recipe.preprocess().mean == (0.0,)  # the network normalizes by itself
    assert (recipe.model.head, recipe.nms_spec().iou) == ("torchvision", 0.55)  # type: ignore[union-attr]
    with pytest.raises(SourceError, match="keypointrcnn_resnet50_fpn is a detector of a kind"):
        shorthand.table_of("torchvision:keypointrcnn_resnet50_fpn")
    with pytest.raises(SourceError, match="a model of video, which is not converted"):
        shorthand.table_of("torchvision:r3d_18")


def test_timm_tells_its_own(trained: Path) -> None:
    pytest.importorskip("timm", reason="needs edgesmith[dev]")
    recipe = read(shorthand.table_of("timm:resnet18"), trained)
    preprocess = recipe.preprocess()
    assert (preprocess.size, preprocess.crop_side, preprocess.interpolation) == ((224, 224), 235, "cubic")
    assert (preprocess.fit, preprocess.antialias) == ("resize-crop", True)
    assert recipe.names()[0] == "tench, Tinca tinca"
    assert shorthand.table_of("timm:resnet18.tv_in1k")["input"]["interpolation"] == "linear"
    assert shorthand.table_of("timm:vit_small_patch14_dinov2")["task"] == "tensor"  # no classes


def test_options_go_before_what_the_library_says(trained: Path, cache: Path) -> None:
    given = {
        "model.weights": str(trained),
        "input.size": [96, 128],
        "labels": ["a"],
        "input.shorter_side": 160,
    }
    recipe = shorthand.recipe_of("torchvision:squeezenet1_1", given)
    assert recipe.preprocess().size == (96, 128)
    assert recipe.names() == ("a",)
    assert recipe.preprocess().std == pytest.approx((0.229, 0.224, 0.225))


def test_a_file_of_weights_fills_the_network(trained: Path) -> None:
    loaded = load_source(shorthand.recipe_of("torchvision:squeezenet1_1", {"model.weights": str(trained)}))
    assert loaded.kind == "zoo"
    assert loaded.module is not None
    assert not loaded.module.training


def test_nothing_is_fetched_unasked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shorthand, "_fetched", lambda *_: pytest.fail("fetched"))
    with pytest.raises(
        SourceError, match=r"add --fetch to download them once, or give --model\.weights FILE"
    ):
        shorthand.recipe_of("torchvision:squeezenet1_1", {})


def test_a_fetch_is_kept_and_used_again(cache: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.load(trained, weights_only=True)
    fetched: list[str] = []
    monkeypatch.setattr(shorthand, "_unreachable", lambda address: None)

    def fetch(zoo: str, name: str, library: object) -> dict[str, torch.Tensor]:
        fetched.append(name)
        return dict(state)

    monkeypatch.setattr(shorthand, "_fetched", fetch)
    first = shorthand.recipe_of("torchvision:squeezenet1_1", {}, fetch=True)
    again = shorthand.recipe_of("torchvision:squeezenet1_1", {})
    assert fetched == ["squeezenet1_1"]
    assert first.model.weights == again.model.weights == str(cache / "torchvision-squeezenet1_1.safetensors")
    assert load_file(first.model.weights).keys() == state.keys()
    assert [path.name for path in cache.iterdir()] == ["torchvision-squeezenet1_1.safetensors"]


def test_without_a_network_the_error_comes_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(shorthand, "_fetched", lambda *_: pytest.fail("fetched"))
    with pytest.raises(SourceError, match=r"download\.pytorch\.org does not answer \(no route to host\)"):
        shorthand.recipe_of("torchvision:squeezenet1_1", {}, fetch=True)
    assert not cache.exists()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shorthand, "REACH_S", 0.05)
    hang = threading.Event()

    def wait(*_: object, **__: object) -> None:
        hang.wait(5)
        raise urllib.error.URLError("too late")

    monkeypatch.setattr("urllib.request.urlopen", wait)
    assert shorthand._unreachable("https://example.org/x") == "nothing came within 0.05 s"
    hang.set()


def test_names_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="has no model 'squeezenet1_2'; near it: squeezenet1_1"):
        shorthand.recipe_of("torchvision:squeezenet1_2", {})
    monkeypatch.setitem(zoo.ZOOS, "timm", zoo.ZOOS["timm"]._replace(module="no_such_timm"))
    with pytest.raises(MissingExtraError, match="pip install timm"):
        shorthand.table_of("timm:resnet18")


def test_parts_that_only_training_needs_follow_the_file() -> None:
    """DeepLab's file has an auxiliary head, a user's may not; no backbone is downloaded for either."""
    library = torchvision.models
    make = zoo.ZOOS["torchvision"].make
    assert make(library, "deeplabv3_mobilenet_v3_large", ()).aux_classifier is None
    assert (
        make(library, "deeplabv3_mobilenet_v3_large", ["aux_classifier.4.weight"]).aux_classifier is not None
    )
