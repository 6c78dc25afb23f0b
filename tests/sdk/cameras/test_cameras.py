from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesmith.sdk.cameras import open_camera, read_image
from edgesmith.sdk.errors import CameraError


def clip(path: Path, count: int = 12) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for n in range(count):
        writer.write(np.full((48, 64, 3), 20 * n % 256, np.uint8))
    writer.release()
    return path


def picture(path: Path, value: int = 100, shape: tuple[int, ...] = (20, 30, 3)) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, np.full(shape, value, np.uint8))[1].tobytes())
    return path


def test_a_video_gives_every_frame_in_order(tmp_path: Path) -> None:
    camera = open_camera(clip(tmp_path / "a.mp4"))
    frames = list(camera.frames())
    camera.close()
    assert (camera.fps, camera.length, camera.faults) == (10.0, 12, [])
    assert [f.sequence for f in frames] == list(range(12))
    means = [float(f.image.mean()) for f in frames]
    np.testing.assert_allclose(means, [20 * n for n in range(12)], atol=4)
    assert frames[5].source_ns == pytest.approx(5e8, rel=0.01)
    assert all(a.captured_ns < b.captured_ns for a, b in itertools.pairwise(frames))


def test_a_video_that_lost_its_middle_is_a_fault(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 200)
    data = bytearray(path.read_bytes())
    start, end = len(data) // 4, len(data) // 2
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    camera = open_camera(path)
    got = len(list(camera.frames()))
    camera.close()
    assert got < 199
    assert len(camera.faults) == 1
    assert f"{got} of 200 frames" in camera.faults[0]


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_a_file_that_is_no_video_cannot_be_opened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(CameraError, match=r"a\.mp4: not a video"):
        open_camera(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [("nothing.mp4", "no such file, folder or camera"), ("ftp://host/1", "ftp:// are not supported"),
     ("77", "camera 77 cannot be opened"), ("/dev/video77", "/dev/video77 cannot be opened")],
)  # fmt: skip
def test_a_source_that_is_not_there_is_named(source: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(source)


def test_a_folder_goes_on_past_what_it_cannot_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.jpg", 10)
    (tmp_path / "b.png").write_bytes(b"broken")
    picture(tmp_path / "c.PNG", 200)
    (tmp_path / "notes.txt").write_text("left alone")
    camera = open_camera(tmp_path)
    frames = list(camera.frames())
    assert [(f.sequence, f.dropped) for f in frames] == [(0, 0), (2, 1)]
    assert len(camera.faults) == 1
    assert "b.png: not a picture, or a damaged one (6 bytes)" in camera.faults[0]
    assert "going on with the next picture" in caplog.text


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no pictures in this folder"):
        open_camera(tmp_path)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3), (7, 9, 4)], ids=["grey", "colour", "alpha"])
def test_every_picture_comes_as_three_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = read_image(picture(tmp_path / "a.png", 77, shape))
    assert image.shape == (7, 9, 3)
    assert image.dtype == np.uint8
    assert (image == 77).all()


def test_read_image_tells_a_missing_file_from_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="No such file"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    with pytest.raises(CameraError, match=r"not a picture, or a damaged one \(0 bytes\)"):
        read_image(tmp_path / "b.png")
