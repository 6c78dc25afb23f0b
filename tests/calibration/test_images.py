"""The stream of images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesmith.calibration.images import Images, pseudo_images, tensors
from edgesmith.sdk.errors import DataError
from edgesmith.sdk.preprocess import Preprocess, prepared


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((6, 8, 3), value, np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a.png", "sub/c.png")):
        picture(tmp_path / "photos" / name, 10 * number)
    (tmp_path / "photos" / "notes.txt").write_text("not a picture")
    return tmp_path / "photos"


def values(images: Images) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_folder_is_read_in_name_order_with_its_sub_folders(folder: Path) -> None:
    images = Images.open(folder)
    assert images.names == ("a.png", "b.png", "sub/c.png")
    assert values(images) == [10, 0, 20]
    assert images[0].shape == (6, 8, 3)


def test_list_file_keeps_its_order_and_is_relative_to_itself(folder: Path) -> None:
    (folder / "list.txt").write_text("# first\nsub/c.png\n\na.png\n")
    images = Images.open(folder / "list.txt")
    assert images.names == ("sub/c.png", "a.png")
    assert values(images) == [20, 10]


def test_list_file_names_the_entry_that_is_missing(folder: Path) -> None:
    (folder / "list.txt").write_text("a.png\nz.png\n")
    with pytest.raises(DataError, match=r"list\.txt: entry 2: there is no file .*z\.png"):
        Images.open(folder / "list.txt")


def test_glob(folder: Path) -> None:
    assert values(Images.open(folder / "*.png")) == [10, 0]
    assert values(Images.open(folder / "**" / "*.png")) == [10, 0, 20]


def test_archive_is_rgb_and_comes_out_bgr(tmp_path: Path) -> None:
    rgb = np.zeros((3, 4, 5, 3), np.uint8)
    rgb[..., 0] = 200
    rgb[1, ..., 2] = 7
    np.savez(tmp_path / "a.npz", images=rgb)
    images = Images.open(tmp_path / "a.npz")
    assert len(images) == 3
    assert images[1][0, 0].tolist() == [7, 0, 200]
    assert images[1].flags.c_contiguous


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, "no array `images`; it holds x"),
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, r"uint8 \(N, H, W, 3\) RGB, got float32"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"got uint8 \(2, 3, 4, 4\)"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, r"got uint8 \(0, 4, 4, 3\)"),
    ],
)
def test_archives_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said):
        Images.open(tmp_path / "a.npz")


def test_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"a\.npz: not a sound \.npz"):
        Images.open(tmp_path / "a.npz")


def test_pickled_archive_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"a\.npz: not a sound"):
        Images.open(tmp_path / "a.npz")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        Images.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no pictures in this folder"):
        Images.open(tmp_path)


def test_damaged_picture_is_named_when_it_is_read(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    images = Images.open(folder)
    assert int(images[0][0, 0, 0]) == 10
    with pytest.raises(DataError, match=r"b\.png"):
        images[1]


def test_sample_is_drawn_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        images=np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
    )
    images = Images.open(tmp_path / "a.npz")
    first = values(images.sample(10, seed=3))
    assert len(set(first)) == 10
    assert first == sorted(first)
    assert first == values(images.sample(10, seed=3))
    assert first != values(images.sample(10, seed=4))
    assert images.sample(99, seed=0) is images


def test_pick_keeps_names_and_pixels_together(folder: Path) -> None:
    part = Images.open(folder).pick([2, 0])
    assert part.names == ("sub/c.png", "a.png")
    assert values(part) == [20, 10]
    with pytest.raises(IndexError):
        part[2]


def test_tensors_go_through_the_one_preprocess(folder: Path) -> None:
    preprocess = Preprocess(size=(4, 4), fit="stretch")
    images = Images.open(folder)
    made = list(tensors(images, preprocess))
    assert [t.shape for t in made] == [(1, 3, 4, 4)] * 3
    for tensor, image in zip(made, images, strict=True):
        assert np.array_equal(tensor, prepared(preprocess, image)[0])


def test_pseudo_images_are_the_same_for_a_seed_and_not_flat() -> None:
    one, two = pseudo_images(2, 0, (30, 40)), pseudo_images(2, 0, (30, 40))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], pseudo_images(1, 1, (30, 40))[0])
    assert one[0].shape == (30, 40, 3)
    assert one[0].dtype == np.uint8
    assert float(one[0].std()) > 20
