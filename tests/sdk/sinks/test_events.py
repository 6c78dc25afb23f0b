from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk import Classifications, Detections, Result
from edgesmith.sdk.cameras import read_image
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.sinks.events import EventPictures

MakeResult = Callable[..., Result]
NAMES = ("cat", "dog", "cow")


def seen(*found: tuple[int, float]) -> Detections:
    boxes = np.tile(np.array([5, 5, 30, 40], np.float32), (len(found), 1))
    scores = np.array([score for _, score in found], np.float32)
    return Detections(boxes, scores, np.array([label for label, _ in found], np.int32), NAMES)


@pytest.fixture
def play(tmp_path: Path, make_result: MakeResult) -> Callable[..., list[int]]:
    """Plays (second, detections) and gives the frame numbers of which a picture was kept."""

    def run(script: Iterable[tuple[float, Any]], *, source: str = "front", **options: Any) -> list[int]:
        sink = EventPictures(tmp_path / "events", **options)
        for number, (second, answer) in enumerate(script):
            sink.write(make_result(number, answer=answer, source=source, captured_ns=int(second * 1e9)))
        sink.close()
        return sorted(int(p.stem.rpartition("-")[2]) for p in (tmp_path / "events").glob("*.jpg"))

    return run


def test_an_appearance_is_one_picture(play: Any) -> None:
    script = [(0, seen()), (1, seen((1, 0.9))), (1.1, seen((1, 0.9))), (30, seen((1, 0.9)))]
    assert play(script) == [1, 3]


def test_a_flickering_score_is_one_event(play: Any) -> None:
    script = [(n / 10, seen((1, 0.9 if n % 3 else 0.4))) for n in range(300)]
    assert play(script, cooldown_s=0) == [1]


def test_after_a_picture_the_class_rests(play: Any) -> None:
    script = [(0, seen((1, 0.9))), (5, seen((1, 0.9))), (9, seen((1, 0.9))), (12, seen((1, 0.9)))]
    assert play(script, absent_s=2, cooldown_s=10) == [0, 3]


def test_classes_are_told_apart_and_only_those_asked_for_count(play: Any) -> None:
    script = [(0, seen((0, 0.9))), (0.1, seen((1, 0.9))), (0.2, seen((2, 0.9), (0, 0.9)))]
    assert play(script, classes=["dog", "cow"]) == [1, 2]


def test_cameras_are_told_apart(tmp_path: Path, make_result: MakeResult) -> None:
    sink = EventPictures(tmp_path)
    for source in ("front", "rear", "front"):
        sink.write(make_result(1, source=source))
    assert sink.saved == 2


def test_a_classifiers_event_is_its_best_class(
    tmp_path: Path, make_result: MakeResult, classes: Classifications
) -> None:
    sink = EventPictures(tmp_path)
    sink.write(make_result(1, answer=classes))
    (picture,) = tmp_path.glob("*.jpg")
    assert "-red-" in picture.name


def test_a_picture_shows_the_box_and_its_line_tells_what(tmp_path: Path, make_result: MakeResult) -> None:
    sink = EventPictures(tmp_path)
    sink.write(make_result(4))
    (picture,) = tmp_path.glob("*.jpg")
    assert picture.name[8] == "T"
    assert picture.stem.endswith("Z-front-dog-4")
    image = read_image(picture)
    assert image.shape == (60, 80, 3)
    assert image[10:40, 4:7].std() > 20
    line = json.loads(picture.with_suffix(".json").read_text())
    assert line["detections"][0]["name"] == "dog"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".jpg", ".json"]


def test_the_folder_stays_within_its_size_and_strangers_files_stay(
    tmp_path: Path, make_result: MakeResult
) -> None:
    (tmp_path / "holiday.jpg").write_bytes(bytes(5000))
    options: dict[str, Any] = {"cooldown_s": 0, "absent_s": 0, "max_bytes": 12_000}
    for begin in (0, 40):  # the second time over what the first left
        sink = EventPictures(tmp_path, **options)
        for n in range(begin, begin + 40):
            sink.write(make_result(n, captured_ns=n * 10**9))
            ours = [p for p in tmp_path.iterdir() if p.name != "holiday.jpg"]
            assert sum(p.stat().st_size for p in ours) <= 12_000
    assert (tmp_path / "holiday.jpg").stat().st_size == 5000
    kept = sorted(int(p.stem.rpartition("-")[2]) for p in ours if p.suffix == ".jpg")
    assert kept == list(range(80 - len(kept), 80))
    assert len(kept) > 2


def test_one_event_larger_than_the_folder_is_an_error(tmp_path: Path, make_result: MakeResult) -> None:
    sink = EventPictures(tmp_path, max_bytes=100)
    with pytest.raises(SinkError, match="max_bytes is 100: set it higher"):
        sink.write(make_result())


def test_a_class_the_model_does_not_have_is_told(tmp_path: Path, make_result: MakeResult) -> None:
    sink = EventPictures(tmp_path, classes=["dog", "dgo"])
    sink.write(make_result())
    sink.write(make_result())
    assert sink.notes == ["events: the model has no class dgo"]


def test_a_folder_that_went_away_is_one_clear_error(tmp_path: Path, make_result: MakeResult) -> None:
    sink = EventPictures(tmp_path / "events")
    (tmp_path / "events").rmdir()
    with pytest.raises(SinkError, match=r"events/.*jpg: cannot be written: No such file"):
        sink.write(make_result())


def test_what_is_still_in_view_when_the_folder_comes_back_is_kept(
    tmp_path: Path, make_result: MakeResult
) -> None:
    folder, away = tmp_path / "events", tmp_path / "away"
    sink = EventPictures(folder)
    sink.write(make_result(0, answer=seen((0, 0.9))))
    folder.rename(away)
    for number in (1, 2):  # a dog comes: not seen before there is a picture of it
        with pytest.raises(SinkError, match="cannot be written: No such file"):
            sink.write(make_result(number, answer=seen((1, 0.9))))
    with pytest.raises(SinkError, match="cannot be written: No such file"):
        sink.reopen()
    assert not folder.exists()  # not made anew on the disk below
    away.rename(folder)
    sink.reopen()
    sink.write(make_result(3, answer=seen((1, 0.9))))
    assert sorted(p.stem.rpartition("-")[2] for p in folder.glob("*.jpg")) == ["0", "3"]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"quality": 0}, {"min_score": 1.5}])
def test_figures_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        EventPictures(tmp_path, **options)
