"""Every trained model of the assets, the whole way: convert, verify, evaluate, batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgesmith.sdk import Detector, load_model, read_image, self_test
from edgesmith.sdk.evaluate import EvaluationData, evaluate

# What PyTorch measures on the same images with the networks' own preprocess and decode (the assets' README).
FIGURES = {
    "mobilenet_v1_025": 57.27,
    "efficientnet_lite0": 87.27,
    "resnet20_cifar": 91.80,
    "resnet56_cifar": 93.05,
    "yolox_nano": 28.32,
    "nanodet_m": 24.27,
    "fastestdet": 16.44,
}
QUICK = {"mobilenet_v1_025", "yolox_nano"}  # the two that every run does


@pytest.mark.assets
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FIGURES]
)
def test_it_keeps_the_accuracy_of_pytorch(
    name: str, assets: Path, asset_bundle: Callable[..., Path], asset_recipe: Callable[..., object]
) -> None:
    with load_model(asset_bundle(name), backend="cpu") as model:
        assert self_test(model).passed
        folder = "imagenet_val"
        if model.task == "detect":
            folder = "coco_val"
        elif "cifar" in name:
            folder = "cifar10/test.npz"
        result = evaluate(model, EvaluationData.found(assets / folder))
    assert result.faults == ()
    assert result.value == pytest.approx(FIGURES[name], abs=0.3)


@pytest.mark.assets
@pytest.mark.parametrize("name", [pytest.param("yolox_nano"), pytest.param("mobilenet_v1_025")])
def test_batches_answer_as_one_by_one(name: str, assets: Path, asset_bundle: Callable[..., Path]) -> None:
    single = load_model(asset_bundle(name), backend="cpu")
    batched = load_model(asset_bundle(name, input__batch={"min": 1, "opt": 4, "max": 8}), backend="cpu")
    frames = [read_image(path) for path in sorted((assets / "coco_val").glob("*.jpg"))[:8]]
    alone = [single(frame) for frame in frames]  # type: ignore[operator]
    for count in (1, 3, 8):
        together = batched(frames[:count])  # type: ignore[operator]
        for a, b in zip(alone, together, strict=False):
            assert len(a) == len(b)
            np.testing.assert_array_equal(a.labels[:5], b.labels[:5])
            np.testing.assert_allclose(a.scores, b.scores, atol=2e-4)
            if isinstance(batched, Detector):
                np.testing.assert_allclose(a.boxes, b.boxes, atol=0.2)


@pytest.mark.assets
@pytest.mark.parametrize("classes", ["best", pytest.param("all", marks=pytest.mark.slow)])
def test_suppression_in_the_graph_finds_what_the_host_finds(
    classes: str, assets: Path, asset_bundle: Callable[..., Path]
) -> None:
    spec = {"candidates": 300, "classes": classes, "evaluation_score": 0.01}
    host = Detector.load(asset_bundle("yolox_nano", nms={**spec, "where": "host"}), backend="cpu")
    graph = Detector.load(asset_bundle("yolox_nano", nms={**spec, "where": "graph"}), backend="cpu")
    found = 0
    for path in sorted((assets / "coco_val").glob("*.jpg"))[:20]:
        frame = read_image(path)
        a, b = host(frame, score=0.01), graph(frame, score=0.01)
        assert len(a) == len(b)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=0.05)
        found += len(a)
    assert found > 100


RESIDENT = """
import sys
from edgesmith.sdk import Detector, read_image
from edgesmith.sdk.board.memory import resident_bytes
detector = Detector.load(sys.argv[1], backend="cpu")
frame = read_image(sys.argv[2])
for _ in range(10):
    detector(frame)
print(resident_bytes(), sorted({"torch", "onnx"} & set(sys.modules)))
"""


@pytest.mark.assets
def test_a_detector_process_stays_small(assets: Path, asset_bundle: Callable[..., Path]) -> None:
    picture = min((assets / "coco_val").glob("*.jpg"))
    command = [sys.executable, "-c", RESIDENT, str(asset_bundle("yolox_nano")), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held, heavy = done.stdout.split(maxsplit=1)
    assert 20 << 20 < int(held) < 250 << 20
    assert heavy.strip() == "[]"
