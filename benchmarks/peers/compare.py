"""The other tools' files on the images that ours is measured on, by the same code, paired with float."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
from msgspec.structs import replace

from edgesmith.calibration.images import Images
from edgesmith.converters import Recipe
from edgesmith.converters.package import FLOAT
from edgesmith.converters.precision.stage import evaluation_of
from edgesmith.sdk import Bundle
from edgesmith.sdk.bundle import write_bundle
from edgesmith.sdk.errors import EdgesmithError
from edgesmith.sdk.evaluate.paired import Paired, compare_many
from edgesmith.sdk.models import TASKS, Model
from peers.environments import ENVIRONMENTS, HERE
from peers.quantize import Made, int8_share, job_of, quantized
from peers.settings import SETTINGS


def key_of(bundle: Bundle, recipe: Recipe) -> str:
    """What the figures depend on: float graph, images, the tools' versions and how they are called."""
    digest = hashlib.sha256(_float_graph(bundle))
    digest.update(_calibration(recipe).fingerprint().encode())
    data = evaluation_of(recipe)
    assert data is not None
    digest.update(Images.open(data.images).fingerprint().encode() if data.images.is_dir() else b"")
    for path in (data.images, data.annotations, data.labels):
        if path is not None and path.is_file():
            digest.update(path.read_bytes())
    for file in sorted(name for names in ENVIRONMENTS.values() for name in names):
        digest.update((HERE / file).read_bytes())
    return digest.hexdigest()


def compared(
    bundle: Bundle, recipe: Recipe, folder: Path, settings: Iterable[str] = tuple(SETTINGS)
) -> dict[str, dict[str, Any]]:
    """Figures by setting; ``failure`` holds the message of one that gave no file, or none that runs.

    Args:
        bundle: any bundle of the model: its float graph goes to the tools.
        recipe: the model's, with calibration and labelled images.
        folder: where the files under test may be.
        settings: of :data:`~peers.settings.SETTINGS`.
    """
    graph = _float_graph(bundle)
    made = quantized(job_of(graph, _calibration(recipe), bundle.manifest.preprocess), settings)
    figures: dict[str, dict[str, Any]] = {
        name: {"failure": one.failure} for name, one in made.items() if one.path is None
    }
    files = {name: one.path.read_bytes() for name, one in made.items() if one.path is not None}
    path = _bundled(bundle, files, folder / "peers.edge")
    kind, data = TASKS[recipe.task], evaluation_of(recipe)
    assert kind is not None
    assert data is not None
    with ExitStack() as open_models:

        def load(variant: str) -> Model[Any]:
            return open_models.enter_context(kind.load(path, backend="cpu", variant=variant, threads=1))

        exact, others = load(FLOAT), {}
        for name in files:
            try:
                others[name] = load(name)
            except EdgesmithError as error:
                figures[name] = {"failure": str(error)[:300]}
        found = compare_many(exact, others, data)
    for name, paired in found.items():
        share = int8_share(onnx.load_from_string(files[name]), onnx.load_from_string(graph))
        figures[name] = _figures(paired, made[name], share)
    return {name: figures[name] for name in made}


def _figures(paired: Paired, made: Made, share: float) -> dict[str, Any]:
    return {
        "metric": paired.metric,
        "float": paired.exact,
        "chosen": paired.other,
        "drop": paired.drop,
        "interval": paired.interval,
        "flipped": paired.flipped,
        "share_of_macs": share,
        "tensorrt_scales": SETTINGS[made.setting].tensorrt,
        "quantize_cpu_seconds": made.seconds,
        "quantize_peak_bytes": made.peak_bytes,
    }


def _calibration(recipe: Recipe) -> Images:
    assert recipe.data.calibration is not None
    return Images.open(recipe.resolve(recipe.data.calibration))


def _float_graph(bundle: Bundle) -> bytes:
    return bundle.read(bundle.manifest.variants[FLOAT].member)


def _bundled(bundle: Bundle, files: Mapping[str, bytes], path: Path) -> Path:
    """A bundle with the float graph and the files as variants, so that all run through the same classes."""
    manifest = bundle.manifest
    exact = manifest.variants[FLOAT]
    members = {name: bundle.read(name) for name in (exact.member, exact.golden, *manifest.golden.images)}
    members |= {f"variants/{name}.onnx": data for name, data in files.items()}
    if manifest.golden.resize is not None:
        resize = manifest.golden.resize
        members |= {name: bundle.read(name) for name in (resize.image, resize.expected)}
    variants = {name: replace(exact, member=f"variants/{name}.onnx", precision="int8") for name in files}
    write_bundle(path, replace(manifest, variants={FLOAT: exact, **variants}, chosen=FLOAT), members)
    return path
