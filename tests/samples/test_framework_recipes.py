"""The recipes for models of other libraries, against what these libraries make of the same pictures."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import Recipe, convert
from edgesmith.sdk.models import Classifier, Detector, Segmenter
from edgesmith.sdk.preprocess import prepared

log = logging.getLogger(__name__)
RECIPES = Path("samples") / "recipes"
FOLDER = RECIPES / "frameworks"
CLASSES = 5
# The input's size where the published one would take minutes.
SIZES = {"detr": (120, 160), "rtdetr": (256, 256), "segformer": (128, 128)}


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sample_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def seeded(root: Path) -> ModuleType:
    """The benchmark's seeded weights."""
    return module_of(root / "benchmarks" / "seeded.py")


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_MODEL", raising=False)
    return pytest.importorskip("transformers", reason="pip install transformers: its models are converted")


@pytest.fixture
def ultralytics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_CLASSES", str(CLASSES))
    return pytest.importorskip("ultralytics", reason="pip install ultralytics: its models are converted")


@pytest.fixture
def recipe_of(root: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """``recipe_of(name, weights, size)``: a recipe with files of the test in place of its own."""

    def read(name: str, weights: Path, size: tuple[int, int] | None = None) -> Recipe:
        pictures = tmp_path / "pictures"
        pictures.mkdir(exist_ok=True)
        for number, frame in enumerate(frames(size or (224, 224), 3)):
            cv2.imwrite(str(pictures / f"{number}.png"), frame)
        changes: dict[str, Any] = {
            "model.weights": str(weights),
            "labels": str(weights.with_suffix(".txt")),
            "data.calibration": str(pictures),
        }
        if size is not None:
            changes["input.size"] = list(size)
        return Recipe.from_toml(root / FOLDER / f"{name}.toml", changes)

    return read


def frames(size: tuple[int, int], count: int, seed: int = 7) -> list[Any]:
    """Pictures of exactly the input's size: nothing is resized, so both sides see the same values."""
    return list(pseudo_images(count, seed, size))


def tensor_of(recipe: Recipe, frame: Any) -> torch.Tensor:
    return torch.from_numpy(prepared(recipe.preprocess(), frame)[0])


def small(theirs: Any, name: str) -> Any:
    """A config of the same architecture with few and narrow layers."""
    backbone = {
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 48],
        "depths": [1] * 4,
        "layer_type": "basic",
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    feed = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 64, "num_labels": CLASSES}
    if name == "resnet":
        return theirs.ResNetConfig(num_labels=CLASSES, **backbone)
    if name == "vit":
        return theirs.ViTConfig(
            num_labels=CLASSES,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
    if name == "detr":
        body = theirs.ResNetConfig(out_features=["stage4"], **backbone)
        return theirs.DetrConfig(
            encoder_layers=1, decoder_layers=2, num_queries=20, backbone_config=body, **heads, **feed
        )
    if name == "rtdetr":
        body = theirs.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"], **backbone)
        return theirs.RTDetrConfig(
            encoder_in_channels=[24, 32, 48], encoder_hidden_dim=64, decoder_in_channels=[64] * 3,
            decoder_layers=2, num_queries=30, backbone_config=body, **heads, **feed,
        )  # fmt: skip
    return theirs.SegformerConfig(
        num_labels=CLASSES, depths=[1] * 4, hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=32,
    )  # fmt: skip


Bring = Callable[[str], tuple[Recipe, Any]]


@pytest.fixture
def bring(
    root: Path, transformers: Any, seeded: ModuleType, recipe_of: Callable[..., Recipe], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bring:  # fmt: skip
    """``bring(name)``: the recipe for a folder of the library's, and the library's own model."""
    sample = module_of(root / FOLDER / "hugging_face.py")

    def make(name: str) -> tuple[Recipe, Any]:
        torch.manual_seed(0)
        _, kind = sample.FACTORIES[name]
        network = getattr(transformers, kind).from_config(small(transformers, name)).eval()
        size = SIZES.get(name, (224, 224))
        if name == "detr":  # drawn for wide layers: in narrow ones attention is uniform, all queries alike
            with torch.no_grad():
                for parameter in network.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(6)
        noise = torch.from_numpy(np.stack(frames(size, 8, 3))).permute(0, 3, 1, 2).float() / 127.5 - 1
        outputs = sample.Outputs(network, ["logits"])
        seeded.seed_weights(outputs, noise, classifier=name in ("resnet", "vit", "segformer"))
        network.save_pretrained(tmp_path / "theirs")
        monkeypatch.setenv("HF_MODEL", str(tmp_path / "theirs"))
        weights = sample.write(name, tmp_path)
        assert len(weights.with_suffix(".txt").read_text().splitlines()) == CLASSES
        return recipe_of(f"transformers_{name}", weights, SIZES.get(name)), network

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_classifier_of_transformers(name: str, bring: Bring, tmp_path: Path) -> None:
    recipe, network = bring(name)
    convert(recipe, tmp_path / "model.edge")
    with Classifier.load(tmp_path / "model.edge", backend="cpu", threads=1) as model:
        # ResNet's preprocess crops: a picture at the shorter side is cropped and not resized.
        for frame in frames((256, 256) if name == "resnet" else (224, 224), 3):
            with torch.no_grad():
                theirs = network(tensor_of(recipe, frame)).logits.softmax(1)[0].numpy()
            found = model(frame)
            assert np.abs(theirs[found.labels] - found.scores).max() < 1e-5
            assert theirs.argmax() == found.labels[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "rtdetr"])
def test_a_detector_of_transformers(name: str, bring: Bring, transformers: Any, tmp_path: Path) -> None:
    recipe, network = bring(name)
    convert(recipe, tmp_path / "model.edge")
    after = getattr(transformers, PROCESSORS[name][0])().post_process_object_detection
    size, compared = SIZES[name], 0
    with Detector.load(tmp_path / "model.edge", backend="cpu", threads=1) as model:
        for frame in frames(size, 3):
            with torch.no_grad():
                raw = network(pixel_values=tensor_of(recipe, frame))
            every = after(raw, threshold=0.0, target_sizes=[size])[0]
            threshold = clear(every["scores"].numpy())
            found = after(raw, threshold=threshold, target_sizes=[size])[0]
            theirs = (found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy())
            compared += same(theirs, model(frame, score=threshold), size)
    log.info("%s: %d detections compared", name, compared)
    assert compared >= 15


@pytest.mark.slow
def test_a_segmenter_of_transformers(bring: Bring, transformers: Any, tmp_path: Path) -> None:
    recipe, network = bring("segformer")
    convert(recipe, tmp_path / "model.edge")
    after = transformers.SegformerImageProcessor().post_process_semantic_segmentation
    with Segmenter.load(tmp_path / "model.edge", backend="cpu", threads=1) as model:
        for frame in frames(SIZES["segformer"], 3):
            with torch.no_grad():
                raw = network(pixel_values=tensor_of(recipe, frame))
            theirs = after(raw, target_sizes=[frame.shape[:2]])[0].numpy()
            assert len(np.unique(theirs)) > 1
            assert (theirs == model(frame).class_map).mean() > 0.998


def clear(scores: Any) -> float:
    """A threshold that some ten scores pass, in the middle of a gap."""
    best = np.sort(scores)[::-1][: min(16, len(scores))]
    at = 5 + int((best[5:-1] - best[6:]).argmax())
    return float(best[at] + best[at + 1]) / 2


def same(theirs: tuple[Any, Any, Any], ours: Any, size: tuple[int, int]) -> int:
    """Every detection of theirs is one of ours and no other; returns how many."""
    boxes, scores, labels = theirs
    height, width = size
    boxes = np.clip(boxes, 0, [width, height, width, height])
    assert len(ours) == len(scores)
    for box, score, label in zip(boxes, scores, labels, strict=True):
        near = (
            np.abs(ours.boxes - box).max(1) + 1e3 * np.abs(ours.scores - score) + 1e6 * (ours.labels != label)
        )
        assert near.min() < 0.1, f"{label} {score} {box}"
    return len(scores)


# What the published models' own files say beside the defaults of the class.
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": (
        "ConvNextImageProcessor",
        {
            "size": {"shortest_edge": 224},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
    "vit": ("ViTImageProcessor", {}),
    "detr": ("DetrImageProcessor", {}),
    "rtdetr": ("RTDetrImageProcessor", {}),
    "segformer": ("SegformerImageProcessor", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_preprocess_is_the_librarys(
    name: str, root: Path, transformers: Any, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """On a picture that both have to resize; in units of a pixel's value."""
    weights = tmp_path / "w.safetensors"
    weights.touch()
    weights.with_suffix(".txt").write_text("one\ntwo\n")
    recipe = recipe_of(f"transformers_{name}", weights)
    smooth = cv2.GaussianBlur(frames((480, 640), 1)[0], (0, 0), 2)
    kind, given = PROCESSORS[name]
    picture = np.ascontiguousarray(smooth[..., ::-1])
    theirs = getattr(transformers, kind)(**given)(picture, return_tensors="pt")["pixel_values"].numpy()
    ours = tensor_of(recipe, smooth).numpy()
    assert theirs.shape == ours.shape
    spec = recipe.preprocess()
    apart = np.abs(theirs - ours) * np.mean(spec.std) / spec.scale
    assert apart.mean() < 0.6
    assert np.quantile(apart, 0.999) < 2.5


def test_a_folder_without_a_config_is_named(
    root: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_MODEL", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"HF_MODEL=.*no config\.json"):
        module_of(root / FOLDER / "hugging_face.py").resnet()


# --- Ultralytics -------------------------------------------------------------------------------------------


def checkpoint_of(name: str, ultralytics: Any, seeded: ModuleType, sample: ModuleType, path: Path) -> Any:
    """A checkpoint as the library writes one, and the network that it reads from it."""
    torch.manual_seed(0)
    network = sample.network(name)
    noise = torch.from_numpy(np.stack(frames((256, 256), 8, 3))).permute(0, 3, 1, 2).float() / 255
    if name == "yolov10n":
        network.model[-1].end2end = True
    seeded.seed_weights(network, noise, classifier=False)
    yolo = ultralytics.YOLO(f"{name}.yaml")
    yolo.model = network
    yolo.save(path)
    return ultralytics.YOLO(path).model.float().eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ultralytics")
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov10n"])
def test_a_detector_of_ultralytics(
    name: str, root: Path, ultralytics: Any, seeded: ModuleType, recipe_of: Callable[..., Recipe],
    tmp_path: Path,
) -> None:  # fmt: skip
    from ultralytics.utils.nms import non_max_suppression  # type: ignore[import-not-found,unused-ignore]

    sample = module_of(root / FOLDER / "ultralytics_yolo.py")
    network = checkpoint_of(name, ultralytics, seeded, sample, tmp_path / "theirs.pt")
    weights = sample.write(name, tmp_path / "theirs.pt", tmp_path)
    size, compared = (256, 256), 0
    recipe = recipe_of(f"ultralytics_{name}", weights, size)
    convert(recipe, tmp_path / "model.edge")
    ends = name == "yolov10n"
    if ends:
        network.model[-1].end2end = True
    with Detector.load(tmp_path / "model.edge", backend="cpu", threads=1) as model:
        for frame in frames(size, 3):
            with torch.no_grad():
                raw = network(tensor_of(recipe, frame))[0]
            scores = raw[0, :, 4] if ends else raw[0, 4:].flatten()
            threshold = clear(scores.sort(descending=True).values[:60].numpy()[::3])
            if ends:
                rows = raw[0][raw[0, :, 4] > threshold]
            else:
                (rows,) = non_max_suppression(raw.clone(), threshold, 0.7, multi_label=True)
            boxes, best, labels = rows[:, :4].numpy(), rows[:, 4].numpy(), rows[:, 5].numpy()
            compared += same((boxes, best, labels), model(frame, score=threshold), size)
    log.info("%s: %d detections compared", name, compared)
    assert compared >= 15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ultralytics")
def test_an_ultralytics_archive_of_torchscript(root: Path, ultralytics: Any, tmp_path: Path) -> None:
    """Its attention computes with sizes that the archive holds as tensors."""
    from edgesmith.converters.sources import load_source

    network = module_of(root / FOLDER / "ultralytics_yolo.py").network("yolo11n")
    network.model[-1].export = True
    example = torch.zeros(1, 3, 128, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; the user's archive is what it is
        network(example)
        trace: Any = torch.jit.trace
        torch.jit.save(trace(network, example, strict=False), tmp_path / "yolo11n.torchscript")
    table = {
        "task": "detect",
        "model": {"torchscript": "yolo11n.torchscript", "head": "yolov8"},
        "input": {"size": [128, 128]},
    }
    loaded = load_source(Recipe.from_dict(table, base=tmp_path))
    assert loaded.module is not None
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(picture), network(picture))


# --- Anything else: exported in an environment of its own ---------------------------------------------------

EXPORT = """
import sys
import torch

sys.path.insert(0, sys.argv[1])
from networks.yolo import yolox

torch.manual_seed(0)
model = yolox()
images = torch.zeros(1, 3, 256, 256)
torch.export.save(torch.export.export(model.eval(), (images,)), sys.argv[2])
torch.save(model(torch.full_like(images, 100.0)), sys.argv[3])
"""


@pytest.mark.slow
def test_a_program_of_another_environment(root: Path, tmp_path: Path) -> None:
    """The code of the network is in the other process alone."""
    places = [str(root / RECIPES), str(tmp_path / "yolox.pt2"), str(tmp_path / "raw.pt")]
    command = [sys.executable, "-c", EXPORT, *places]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, frame in enumerate(frames((256, 256), 2)):
        cv2.imwrite(str(pictures / f"{number}.png"), frame)
    given = {"model.program": str(tmp_path / "yolox.pt2"), "data.calibration": str(pictures)}
    convert(Recipe.from_toml(root / FOLDER / "program_yolox.toml", given), tmp_path / "model.edge")
    raw = [each.detach() for each in torch.load(tmp_path / "raw.pt", weights_only=True)]
    best = max(float((each[0, 4:5].sigmoid() * each[0, 5:].sigmoid()).max()) for each in raw)
    with Detector.load(tmp_path / "model.edge", backend="cpu", threads=1) as model:
        found = model(np.full((256, 256, 3), 100, np.uint8), score=0.0)
    assert found.scores[0] == pytest.approx(best, abs=1e-5)


def test_every_recipe_is_tested(root: Path) -> None:
    tested = {f"transformers_{name}" for name in PROCESSORS} | {"program_yolox"}
    tested |= {f"ultralytics_{name}" for name in ("yolov8n", "yolo11n", "yolov10n")}
    assert {path.stem for path in (root / FOLDER).glob("*.toml")} == tested
