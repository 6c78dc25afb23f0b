"""The one preprocess gives each trained network what the code it was trained with gives."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import prepared

YOLOX = Preprocess(size=(416, 416), anchor="top-left", color="bgr", scale=1.0, rounding="floor")
NANODET = Preprocess(
    size=(320, 320), anchor="top-left", pad=0, color="bgr", scale=1.0,
    mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395),
)  # fmt: skip
FASTESTDET = Preprocess(size=(352, 352), fit="stretch", color="bgr")
MOBILENET = Preprocess(size=(224, 224), fit="resize-crop", shorter_side=256, scale=1 / 127.5, mean=(1.0,))
EFFICIENTNET = Preprocess(
    size=(224, 224), fit="resize-crop", shorter_side=256, interpolation="cubic", scale=1.0,
    mean=(127.0,), std=(128.0,),
)  # fmt: skip
CIFAR = Preprocess(
    size=(32, 32), fit="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip


@pytest.fixture(scope="module")
def network(assets: Path) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        path = assets / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"assets_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        search = sys.path[:]
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = search
        return module

    return load


def _photos(folder: Path, count: int) -> list[NDArray[np.uint8]]:
    photos = [cv2.imdecode(np.fromfile(p, np.uint8), 1) for p in sorted(folder.glob("*.jpg"))[:count]]
    assert len(photos) == count
    return photos  # type: ignore[return-value]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "preprocess", "tolerance"),
    [("yolox", YOLOX, 0.0), ("nanodet", NANODET, 1e-6), ("fastestdet", FASTESTDET, 1e-7)],
)
def test_a_detector_gets_what_its_own_code_gives(
    name: str, preprocess: Preprocess, tolerance: float, assets: Path, network: Callable[[str], ModuleType]
) -> None:
    theirs = network(f"networks/{name}")
    for photo in _photos(assets / "coco_val", 40):
        expected, (scale_x, scale_y, offset_x, offset_y) = theirs.prepare(photo)
        tensor, geometry = prepared(preprocess, photo)
        np.testing.assert_allclose(tensor, expected, rtol=0, atol=tolerance)
        # YOLOX's own code ignores that the resized sides are whole numbers.
        assert geometry.scale_x == pytest.approx(scale_x, abs=1 / photo.shape[1])
        assert geometry.scale_y == pytest.approx(scale_y, abs=1 / photo.shape[0])
        assert (geometry.offset_x, geometry.offset_y) == (offset_x, offset_y)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "preprocess"), [("mobilenet_v1_025", MOBILENET), ("efficientnet_lite0", EFFICIENTNET)]
)
def test_a_classifier_gets_what_its_own_code_gives(
    name: str, preprocess: Preprocess, assets: Path, network: Callable[[str], ModuleType]
) -> None:
    theirs = network("evaluate_classifiers")
    _, folder, divisor, mean, std, interpolation = theirs.MODELS[name]
    with (assets / folder / "labels.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)][:30]
    for photo in (cv2.imdecode(np.fromfile(assets / folder / n, np.uint8), 1) for n in names):
        assert photo is not None
        shaped = theirs.shape_picture(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB), interpolation)
        expected = theirs.normalise(shaped[None], divisor, mean, std).numpy()
        np.testing.assert_allclose(prepared(preprocess, photo)[0], expected, rtol=0, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.assets
def test_a_small_classifier_gets_what_its_own_code_gives(
    assets: Path, network: Callable[[str], ModuleType]
) -> None:
    theirs = network("evaluate_classifiers")
    _, _, divisor, mean, std, _ = theirs.MODELS["resnet20_cifar"]
    pictures, _ = theirs.read_npz(assets / "cifar10" / "test.npz")
    expected = theirs.normalise(pictures[:200], divisor, mean, std).numpy()
    for rgb, x in zip(pictures[:200], expected, strict=True):
        np.testing.assert_allclose(prepared(CIFAR, rgb[..., ::-1])[0][0], x, rtol=0, atol=1e-6)


@pytest.mark.assets
def test_the_segmenter_gets_what_its_own_code_gives(
    assets: Path, network: Callable[[str], ModuleType]
) -> None:
    theirs = network("evaluate_tensor_models")
    sinet = Preprocess(
        size=(224, 224), fit="stretch", color="bgr", scale=1.0,
        mean=tuple(np.ravel(theirs.SINET_MEAN).tolist()),
        std=tuple((np.ravel(theirs.SINET_STD) * 255).tolist()),
    )  # fmt: skip
    for photo in _photos(assets / "person_masks", 10):
        expected = np.asarray(theirs.sinet_input(photo)).reshape(1, 3, 224, 224)
        np.testing.assert_allclose(prepared(sinet, photo)[0], expected, rtol=1e-5, atol=1e-9)
