"""Images that cover a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.calibration.images import Images, pseudo_images
from edgesmith.calibration.pick import farthest, features, pick, write_list
from edgesmith.sdk.errors import DataError


def save(path: Path, picture: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty near-copies of one scene, and one picture each that differs in a single way."""
    root = tmp_path / "recordings"
    (scene,) = pseudo_images(1, 1, (90, 120))
    random = np.random.default_rng(0)
    for number in range(40):
        noise = random.integers(-2, 3, scene.shape)
        save(root / f"{number:02d}.png", np.clip(scene.astype(int) + noise, 0, 255).astype(np.uint8))
    save(root / "dark.png", (scene * 0.15).astype(np.uint8))
    save(root / "bright.png", (255 - (255 - scene) * 0.2).astype(np.uint8))
    save(root / "near.png", cv2.resize(scene[30:50, 40:66], (120, 90), interpolation=cv2.INTER_CUBIC))
    save(
        root / "far" / "far.png",
        np.tile(cv2.resize(scene, (30, 22), interpolation=cv2.INTER_AREA), (4, 4, 1)),
    )
    save(root / "other.png", pseudo_images(1, 77, (90, 120))[0])
    save(root / "wide.png", cv2.resize(scene, (480, 90)))
    return root


KINDS = {"dark.png", "bright.png", "near.png", "far/far.png", "other.png", "wide.png"}


def test_what_differs_is_chosen_before_what_repeats(folder: Path) -> None:
    picked = pick(Images.open(folder), 7)
    assert set(picked.names) >= KINDS
    assert len(picked.names) == 7
    assert [Images.open(folder).names[n] for n in picked.numbers] == list(picked.names)
    assert list(picked.numbers) == sorted(picked.numbers)
    seeded = Images.open(folder).sample(7, seed=0)
    assert len(KINDS & set(seeded.names)) <= 3


def test_the_choice_is_the_same_each_time_and_covers_more_with_more(folder: Path) -> None:
    images = Images.open(folder)
    assert pick(images, 9) == pick(images, 9)
    radii = [pick(images, count).radius for count in (1, 3, 7, 20, 46)]
    assert radii == sorted(radii, reverse=True)
    assert radii[2] < 0.5 * radii[0]
    assert radii[-1] == 0.0
    assert pick(images, 999).names == images.names


def test_unreadable_pictures_are_left_out_by_name(folder: Path) -> None:
    (folder / "00.png").write_bytes(b"no picture")
    seen: list[tuple[int, int]] = []
    picked = pick(Images.open(folder), 46, progress=lambda done, total: seen.append((done, total)))
    assert len(picked.names) == 45
    assert "00.png" not in picked.names
    (line,) = picked.left_out
    assert line.startswith("00.png: ")
    assert seen[-1] == (46, 46)


def test_nothing_to_pick_from(tmp_path: Path, folder: Path) -> None:
    save(tmp_path / "bad" / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of its 1 pictures can be read"):
        pick(Images.open(tmp_path / "bad"), 3)
    with pytest.raises(DataError, match="0 images cannot be picked"):
        pick(Images.open(folder), 0)


def test_greedy_takes_the_farthest_and_covers_within_twice_the_best() -> None:
    line = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]])
    chosen, radius = farthest(line, 3)
    assert chosen == [3, 5, 0]  # nearest to the mean of 9, then the ends
    assert radius == 2.0
    again, rest = farthest(np.zeros((4, 2)), 3)
    assert again == [0, 1, 2]
    assert rest == 0.0


def test_each_group_of_features_answers_to_what_it_is_for() -> None:
    (scene,) = pseudo_images(1, 3, (90, 120))
    before = features(scene)

    def moved(picture: np.ndarray[Any, Any]) -> list[float]:
        return [float(np.abs(a - b).max()) for a, b in zip(features(picture), before, strict=True)]

    light, *_ = moved((scene * 0.3).astype(np.uint8))
    assert light > 0.2
    light, colour, *_ = moved(np.ascontiguousarray(scene[..., ::-1]))
    assert colour > 0.02
    light, colour, scale, _ = moved(cv2.resize(scene, (480, 360)))
    assert scale == pytest.approx(2, abs=0.1)  # four times the pixels a side
    light, colour, scale, content = moved(np.ascontiguousarray(scene[:, ::-1]))
    assert (light, colour, scale) == pytest.approx((0, 0, 0), abs=0.01)
    assert content > 0.5


def test_a_flat_picture_has_finite_features() -> None:
    for value in (0, 255):
        assert all(np.isfinite(group).all() for group in features(np.full((1, 7, 3), value, np.uint8)))


def test_the_list_is_one_that_calibration_reads(folder: Path, tmp_path: Path) -> None:
    save(folder / "#1.png", np.full((4, 4, 3), 9, np.uint8))
    names = ("#1.png", "dark.png", "far/far.png")
    for path in (tmp_path / "lists" / "list.txt", folder / "list.txt"):
        path.parent.mkdir(exist_ok=True)
        write_list(path, folder, names)
        images = Images.open(path)
        assert len(images) == 3
        assert int(images[0][0, 0, 0]) == 9
        assert str(tmp_path) not in path.read_text()
    with pytest.raises(DataError, match="cannot hold this name"):
        write_list(tmp_path / "list.txt", folder, ["two\nlines.png"])
    assert not (tmp_path / "list.txt").exists()
