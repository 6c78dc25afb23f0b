"""Fixtures that the whole suite shares: the checkout, the assets, tiny bundles worked out by hand."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest

from edgesmith.converters import Recipe, convert
from edgesmith.sdk.bundle import write_bundle
from edgesmith.sdk.manifest import Batch, Golden, Manifest, Nms, Provenance, Task, TensorSpec, Variant
from edgesmith.sdk.models import load_model
from edgesmith.sdk.preprocess import Preprocess

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# Three boxes at fixed places; the score of each is the mean of one colour channel, 0..1.
DETECTOR = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3, 4] boxes, float[N, 3, 1] scores)
<float[1, 3, 4] places = {2, 2, 10, 10, 12, 4, 28, 30, 13, 5, 29, 31}, float zero = {0.0},
 int64[2] plane = {2, 3}, int64[3] shape = {0, 3, 1}>
{
  mean = ReduceMean <keepdims = 0> (images, plane)
  scores = Reshape (mean, shape)
  nothing = Mul (scores, zero)
  boxes = Add (nothing, places)
}
"""
# The logit of each of three classes is the mean of one colour channel.
CLASSIFIER = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)
<int64[2] plane = {2, 3}>
{
  logits = ReduceMean <keepdims = 0> (images, plane)
}
"""
# The class of a pixel is its largest channel; the logits are the pixels.
SEGMENTER = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3, 32, 32] logits)
{
  logits = Identity (images)
}
"""
# Twice as large, each pixel four times; takes any size.
ENLARGER = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 1, H, W] images) => (float[N, 1, H2, W2] enlarged)
<float[4] scales = {1, 1, 2, 2}>
{
  enlarged = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (images, , scales)
}
"""
COLORS = ("blue", "green", "red")
# task: graph, class names, preprocess, outputs
TINY: dict[str, tuple[str, tuple[str, ...], Preprocess, tuple[str, ...]]] = {
    "detect": (DETECTOR, ("ball",), Preprocess(size=(32, 32), color="rgb"), ("boxes", "scores")),
    "classify": (CLASSIFIER, COLORS, Preprocess(size=(32, 32), fit="stretch", color="bgr"), ("logits",)),
    "segment": (SEGMENTER, COLORS, Preprocess(size=(32, 32), fit="stretch", color="bgr"), ("logits",)),
    "tensor": (ENLARGER, (), Preprocess(size=None, fit="none", color="y"), ("enlarged",)),
}
MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _without_the_compiler() -> Iterator[None]:
    """Conversions leave the compile check out: it takes longer than they do. Its own tests switch it on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgesmith.converters.compiled.installed", lambda: False)
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder with the trained models and labelled images; the test is skipped where it is absent.

    In continuous integration (``CI`` set) they must be there: absence is a failure.
    """
    folder = Path(os.environ.get("EDGESMITH_ASSETS", ROOT.parent / "shared" / "assets"))
    if not (folder / "README.md").is_file():
        message = f"no trained models at {folder}: set EDGESMITH_ASSETS to a folder that has them"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


# What a test may need beyond Python packages: how to see that it is there, and what brings it.
COMPONENTS: dict[str, tuple[Callable[[], bool], str]] = {
    "gstreamer": (
        lambda: _gi("Gst", "1.0"),
        "apt install gstreamer1.0-plugins-{base,good,bad,ugly} gstreamer1.0-libav; pip install PyGObject",
    ),
    "rtsp-server": (lambda: _gi("GstRtspServer", "1.0"), "apt install gir1.2-gst-rtsp-server-1.0"),
    "mosquitto": (lambda: Path("/usr/sbin/mosquitto").is_file(), "apt install mosquitto"),
    "chromium": (
        lambda: bool(shutil.which("chromium")) and bool(shutil.which("chromedriver")),
        "apt install chromium chromium-driver",
    ),
    "nvcc": (lambda: bool(shutil.which("nvcc")), "the CUDA toolkit's compiler"),
}


def _gi(name: str, version: str) -> bool:
    """Whether the introspection data of a GObject library is there."""
    if importlib.util.find_spec("gi") is None:
        return False
    gi = importlib.import_module("gi")
    try:
        gi.require_version(name, version)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="session")
def component() -> Callable[[str], None]:
    """``component("mosquitto")`` skips where this machine lacks it; in CI its absence is a failure."""

    def need(name: str) -> None:
        there, brings = COMPONENTS[name]
        if there():
            return
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: {brings}")
        pytest.skip(f"{name} is missing: {brings}")

    return need


@pytest.fixture(scope="session")
def asset_recipe(assets: Path) -> Callable[..., Recipe]:
    """The recipe of a trained model by name; keyword arguments by dotted key replace entries."""

    def read(name: str, **changes: Any) -> Recipe:
        table = tomllib.loads((ROOT / "benchmarks" / "recipes" / f"{name}.toml").read_text())
        for key, value in changes.items():
            *tables, last = key.split("__")
            inner = table
            for part in tables:
                inner = inner.setdefault(part, {})
            inner[last] = value
        return Recipe.from_dict(table, base=assets)

    return read


@pytest.fixture(scope="session")
def asset_bundle(
    asset_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The converted bundle of a trained model by name, without its evaluation; made once for each."""
    made: dict[str, Path] = {}

    def make(name: str, **changes: Any) -> Path:
        key = f"{name}-{sorted(changes.items())}"
        if key not in made:
            path = tmp_path_factory.mktemp("bundles") / f"{name}.edge"
            recipe = asset_recipe(name, **changes)
            convert(
                msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, evaluation=None)),
                path,
            )
            made[key] = path
        return made[key]

    return make


