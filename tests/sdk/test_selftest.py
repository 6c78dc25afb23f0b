from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edgesmith.sdk import Bundle, Detector, self_test
from edgesmith.sdk.bundle import write_bundle
from edgesmith.sdk.errors import BundleError
from edgesmith.sdk.manifest import GoldenResize
from edgesmith.sdk.preprocess import Preprocess
from edgesmith.sdk.selftest import as_seen, compare, cosine

MakeBundle = Callable[..., Path]


def test_a_sound_bundle_passes(make_bundle: MakeBundle) -> None:
    test = self_test(Detector.load(make_bundle(), backend="cpu"))
    assert test.passed
    assert [check.name for check in test.outputs] == ["boxes", "scores"]
    assert all(check.cosine > 0.9999 for check in test.outputs)


def test_another_preprocess_is_caught(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    swapped = Preprocess(size=(32, 32), color="bgr")
    write_bundle(path, msgspec.structs.replace(bundle.manifest, preprocess=swapped), members)
    test = self_test(Detector.load(path, backend="cpu"))
    assert not test.passed
    assert {check.name: check.passed for check in test.outputs} == {"boxes": True, "scores": False}


@pytest.mark.parametrize(("difference", "passes"), [(1, True), (2, False)])
def test_a_resize_of_another_kind_is_caught(make_bundle: MakeBundle, difference: int, passes: bool) -> None:
    path = make_bundle()
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    picture = np.random.default_rng(0).integers(10, 200, (50, 70, 3), np.uint8)
    seen = as_seen(bundle.manifest.preprocess, picture).transpose(1, 2, 0).astype(np.uint8)
    seen[10, 12, 1] += difference
    for name, image in (("golden/resize.png", picture), ("golden/resized.png", seen)):
        members[name] = cv2.imencode(".png", image)[1].tobytes()
    resize = GoldenResize(image="golden/resize.png", expected="golden/resized.png")
    golden = msgspec.structs.replace(bundle.manifest.golden, resize=resize)
    write_bundle(path, msgspec.structs.replace(bundle.manifest, golden=golden), members)
    test = self_test(Detector.load(path, backend="cpu"))
    assert test.passed is passes
    assert test.outputs[-1].name == "preprocess"
    assert test.outputs[-1].max_abs == pytest.approx(difference)


def test_golden_data_that_is_no_array_is_named(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    write_bundle(path, bundle.manifest, {**members, "golden/float.npz": b"nonsense"})
    with pytest.raises(BundleError, match=r"golden/float\.npz"):
        self_test(Detector.load(path, backend="cpu"))
    write_bundle(path, bundle.manifest, {**members, "golden/input-0.png": b"nonsense"})
    with pytest.raises(BundleError, match=r"golden/input-0\.png is not a picture"):
        self_test(Detector.load(path, backend="cpu"))


@pytest.mark.parametrize(
    ("got", "passes"),
    [([1.0, 2.0], True), ([1.0, 2.09], True), ([1.0, 2.2], False), ([1.0, np.nan], False), ([1.0], False)],
)
def test_compare(got: list[float], passes: bool) -> None:
    assert compare("x", np.array(got), np.array([1.0, 2.0]), 0.1).passed is passes


def test_cosine() -> None:
    a = np.array([1.0, 0.0])
    assert cosine(a, 2 * a) == 1.0
    assert cosine(a, np.array([0.0, 3.0])) == 0.0
    assert cosine(0 * a, 0 * a) == 1.0
    assert cosine(a, 0 * a) == 0.0
