"""The self-test's pictures and arrays."""

from __future__ import annotations

import io
import zipfile

import cv2
import numpy as np
import pytest

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import golden
from edgesmith.sdk.manifest import Nms, Preprocess
from edgesmith.sdk.preprocess import prepared
from edgesmith.sdk.selftest import sampled_name


@pytest.mark.parametrize("shape", [(720, 960), (333, 517), (40, 61), (64, 64), (500, 31)])
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=(64, 64)),
        Preprocess(size=(48, 96), anchor="top-left", rounding="floor"),
        Preprocess(size=(64, 64), upscale=False),
        Preprocess(size=(64, 80), fit="stretch"),
        Preprocess(size=(56, 56), fit="resize-crop", interpolation="cubic"),
    ],
)
def test_pictures_go_in_without_being_resized(shape: tuple[int, int], preprocess: Preprocess) -> None:
    made = golden.golden_pictures(pseudo_images(3, 0, shape), preprocess)
    assert len(made) == 2
    for picture in made:
        geometry = prepared(preprocess, picture)[1]
        assert (geometry.scale_x, geometry.scale_y) == (1.0, 1.0)


def test_the_resize_check_is_what_the_network_sees() -> None:
    preprocess = Preprocess(size=(64, 80), color="rgb", mean=(0.5,))
    check = golden.resize_check(pseudo_images(1, 0, (720, 960))[0], preprocess)
    assert check is not None
    picture, seen = check
    assert picture.shape == (480, 640, 3)
    tensor = prepared(preprocess, picture)[0][0]
    np.testing.assert_allclose(seen.transpose(2, 0, 1) / 255 - 0.5, tensor, atol=1e-6)
    assert golden.resize_check(picture, Preprocess(size=None, fit="none")) is None


def test_pictures_of_any_size_share_one() -> None:
    images = [pseudo_images(1, 0, (40, 60))[0], pseudo_images(1, 1, (50, 30))[0]]
    made = golden.golden_pictures(images, Preprocess(size=None, fit="none", color="y"))
    assert [m.shape for m in made] == [(40, 30, 3)] * 2


def test_pictures_that_go_in_as_they_are_keep_their_size() -> None:
    images = pseudo_images(1, 0, (700, 800))
    made = golden.golden_pictures(images, Preprocess(size=(700, 800), fit="none"))
    assert made[0].shape == (700, 800, 3)


def test_png_is_lossless() -> None:
    image = pseudo_images(1, 0, (20, 30))[0]
    read = cv2.imdecode(np.frombuffer(golden.png(image), np.uint8), cv2.IMREAD_COLOR)
    assert read is not None
    assert np.array_equal(read, image)


def test_npz_has_the_arrays_and_no_time() -> None:
    arrays = {"scores": np.arange(6, dtype=np.float32).reshape(2, 3), "boxes": np.array([1.5])}
    one, two = golden.npz(arrays), golden.npz(dict(reversed(arrays.items())))
    assert one == two
    with zipfile.ZipFile(io.BytesIO(one)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(io.BytesIO(one), allow_pickle=False) as file:
        assert sorted(file.files) == ["boxes", "scores"]
        assert np.array_equal(file["scores"], arrays["scores"])


@pytest.mark.parametrize(
    ("nms", "expected"),
    [
        (None, {"boxes": 0.04, "scores": 0.01, "count": 0.01}),
        (Nms(), {"boxes": 0.5, "scores": 2e-3, "count": 2e-3}),
    ],
)
def test_tolerances(nms: Nms | None, expected: dict[str, float]) -> None:
    values = {"boxes": np.array([1.0, 5.0]), "scores": np.array([0.0, 1.0]), "count": np.array([3.0])}
    assert golden.tolerances(values, nms) == pytest.approx(expected)


def test_tolerances_with_nms_in_the_graph() -> None:
    values = {"scores": np.zeros(1), "count": np.zeros(1)}
    assert golden.tolerances(values, Nms(where="graph")) == {"scores": 2e-3, "count": 1.0}


def test_large_maps_are_stored_in_part() -> None:
    values = {
        "logits": np.random.default_rng(0).random((2, 21, 130, 170), np.float32),
        "small": np.ones((2, 2, 50, 60), np.float32), "flat": np.ones((2, 10**6), np.float32),
    }  # fmt: skip
    stored = golden.sampled(values)
    assert set(stored) == {"logits@2", "small", "flat"}
    assert stored["logits@2"].size <= golden.MOST_VALUES < values["logits"].size
    np.testing.assert_array_equal(stored["logits@2"], values["logits"][..., ::2, ::2])
    assert sampled_name("logits@2") == ("logits", 2)
    assert [sampled_name(name) for name in ("a@1", "a@b", "a")] == [("a@1", 1), ("a@b", 1), ("a", 1)]


def test_pictures_of_any_size_are_small() -> None:
    made = golden.golden_pictures(pseudo_images(2, 0, (700, 900)), Preprocess(size=None, fit="none"))
    assert max(made[0].shape) == golden.ANY_SIZE