def graph_of(text: str, batch: Batch) -> bytes:
    """The model's bytes, its batch axis fixed where the batch is."""
    if batch.fixed:
        text = text.replace("[N,", f"[{batch.max},")
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Writes a bundle with true golden data; keyword arguments change the manifest."""

    def make(
        task: Task = "detect", *, name: str = "tiny.edge", text: str | None = None, **changes: object
    ) -> Path:
        own, labels, preprocess, outputs = TINY[task]
        manifest = Manifest(
            name="tiny",
            task=task,
            labels=labels,
            preprocess=preprocess,
            batch=Batch(min=1, opt=4, max=8),
            inputs=(TensorSpec(name="images", dtype="float32", shape=("N", 3, 32, 32)),),
            outputs=tuple(TensorSpec(name=o, dtype="float32", shape=("N",)) for o in outputs),
            nms=Nms() if task == "detect" else None,
            chosen="float",
            variants={
                "float": Variant(
                    member="model.float.onnx",
                    precision="fp32",
                    golden="golden/float.npz",
                    tolerance=dict.fromkeys(outputs, 1e-3),
                )
            },
            golden=Golden(images=("golden/input-0.png",)),
            provenance=Provenance(
                created="2026-01-01T00:00:00Z",
                edgesmith="0",
                source="tiny",
                source_sha256="",
                recipe={},
                versions={},
            ),
        )
        manifest = msgspec.structs.replace(manifest, **changes)
        graph = graph_of(text or own, manifest.batch)
        seen = manifest.preprocess
        size = seen.size if seen.fit == "none" and seen.size is not None else (24, 48)
        picture = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        png = cv2.imencode(".png", picture)[1].tobytes()
        members = {"model.float.onnx": graph, "golden/input-0.png": png, "golden/float.npz": b""}
        path = tmp_path / name
        # Twice: the golden outputs come from the model itself.
        write_bundle(path, manifest, members)
        with load_model(path, backend="cpu") as model:
            ((values, geometries),) = model.raw([picture])
        buffer = io.BytesIO()
        golden: dict[str, Any] = {name: value[: len(geometries)] for name, value in values.items()}
        np.savez(buffer, **golden)
        write_bundle(path, manifest, {**members, "golden/float.npz": buffer.getvalue()})
        return path

    return make


@pytest.fixture
def frame() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A frame of 64 x 64 pixels whose blue, green and red means are 51, 102 and 204."""
    image = np.empty((64, 64, 3), np.uint8)
    image[:] = (51, 102, 204)
    return image
