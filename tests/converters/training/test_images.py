"""Training images: where labels come from, and that a sample depends on seed, epoch and number alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.calibration.images import Images
from edgesmith.converters import Recipe
from edgesmith.converters.training.images import (
    UNLABELLED,
    EpochBatches,
    Samples,
    TrainingImages,
    augmented,
    in_order,
    training_images,
)
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.preprocess import Preprocess, prepared

RecipeOf = Callable[..., Recipe]


def picture(path: Path, value: int) -> None:
    assert cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))


def test_labels_come_from_an_archive_a_csv_or_folders(
    recipe_of: RecipeOf, archive: Path, tmp_path: Path
) -> None:
    found = training_images(recipe_of(data={"training": str(archive)}))
    assert found.label(3) == int(np.load(archive)["labels"][3])
    for name in ("0", "1"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        picture(tmp_path / "folders" / name / "a.png", 50)
    found = training_images(recipe_of(data={"training": str(tmp_path / "folders")}))
    assert [found.label(n) for n in range(2)] == [0, 1]
    (tmp_path / "csv").mkdir()
    picture(tmp_path / "csv" / "a.png", 50)
    (tmp_path / "csv" / "labels.csv").write_text("file,class\na.png,4\n")
    assert training_images(recipe_of(data={"training": str(tmp_path / "csv")})).label(0) == 4


def test_pictures_without_labels_will_do(recipe_of: RecipeOf, photos: Path, caplog: Any) -> None:
    found = training_images(recipe_of(data={"calibration": str(photos)}))
    assert found.label(0) == UNLABELLED
    assert "calibration images serve" in caplog.text
    with pytest.raises(RecipeError) as caught:
        training_images(recipe_of(data={}))
    assert caught.value.key == "data.training"


def test_the_share_held_out_is_apart_and_the_same_each_time(archive: Path) -> None:
    data = TrainingImages(Images.open(archive), np.load(archive)["labels"])
    training, held = data.divided(0.25, 7)
    assert (len(training), len(held)) == (72, 24)
    assert not set(training.images.names) & set(held.images.names)
    assert data.divided(0.25, 7)[1].images.names == held.images.names
    assert data.divided(0.25, 8)[1].images.names != held.images.names
    assert held.label(0) == data.label(int(held.images.names[0]))


def test_a_sample_is_a_function_of_its_key(archive: Path) -> None:
    data = TrainingImages(Images.open(archive), None)
    preprocess = Preprocess(size=(16, 16), fit="stretch")
    samples = Samples(data, preprocess, ("flip", "shift", "crop"), 1)
    again = Samples(data, preprocess, ("flip", "shift", "crop"), 1)
    assert np.array_equal(samples[0, 5][0], again[0, 5][0])
    assert not np.array_equal(samples[0, 5][0], samples[1, 5][0])
    # As it is for evaluation: what the robot's own preprocess gives.
    assert np.array_equal(samples[-1, 5][0], prepared(preprocess, data.images[5])[0][0])


def test_augmentation_moves_pixels_and_invents_none() -> None:
    frame = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    seen = set()
    for seed in range(40):
        moved = augmented(frame, frozenset({"shift"}), np.random.default_rng(seed))
        assert moved.shape == frame.shape
        assert set(np.unique(moved)) <= set(np.unique(frame)) | {0}
        seen.add(moved.tobytes())
        cropped = augmented(frame, frozenset({"crop"}), np.random.default_rng(seed))
        assert 0.4 <= cropped.shape[0] * cropped.shape[1] / (16 * 24) <= 1
        flipped = augmented(frame, frozenset({"flip"}), np.random.default_rng(seed))
        assert np.array_equal(flipped, frame) or np.array_equal(flipped, frame[:, ::-1])
    assert len(seen) > 8


def test_processes_share_the_images_of_each_batch() -> None:
    whole = list(EpochBatches(22, 8, epoch=2, seed=1))
    parts = [list(EpochBatches(22, 8, epoch=2, seed=1, rank=rank, world=2)) for rank in range(2)]
    assert len(whole) == len(parts[0]) == 2
    for batch, left, right in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(left + right)
    assert len({number for batch in whole for _, number in batch}) == 16
    assert list(EpochBatches(22, 8, epoch=2, seed=1, begin=1)) == whole[1:]
    assert list(EpochBatches(22, 8, epoch=3, seed=1)) != whole
    assert [len(b) for b in EpochBatches(5, 8, epoch=0, seed=0)] == [5]


def test_the_held_out_images_are_seen_once_by_all_processes_together() -> None:
    seen = [number for rank in range(3) for batch in in_order(10, 2, rank, 3) for _, number in batch]
    assert sorted(seen) == list(range(10))
