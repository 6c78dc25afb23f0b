from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.cameras import CameraState, open_camera
from edgesmith.sdk.cameras.opencv import VideoFile
from edgesmith.sdk.cameras.testpattern import pattern_image, read_number
from edgesmith.sdk.cameras.v4l2 import offers
from edgesmith.sdk.errors import CameraFormatError, CameraLost, ConfigError

Until = Callable[[Callable[[], bool], float], bool]


def clip(path: Path, count: int = 20, fps: float = 25.0, size: tuple[int, int] = (160, 120)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for number in range(count):
        writer.write(pattern_image(number, size))
    writer.release()
    return path


def test_a_file_waits_to_be_read_and_says_how_it_is(tmp_path: Path) -> None:
    states = []
    camera = open_camera(clip(tmp_path / "a.mp4"), on_state=lambda s: states.append(s.state))
    assert (camera.live, camera.state) == (False, CameraState.OPENING)
    frames = []
    for frame in camera.frames():
        time.sleep(0.002)
        frames.append(frame)
    assert [read_number(f.image) for f in frames] == list(range(20))
    status = camera.status()
    assert (status.frames, status.delivered, status.dropped, status.reason) == (20, 20, 0, "end")
    assert states == [CameraState.STREAMING, CameraState.ENDED]


def test_a_file_in_real_time_is_a_live_camera(tmp_path: Path) -> None:
    camera = open_camera(clip(tmp_path / "a.mp4"), realtime=True)
    assert (camera.live, camera.fps, camera.length) == (True, 25.0, 20)
    started = time.monotonic()
    frames = list(camera.frames())
    assert 0.6 < time.monotonic() - started < 3
    assert [read_number(f.image) for f in frames] == [f.sequence for f in frames]
    assert camera.status().frames == 20
    assert (camera.state, camera.faults) == (CameraState.ENDED, [])


@pytest.mark.parametrize("realtime", [False, True])
def test_a_loop_begins_again_and_numbers_go_on(tmp_path: Path, realtime: bool) -> None:
    camera = open_camera(clip(tmp_path / "a.mp4", 5, 100.0), loop=True, realtime=realtime)
    assert camera.length is None
    frames = []
    for frame in camera.frames():
        frames.append(frame)
        if frame.sequence >= 17:
            break
    camera.close()
    assert [read_number(f.image) for f in frames] == [f.sequence % 5 for f in frames]
    assert camera.faults == []


@pytest.mark.parametrize("realtime", [False, True])
def test_closing_from_another_thread_ends_the_reader(tmp_path: Path, realtime: bool) -> None:
    camera = open_camera(clip(tmp_path / "a.mp4", 5, 25.0), loop=True, realtime=realtime)
    reader = threading.Thread(target=lambda: [None for _ in camera.frames()])
    reader.start()
    time.sleep(0.1)
    started = time.monotonic()
    camera.close()
    reader.join(1)
    assert not reader.is_alive()
    assert time.monotonic() - started < 1
    assert (camera.state, camera.status().reason) == (CameraState.ENDED, "closed")


def test_a_change_of_size_within_a_file_loses_no_frame(tmp_path: Path) -> None:
    # What a camera writes that is set to another size; OpenCV keeps to the first.
    path = tmp_path / "both.mjpeg"
    sizes = ((160, 120), (320, 240))
    path.write_bytes(
        b"".join(cv2.imencode(".jpg", pattern_image(n, s))[1].tobytes() for s in sizes for n in range(5))
    )
    frames = list(open_camera(path).frames())
    assert [read_number(f.image) for f in frames] == [0, 1, 2, 3, 4] * 2
    assert {f.image.shape for f in frames} == {(120, 160, 3)}


def test_another_size_than_asked_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    with pytest.raises(CameraFormatError, match=r"is 160x120, and 320x240 was asked for") as caught:
        open_camera(path, size=(320, 240))
    assert caught.value.offers == ("160x120",)
    with pytest.raises(CameraFormatError, match="gives 160x120 pictures, and 320x240"):
        open_camera(path, size=(320, 240), realtime=True)
    with pytest.raises(ConfigError, match="fps cannot be asked"):
        open_camera(path, fps=30)


def test_a_damaged_file_in_real_time_is_a_fault(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 100, 200.0)
    data = bytearray(path.read_bytes())
    start, end = len(data) // 4, len(data) // 2
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    camera = open_camera(path, realtime=True)
    list(camera.frames())
    assert "of 100 frames could be decoded" in camera.faults[0]


class Device:
    """A driver that takes 640x480 and 1280x720 at 15 or 30, whatever it is asked; answers as OpenCV does."""

    gone_after = 10**9

    def __init__(self, device: int | str) -> None:
        self.values: dict[int, float] = {
            cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FPS: 30,
            cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV")),
        }  # fmt: skip
        self.number = 0
        self.released = False

    def isOpened(self) -> bool:
        return True

    def set(self, prop: int, value: float) -> bool:
        allowed: dict[int, tuple[float, ...]] = {
            cv2.CAP_PROP_FRAME_WIDTH: (640, 1280), cv2.CAP_PROP_FRAME_HEIGHT: (480, 720),
            cv2.CAP_PROP_FPS: (15, 30),
            cv2.CAP_PROP_FOURCC: tuple(float(cv2.VideoWriter.fourcc(*c)) for c in ("YUYV", "MJPG")),
        }  # fmt: skip
        self.values[prop] = min(allowed[prop], key=lambda v: abs(v - value))
        return True

    def get(self, prop: int) -> float:
        return self.values[prop]

    def read(self) -> tuple[bool, np.ndarray[Any, np.dtype[np.uint8]] | None]:
        time.sleep(0.005)
        self.number += 1
        if self.number > self.gone_after:
            return False, None
        size = int(self.values[cv2.CAP_PROP_FRAME_WIDTH]), int(self.values[cv2.CAP_PROP_FRAME_HEIGHT])
        return True, pattern_image(self.number, size)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[Device]:
    fresh = type("Fresh", (Device,), {})
    monkeypatch.setattr(cv2, "VideoCapture", fresh)
    return fresh


def test_a_device_gives_what_was_asked_for(device: type[Device]) -> None:
    camera = open_camera(0, size=(1280, 720), fps=15, fourcc="MJPG")
    frame = next(camera.frames())
    camera.close()
    assert frame.image.shape == (720, 1280, 3)
    assert (camera.name, frame.source_id, camera.fps) == ("camera 0", "camera 0", 15)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"size": (800, 600)}, r"does not give 800x600 \(it took 640x480\)"),
        ({"fps": 60}, r"60 frames/s \(it took 30\)"),
        ({"fourcc": "H264"}, r"H264 \(it took (YUYV|MJPG)\)"),
    ],
)
def test_a_wish_that_the_driver_turned_into_something_else_is_refused(
    device: type[Device], monkeypatch: pytest.MonkeyPatch, wish: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(
        "edgesmith.sdk.cameras.opencv.offers",
        lambda device: ("YUYV 640x480 at 30, 15", "MJPG 1280x720 at 30"),
    )
    with pytest.raises(CameraFormatError, match=message) as caught:
        open_camera("/dev/video0", **wish)
    assert "it offers YUYV 640x480 at 30, 15, MJPG 1280x720 at 30" in str(caught.value)
    assert caught.value.offers == ("YUYV 640x480 at 30, 15", "MJPG 1280x720 at 30")


def test_a_device_that_is_unplugged_is_lost(device: type[Device]) -> None:
    device.gone_after = 5
    camera = open_camera(0, reconnect=False)
    with pytest.raises(CameraLost, match="is it still plugged in"):
        list(camera.frames())


def test_a_device_that_comes_back_goes_on(device: type[Device], until: Until) -> None:
    device.gone_after = 5
    camera = open_camera(0, backoff={"first_s": 0.02, "longest_s": 0.05})
    assert until(lambda: camera.status().reconnects >= 2, 5)
    camera.close()


def test_a_device_that_hangs_is_abandoned(device: type[Device], monkeypatch: pytest.MonkeyPatch) -> None:
    camera = open_camera(0)

    def hang(self: Device) -> tuple[bool, None]:
        time.sleep(2)
        return False, None

    monkeypatch.setattr(device, "read", hang)
    time.sleep(0.1)
    started = time.monotonic()
    camera.close()
    assert time.monotonic() - started < 1
    assert camera.status().abandoned == 1


FORMATS = {
    "MJPG": [((1280, 720), [30, 15]), ((640, 480), [30])],
    "YUYV": [((640, 480), [15])],
}


def answer(file: int, request: int, buffer: bytearray) -> int:
    """The kernel's side of the three enumeration calls, for FORMATS."""
    number = request & 0xFF
    assert request >> 16 & 0x3FFF == len(buffer)
    (index,) = struct.unpack_from("=I", buffer, 0)
    try:
        if number == 2:
            code = list(FORMATS)[index].encode()
            struct.pack_into("=I", buffer, 44, int.from_bytes(code, "little"))
            return 0
        (code_number,) = struct.unpack_from("=I", buffer, 4)
        sizes = FORMATS[code_number.to_bytes(4, "little").decode()]
        if number == 74:
            struct.pack_into("=3I", buffer, 8, 1, *sizes[index][0])
        else:
            wanted = struct.unpack_from("=2I", buffer, 8)
            rates = next(rates for size, rates in sizes if size == wanted)
            struct.pack_into("=3I", buffer, 16, 1, 1, rates[index])
    except IndexError:
        raise OSError(22, "Invalid argument") from None
    return 0


def test_what_a_device_offers_is_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", answer)
    monkeypatch.setattr(os, "open", lambda path, flags: 99 if path == "/dev/video3" else 1 / 0)
    monkeypatch.setattr(os, "close", lambda file: None)
    assert offers(3) == ("MJPG 1280x720 at 30, 15", "MJPG 640x480 at 30", "YUYV 640x480 at 15")


def test_a_device_that_cannot_be_asked_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "no-device").touch()
    assert offers(str(tmp_path / "no-device")) == ()
    assert offers("/dev/video77") == ()


def test_a_closed_file_gives_nothing(tmp_path: Path) -> None:
    camera = VideoFile(clip(tmp_path / "a.mp4"))
    camera.close()
    assert list(camera.frames()) == []
    assert camera.status().reason == "closed"
