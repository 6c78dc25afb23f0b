from __future__ import annotations

import builtins
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk import Classifications, Detections, Frame, Result
from edgesmith.sdk.cameras import open_camera, read_image
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.sinks.jsonl import JsonLines
from edgesmith.sdk.sinks.video import AnnotatedPictures, AnnotatedVideo

FOUND = Detections(
    np.array([[5, 5, 30, 40]], np.float32),
    np.array([0.75], np.float32),
    np.array([1], np.int32),
    ("cat", "dog"),
)


def result(
    number: int = 0, *, size: tuple[int, int] = (60, 81), source: str = "clip.mp4", answer: Any = FOUND
) -> Result:
    image = np.full((*size, 3), 10 * number, np.uint8)
    return Result(Frame(image, number, 1000 + number, None, source), answer)


def test_json_lines_hold_what_the_face_says(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "a.jsonl")
    sink.write(result(0))
    classes = Classifications(np.arange(9, dtype=np.int32), np.full(9, 0.1, np.float32))
    sink.write(result(1, answer=classes))
    lines = [
        json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()
    ]  # before it is closed
    sink.close()
    assert lines[0] == {
        "source": "clip.mp4",
        "frame": 0,
        "captured_ns": 1000,
        "detections": [{"box": [5.0, 5.0, 30.0, 40.0], "score": 0.75, "label": 1, "name": "dog"}],
    }
    assert len(lines[1]["classes"]) == 5


@pytest.mark.parametrize("make", [JsonLines, AnnotatedVideo], ids=["jsonl", "video"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    with pytest.raises(SinkError, match=r"missing/a\.mp4"):
        make(tmp_path / "missing" / "a.mp4")


def frames_of(path: Path) -> list[Any]:
    camera = open_camera(path)
    frames = [f.image for f in camera.frames()]
    camera.close()
    assert camera.faults == []
    return frames


def test_a_video_is_h264_and_appears_when_it_is_finished(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    sink = AnnotatedVideo(path, fps=12.5)
    for n in range(20):
        sink.write(result(n))
    assert not path.exists()
    sink.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert sink.notes == []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
    frames = frames_of(path)
    assert len(frames) == 20
    assert frames[0].shape == (60, 82, 3)  # the odd width was padded
    assert abs(float(frames[10][55, 60].mean()) - 100) < 6
    assert frames[10][5:40, 4:7].std() > 20  # a box was drawn


def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else real(name))


def test_without_pyav_the_video_is_mpeg4_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pyav(monkeypatch)
    sink = AnnotatedVideo(tmp_path / "a.mp4")
    for n in range(5):
        sink.write(result(n))
    sink.close()
    assert "edgesmith[video]" in sink.notes[0]
    assert len(frames_of(tmp_path / "a.mp4")) == 5


def test_frames_of_another_size_are_fitted_in(tmp_path: Path) -> None:
    sink = AnnotatedVideo(tmp_path / "a.mp4")
    sink.write(result(20, size=(60, 80)))
    sink.write(result(20, size=(200, 100), answer=Detections.empty()))
    sink.close()
    first, second = frames_of(tmp_path / "a.mp4")
    assert first.shape == second.shape
    assert second[30, 5].max() < 20  # black beside the tall picture
    assert abs(float(second[30, 40].mean()) - 200) < 8


def times_of(path: Path) -> list[float]:
    """When each frame is shown, in seconds."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def captured(times: list[float], source: str = "") -> list[Result]:
    made = []
    for n, t in enumerate(times):
        one = result(n)
        made.append(replace(one, camera=source, frame=replace(one.frame, captured_ns=round(t * 1e9))))
    return made


def test_a_live_cameras_video_plays_as_fast_as_it_was(tmp_path: Path) -> None:
    grabbed = [100.0, 100.033, 100.2, 100.2, 100.9, 102.4]
    sink = AnnotatedVideo(tmp_path / "a.mp4", fps=30, timing="captured")
    for each in captured(grabbed):
        sink.write(each)
    sink.close()
    shown = times_of(tmp_path / "a.mp4")
    assert shown == pytest.approx([t - 100 for t in grabbed], abs=1e-4)
    assert shown == sorted(set(shown))


def test_without_pyav_late_frames_are_shown_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pyav(monkeypatch)
    sink = AnnotatedVideo(tmp_path / "a.mp4", fps=10, timing="captured")
    for each in captured([0.0, 0.1, 1.0, 1.1]):
        sink.write(each)
    sink.close()
    levels = [round(float(f[55, 60].mean()) / 10) for f in frames_of(tmp_path / "a.mp4")]
    assert levels == [0, *[1] * 9, 2, 3]


@pytest.mark.parametrize("make", [AnnotatedVideo, AnnotatedPictures])
def test_two_cameras_never_go_into_one_recording(tmp_path: Path, make: Any) -> None:
    sink = make(tmp_path / "a.mp4")
    sink.write(captured([0.0], "front")[0])
    with pytest.raises(SinkError, match=r"front and rear do not go into one: put \{camera\} into its name"):
        sink.write(captured([0.0], "rear")[0])
    sink.close()


def test_each_camera_has_its_own_recording(tmp_path: Path) -> None:
    video, pictures = AnnotatedVideo(tmp_path / "{camera}.mp4"), AnnotatedPictures(tmp_path / "{camera}")
    for camera in ("front", "10.0.0.7/rear"):
        for each in captured([0.0, 0.1], camera):
            video.write(each)
            pictures.write(each)
    video.close()
    pictures.close()
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert found == [
        "camera_10_0_0_7_rear.mp4",
        "camera_10_0_0_7_rear/frame-000000.jpg",
        "camera_10_0_0_7_rear/frame-000001.jpg",
        "front.mp4",
        "front/frame-000000.jpg",
        "front/frame-000001.jpg",
    ]


def test_an_ending_that_no_encoder_knows_is_one_clear_error(tmp_path: Path) -> None:
    sink = AnnotatedVideo(tmp_path / "a.mp7")
    with pytest.raises(SinkError, match=r"a\.mp7: cannot be written: "):
        sink.write(result())
    sink.close()
    with pytest.raises(ConfigError, match="fps 0"):
        AnnotatedVideo(tmp_path / "a.mp4", fps=0)


def test_a_video_without_frames_leaves_nothing(tmp_path: Path) -> None:
    AnnotatedVideo(tmp_path / "a.mp4").close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonLines(tmp_path / "a.jsonl")
    sink.close()
    sink._file = builtins.open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed by the sink
    with pytest.raises(SinkError, match="No space left on device"):
        sink.write(result())
    sink.close()


def test_pictures_keep_their_names(tmp_path: Path) -> None:
    sink = AnnotatedPictures(tmp_path / "out")
    sink.write(result(0, source="photos/one.png"))
    sink.write(result(1, source="clip.mp4"))
    sink.close()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["frame-000001.jpg", "one.png"]
    assert read_image(tmp_path / "out" / "one.png")[5, 10].any()  # the box on the black picture


def test_one_picture_goes_into_one_file(tmp_path: Path) -> None:
    AnnotatedPictures(tmp_path / "a.png").write(result())
    assert (tmp_path / "a.png").stat().st_size > 100
