"""Recipe to bundle, end to end, and the conversions that are refused."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgesmith.calibration.images import Images
from edgesmith.converters import ConvertReport, Recipe, convert, export, graph
from edgesmith.converters.trace import module_path
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import (
    BundleError,
    DeviceProfileError,
    EdgesmithError,
    ParityError,
    RecipeError,
    SourceError,
)
from edgesmith.sdk.models import Classifier, Detector, load_model
from edgesmith.sdk.preprocess import prepared
from edgesmith.sdk.selftest import self_test

RecipeOf = Callable[..., Recipe]
RANGE = {"size": [64, 64], "batch": {"min": 1, "opt": 2, "max": 4}}


@pytest.fixture
def reference(tinynets: ModuleType, weights: dict[str, Path]) -> nn.Module:
    module: nn.Module = tinynets.classifier()
    module.load_state_dict(load_file(weights["classifier"]))
    return module.eval()


def logits_of(path: Path, photos: Path) -> np.ndarray:
    with load_model(path, backend="cpu", threads=1) as model:
        parts = [outputs["logits"][: len(g)] for outputs, g in model.raw(list(Images.open(photos)))]
    return np.concatenate(parts)


def expected_of(reference: nn.Module, bundle: Path, photos: Path) -> np.ndarray:
    preprocess = Bundle.open(bundle).manifest.preprocess
    images = [torch.from_numpy(prepared(preprocess, image)[0]) for image in Images.open(photos)]
    with torch.no_grad():
        return torch.cat([reference(image) for image in images]).numpy()


def test_classifier_with_a_range_of_batches(
    recipe_of: RecipeOf, reference: nn.Module, photos: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(input=RANGE, labels=["a", "b", "c", "d", "e"])
    report = convert(recipe, tmp_path / "m.edge")
    assert isinstance(report, ConvertReport)
    assert report.bundle == str(tmp_path / "m.edge")
    assert (report.precision, report.refused, report.metric) == ("fp32", None, None)
    assert report.parity["images"] == 6
    assert report.parity["top1_agreement"] == 1.0
    assert 0 < report.parity["logits.max_abs"] + 1e-12 < 1e-4

    bundle = Bundle.open(tmp_path / "m.edge")
    bundle.check()
    manifest = bundle.manifest
    assert (manifest.name, manifest.task, manifest.chosen) == ("classifier", "classify", "float")
    assert manifest.labels == ("a", "b", "c", "d", "e")
    assert [(t.name, t.dtype, t.shape) for t in manifest.inputs] == [
        ("images", "float32", ("batch", 3, 64, 64))
    ]
    assert [(t.name, t.dtype, t.shape) for t in manifest.outputs] == [("logits", "float32", ("batch", 5))]
    assert (manifest.batch.min, manifest.batch.opt, manifest.batch.max) == (1, 2, 4)
    assert set(manifest.members) == {
        "golden/resize.png",
        "golden/resized.png",
        "model.float.onnx", "golden/float.npz", "golden/input-0.png", "golden/input-1.png",
        "report.json", "report.html",
    }  # fmt: skip
    assert manifest.parity == report.parity
    np.testing.assert_allclose(
        logits_of(tmp_path / "m.edge", photos), expected_of(reference, tmp_path / "m.edge", photos), atol=1e-4
    )
    model = onnx.load_from_string(bundle.read("model.float.onnx"))
    assert all(module_path(n) is not None for n in model.graph.node if n.op_type in ("Conv", "Gemm"))
    with Classifier.load(tmp_path / "m.edge", backend="cpu") as classifier:
        assert self_test(classifier).passed
    text = bundle.read("report.json") + bundle.read("report.html") + msgspec.json.encode(manifest)
    for folder in (str(tmp_path), recipe.base, str(photos.parent)):
        assert folder.encode() not in text


def test_detector(recipe_of: RecipeOf, tmp_path: Path, photos: Path) -> None:
    model = {**msgspec.to_builtins(recipe_of("detector").model), "head": "canonical"}
    model = {k: v for k, v in model.items() if v not in (None, {})}
    recipe = recipe_of("detector", model=model, nms={"score": 0.6}, labels=["a", "b", "c"])
    report = convert(recipe, tmp_path / "d.edge")
    assert report.parity["box_agreement"] == 1.0
    assert report.parity["decisions"] > 0
    manifest = Bundle.open(tmp_path / "d.edge").manifest
    assert [t.name for t in manifest.outputs] == ["boxes", "scores"]
    assert manifest.variants["float"].tolerance == {"boxes": 0.5, "scores": 2e-3}
    with Detector.load(tmp_path / "d.edge", backend="cpu") as detector:
        assert self_test(detector).passed
        assert any(len(detector(image)) for image in Images.open(photos))


def test_same_recipe_same_members(recipe_of: RecipeOf, tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert(recipe_of(), tmp_path / f"{name}.edge")
    one, two = (Bundle.open(tmp_path / f"{n}.edge").manifest for n in ("one", "two"))
    stable = {n for n in one.members if not n.startswith("report")}
    assert {n: one.members[n] for n in stable} == {n: two.members[n] for n in stable}
    fixed = msgspec.structs.replace(one, provenance=two.provenance, members=two.members)
    assert fixed == two


def test_provenance(recipe_of: RecipeOf, weights: dict[str, Path], tmp_path: Path) -> None:
    import hashlib

    convert(recipe_of(), tmp_path / "m.edge")
    origin = Bundle.open(tmp_path / "m.edge").manifest.provenance
    assert origin.source_sha256 == hashlib.sha256(weights["classifier"].read_bytes()).hexdigest()
    assert origin.versions["torch"] == torch.__version__.partition("+")[0]
    assert set(origin.versions) >= {"python", "torch", "onnx", "onnxruntime", "numpy", "edgesmith"}
    model = origin.recipe["model"]
    assert isinstance(model, dict)
    assert (model["factory"], model["weights"]) == ("tinynets:classifier", "classifier.safetensors")
    assert origin.seconds > 0


def test_without_images_it_says_so(
    recipe_of: RecipeOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "edgesmith"):
        report = convert(recipe_of(data={}), tmp_path / "m.edge")
    assert report.parity["images"] == 0
    assert "names no images (data.calibration, data.evaluation)" in caplog.text
    data = json.loads(Bundle.open(tmp_path / "m.edge").read("report.json"))
    assert data["images"] == "seeded pseudo-images"


def test_accuracy_is_that_of_the_bundle(
    recipe_of: RecipeOf, reference: nn.Module, photos: Path, tmp_path: Path
) -> None:
    convert(recipe_of(labels=list("abcde")), tmp_path / "m.edge")
    right = expected_of(reference, tmp_path / "m.edge", photos).argmax(1)
    names = Images.open(photos).names
    given = [(right[n] + (n == 0)) % 5 for n in range(len(names))]  # one label is wrong
    rows = "\n".join(f"{name},{label}" for name, label in zip(names, given, strict=True))
    (tmp_path / "labels.csv").write_text(f"file,class\n{rows}\n")
    data = {"evaluation": {"images": str(photos), "labels": str(tmp_path / "labels.csv")}}
    report = convert(recipe_of(labels=list("abcde"), data=data), tmp_path / "m.edge")
    assert report.metric == "top1"
    assert report.float == report.chosen == pytest.approx(100 * 5 / 6)
    assert (report.drop, report.interval, report.evaluations) == (0.0, (0.0, 0.0), 1)
    manifest = Bundle.open(tmp_path / "m.edge").manifest
    assert manifest.measured["top1"] == manifest.variants["float"].measured["top1"] == report.float
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def sources(reference: nn.Module, folder: Path) -> dict[str, dict[str, Any]]:
    example = torch.zeros(1, 3, 64, 64)
    torch.export.save(torch.export.export(reference, (example,)), folder / "net.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and the old ONNX exporter with it
        trace: Any = torch.jit.trace
        torch.jit.save(trace(reference, example), folder / "net.ts")
        torch.onnx.export(reference, (example,), str(folder / "net.onnx"), dynamo=False, opset_version=17)
    return {
        "program": {"program": "net.pt2"},
        "torchscript": {"torchscript": "net.ts"},
        "onnx": {"onnx": "net.onnx"},
    }


@pytest.mark.slow
def test_every_kind_of_source_gives_the_same_answers(
    reference: nn.Module, photos: Path, tmp_path: Path
) -> None:
    for kind, model in sources(reference, tmp_path).items():
        table = {
            "task": "classify",
            "model": model,
            "input": {"size": [64, 64]},
            "data": {"calibration": str(photos)},
        }
        convert(Recipe.from_dict(table, base=tmp_path), tmp_path / f"{kind}.edge")
        np.testing.assert_allclose(
            logits_of(tmp_path / f"{kind}.edge", photos),
            expected_of(reference, tmp_path / f"{kind}.edge", photos),
            atol=1e-4,
        )
        bundle = Bundle.open(tmp_path / f"{kind}.edge")
        nodes = onnx.load_from_string(bundle.read("model.float.onnx")).graph.node
        assert "BatchNormalization" not in {n.op_type for n in nodes}
        convs = {module_path(n) for n in nodes if n.op_type == "Conv"}
        assert convs == {"stem.0", "body.0.0", "body.1.0", "shortcut"}, kind


def refused(recipe: Recipe, out: Path, kind: type[EdgesmithError], said: str) -> EdgesmithError:
    """The error; what stood at ``out`` is untouched and nothing lies beside it."""
    out.write_bytes(b"what was there")
    before = sorted(p.name for p in out.parent.iterdir())
    with pytest.raises(kind, match=said) as caught:
        convert(recipe, out)
    assert out.read_bytes() == b"what was there"
    assert sorted(p.name for p in out.parent.iterdir()) == before
    return caught.value


@pytest.mark.parametrize(
    ("tables", "said", "key"),
    [
        ({"precision": {"mode": "int8"}, "data": {}}, "needs images like those", "data.calibration"),
        ({"qat": {}}, "trains under INT8's rounding; precision.mode is \"fp32\"", "qat"),
        ({"target": {"dla": 0}}, "a DLA core runs INT8; precision.mode is \"fp32\"", "target.dla"),
        ({"target": {"dla": 0}, "precision": {"mode": "int8"}}, "has no DLA core", "target.dla"),
        (
            {"target": {"dla": 2, "device": "orin-nx-16gb"}, "precision": {"mode": "int8"}},
            "has 2 DLA cores, numbered from 0", "target.dla",
        ),
        (
            {"target": {"dla": 0, "device": "orin-nano-8gb"}, "precision": {"mode": "auto"}},
            "Orin Nano 8 GB has no DLA core", "target.dla",
        ),
        ({"labels": ["a", "b"]}, "2 (names|labels)|2 labels", None),
    ],
)  # fmt: skip
def test_what_this_version_does_not_do(
    recipe_of: RecipeOf, tmp_path: Path, tables: dict[str, Any], said: str, key: str | None
) -> None:
    kind = RecipeError if key is not None else EdgesmithError
    error = refused(recipe_of(**tables), tmp_path / "m.edge", kind, said)
    assert key is None or (isinstance(error, RecipeError) and error.key == key)


@pytest.mark.parametrize(
    ("tables", "said", "key"),
    [
        ({"target": {"variants": ["x87"]}}, "no 'x87'; there are fp16, int8-plain, x86", "target.variants"),
        ({"precision": {"repairs": ["prayer"]}}, "no 'prayer'; there are factor", "precision.repairs"),
    ],
)
def test_a_list_of_names_holds_names_that_there_are(
    recipe_of: RecipeOf, tables: dict[str, Any], said: str, key: str
) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        recipe_of(**tables)
    assert caught.value.key == key


def test_unknown_device_and_no_folder(recipe_of: RecipeOf, tmp_path: Path) -> None:
    refused(recipe_of(target={"device": "orin-nono"}), tmp_path / "m.edge", DeviceProfileError, "orin-nano")
    refused(
        recipe_of(target={"device": "xavier-nx"}), tmp_path / "m.edge", DeviceProfileError, "opsets up to 17"
    )
    with pytest.raises(BundleError, match="there is no folder"):
        convert(recipe_of(), tmp_path / "nowhere" / "m.edge")
    with pytest.raises(BundleError, match="is a folder"):
        convert(recipe_of(), tmp_path)


def test_a_tampered_graph_is_refused_with_figures(
    recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(model: onnx.ModelProto) -> onnx.ModelProto:
        changed = slim(model)
        weight = next(i for i in changed.graph.initializer if i.name == "classifier.weight")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[2] += 0.05
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return changed

    slim = export.slim
    monkeypatch.setattr(graph, "slim", tampered)
    error = refused(
        recipe_of(), tmp_path / "m.edge", ParityError, r"logits: max abs \d.* \(allowed .*\), cosine"
    )
    assert isinstance(error, ParityError)
    assert error.figures["logits.max_abs"] > 0.01
    assert error.figures["images"] == 6


def test_a_wrong_export_is_refused(
    recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(*args: Any, **options: Any) -> onnx.ModelProto:
        model = export_module(*args, **options)
        bias = next(i for i in model.graph.initializer if i.name == "classifier.bias")
        values = onnx.numpy_helper.to_array(bias)[::-1].copy()
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    export_module = export.export_module
    monkeypatch.setattr(graph, "export_module", tampered)
    refused(
        recipe_of(),
        tmp_path / "m.edge",
        ParityError,
        "the exported graph answers differently from the model on 6 images",
    )


def test_a_model_that_mixes_a_batch_is_refused(recipe_of: RecipeOf, tmp_path: Path) -> None:
    refused(
        recipe_of("mixer", input=RANGE),
        tmp_path / "m.edge",
        ParityError,
        "2 images in one batch get other answers",
    )


def test_a_ready_graph_of_another_size(reference: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    sources(reference, tmp_path / "models")
    for size, said in (([32, 32], "input.size"), ([64, 64], None)):
        batch = 1 if said else 2
        table = {
            "task": "classify",
            "model": {"onnx": "models/net.onnx"},
            "input": {"size": size, "batch": batch},
        }
        recipe = Recipe.from_dict(table, base=tmp_path)
        refused(recipe, tmp_path / "m.edge", SourceError, said or "input.batch")


def test_a_ready_graph_must_be_canonical(reference: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    sources(reference, tmp_path / "models")
    table = {"task": "detect", "model": {"onnx": "models/net.onnx"}, "input": {"size": [64, 64]}}
    refused(
        Recipe.from_dict(table, base=tmp_path),
        tmp_path / "m.edge",
        SourceError,
        r"boxes \(N, K, 4\).*Bring the module",
    )


@pytest.mark.assets
@pytest.mark.slow
def test_mobilenet(assets: Path, tmp_path: Path) -> None:
    val = assets / "imagenet_val"
    recipe = Recipe.from_dict(
        {
            "task": "classify",
            "labels": str(assets / "imagenet_classes.txt"),
            "model": {
                "factory": "networks.mobilenet_v1:mobilenet_v1_025",
                "weights": str(assets / "weights" / "mobilenet_v1_025.safetensors"),
                "python_path": [str(assets)],
            },
            "input": {"size": [224, 224], "shorter_side": 256, "scale": 1 / 127.5, "mean": 1},
            "data": {"evaluation": {"images": str(val), "labels": str(val / "labels.csv")}},
        }
    )
    report = convert(recipe, tmp_path / "m.edge")
    # The figure of the PyTorch network on the same pictures: 252 of 440.
    assert report.float == pytest.approx(100 * 252 / 440)
    assert report.parity["images"] == 16
    with zipfile.ZipFile(tmp_path / "m.edge") as archive:
        assert str(assets).encode() not in b"".join(archive.read(name) for name in archive.namelist())
