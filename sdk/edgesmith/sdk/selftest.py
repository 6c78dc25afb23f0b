"""The bundle's self-test: its golden pictures through this machine's backend.

The pictures go through the same preprocess as a frame. Those for the engine need no resizing, so their
tolerance is the engine's alone; the resizing has a picture and a tolerance of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, Protocol

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.alignment import in_order_of
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BundleError
from edgesmith.sdk.manifest import GoldenResize, Preprocess, batch_on
from edgesmith.sdk.preprocess import prepared

# OpenCV's resize rounds differently on x86 and on Arm: one step of a pixel, and never more.
PIXEL_STEPS = 1.0
_SAMPLED = "@"  # before the step of an output that is stored in part
Floats = NDArray[np.float64]


class OutputCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One output: largest absolute difference, cosine similarity, and the difference allowed."""

    name: str
    max_abs: float
    cosine: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """True where the difference is a number inside the tolerance."""
        return self.max_abs <= self.tolerance


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-test found; the keys of ``verify --json``."""

    passed: bool
    backend: str
    variant: str
    outputs: tuple[OutputCheck, ...]


class Runs(Protocol):
    """What runs one of a bundle's graphs: a Backend."""

    name: str
    variant: str

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name for a batch."""
        ...


class Tested(Protocol):
    """A model, as far as the self-test looks at it."""

    bundle: Bundle

    @property
    def backend(self) -> Runs:
        """What runs the graph."""
        ...

    def raw(self, frames: list[NDArray[np.uint8]]) -> Iterable[tuple[dict[str, NDArray[Any]], list[Any]]]:
        """The graph's outputs, a batch at a time, each with one item a frame."""
        ...


def self_test(model: Tested) -> SelfTest:
    """Run the golden pictures and compare every output with what the bundle expects.

    Raises:
        BundleError: the golden data cannot be read.
        BackendError: the run failed.
    """
    batches = [(outputs, len(geometries)) for outputs, geometries in model.raw(golden_pictures(model.bundle))]
    return _held_against(model.bundle, model.backend, batches)


def backend_test(bundle: Bundle, backend: Runs) -> SelfTest:
    """The same for a backend that no model holds yet, such as an engine that was built just now.

    Raises:
        BundleError: the golden data cannot be read.
        BackendError: the run failed.
    """
    pictures, batch = golden_pictures(bundle), batch_on(bundle.manifest, backend)
    batches = []
    for at in range(0, len(pictures), batch.max):
        rows = [prepared(bundle.manifest.preprocess, picture)[0] for picture in pictures[at : at + batch.max]]
        missing = [np.zeros_like(rows[0])] * (batch.min - len(rows))
        batches.append((backend.run(np.concatenate([*rows, *missing])), len(rows)))
    return _held_against(bundle, backend, batches)


def _held_against(
    bundle: Bundle, backend: Runs, batches: list[tuple[dict[str, NDArray[Any]], int]]
) -> SelfTest:
    """The outputs of all golden pictures, each batch with its number of real rows, against the expected."""
    manifest = bundle.manifest
    variant = manifest.variants[backend.variant]
    expected, found = {}, {}
    for stored, values in _arrays(bundle.path.name, variant.golden, bundle.read(variant.golden)).items():
        name, step = sampled_name(stored)
        rows = [outputs[name][:count] for outputs, count in batches if name in outputs]
        expected[name] = values
        found[name] = sample(np.concatenate(rows), step) if rows else np.empty(0)
    if {"boxes", "scores"} <= set(expected):
        found["boxes"], found["scores"] = in_order_of(
            (expected["boxes"], expected["scores"]),
            (found["boxes"], found["scores"]),
            pixels=variant.tolerance.get("boxes", 0.0),
            score=variant.tolerance.get("scores", 0.0),
        )
    checks = [
        compare(name, found[name], wanted, variant.tolerance.get(name, 0.0))
        for name, wanted in expected.items()
    ]
    if manifest.golden.resize is not None:
        checks.append(_resizing(bundle, manifest.golden.resize))
    return SelfTest(
        passed=bool(checks) and all(check.passed for check in checks),
        backend=backend.name,
        variant=backend.variant,
        outputs=tuple(checks),
    )


def sample_name(name: str, step: int) -> str:
    """What an output is called of which every ``step``-th row and column is stored."""
    return name if step == 1 else f"{name}{_SAMPLED}{step}"


def sampled_name(stored: str) -> tuple[str, int]:
    """The inverse of :func:`sample_name`."""
    name, mark, step = stored.rpartition(_SAMPLED)
    return (name, int(step)) if mark and step.isdecimal() and int(step) > 1 else (stored, 1)


def sample(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Every ``step``-th row and column of the last two axes."""
    return values if step == 1 else np.ascontiguousarray(values[..., ::step, ::step])


def as_seen(preprocess: Preprocess, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network sees of a frame before the arithmetic: ``(C, H, W)``, 0..255, in its channel order."""
    plain = msgspec.structs.replace(preprocess, scale=1.0, mean=(0.0,), std=(1.0,), layout="nchw")
    return np.asarray(prepared(plain, frame)[0][0], np.float32)


def _resizing(bundle: Bundle, golden: GoldenResize) -> OutputCheck:
    """This machine's resize and padding against the converter's, in steps of 8-bit pixels."""
    seen = as_seen(bundle.manifest.preprocess, _picture(golden.image, bundle.read(golden.image)))
    wanted = _picture(golden.expected, bundle.read(golden.expected), cv2.IMREAD_UNCHANGED)
    planes = wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1)
    return compare("preprocess", seen, planes, PIXEL_STEPS)


def golden_pictures(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """The bundle's golden pictures, BGR uint8 ``(H, W, 3)``."""
    return [_picture(name, bundle.read(name)) for name in bundle.manifest.golden.images]


def compare(name: str, got: NDArray[Any], wanted: NDArray[Any], tolerance: float) -> OutputCheck:
    """Two arrays; another shape, or a value that is no number, is an infinite difference."""
    if got.shape != wanted.shape:
        return OutputCheck(name=name, max_abs=float("inf"), cosine=0.0, tolerance=tolerance)
    a, b = got.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    difference = float(np.abs(a - b).max()) if a.size else 0.0
    if not np.isfinite(difference):
        difference = float("inf")
    return OutputCheck(name=name, max_abs=difference, cosine=cosine(a, b), tolerance=tolerance)


def cosine(a: Floats, b: Floats) -> float:
    """Cosine similarity of two flat arrays; 1 where both are zero."""
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if length == 0.0:
        return 1.0 if not a.any() and not b.any() else 0.0
    value = float(a @ b) / length
    return value if np.isfinite(value) else 0.0


def _arrays(bundle: str, member: str, data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise BundleError(f"{bundle}: {member} cannot be read: {error}") from error


def _picture(member: str, data: bytes, flags: int = cv2.IMREAD_COLOR) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise BundleError(f"{member} is not a picture")
    return np.asarray(image, np.uint8)
