from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesmith.sdk.cameras import CameraState, open_camera
from edgesmith.sdk.cameras.gstreamer import gstreamer
from edgesmith.sdk.cameras.testpattern import pattern_image, read_number
from edgesmith.sdk.errors import CameraError, CameraLost, MissingExtraError

pytestmark = pytest.mark.usefixtures("gst")


@pytest.fixture(scope="module")
def gst(component: Callable[[str], None]) -> None:
    component("gstreamer")


@pytest.mark.parametrize("width", [640, 641, 642, 643])
def test_padded_rows_are_read_as_they_are(width: int) -> None:
    source = f"gst:videotestsrc pattern=red is-live=true ! video/x-raw,width={width},height=50,framerate=30/1"
    camera = open_camera(source)
    frame = next(camera.frames())
    camera.close()
    assert frame.image.shape == (50, width, 3)
    assert frame.image.flags.c_contiguous
    assert frame.image.flags.writeable
    # Every pixel, the last of a row as the first: a wrong stride would shear the picture.
    np.testing.assert_allclose(frame.image.reshape(-1, 3).astype(int), [[0, 0, 255]] * (50 * width), atol=3)


def test_a_live_pipeline_gives_its_rate_timestamps_and_time_of_grab() -> None:
    camera = open_camera("gst:videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=50/1")
    frames = []
    for frame in camera.frames():
        assert time.monotonic_ns() - frame.captured_ns < 500_000_000
        frames.append(frame)
        if len(frames) == 10:
            break
    camera.close()
    assert camera.fps == 50
    for one, other in itertools.pairwise(frames):
        assert one.captured_ns < other.captured_ns
        assert one.source_ns is not None
        assert other.source_ns is not None
        steps = (other.source_ns - one.source_ns) / 20e6
        assert steps == pytest.approx(round(steps), abs=0.1)


def test_a_pipeline_over_a_file_plays_in_real_time_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (320, 240))
    for number in range(20):
        writer.write(pattern_image(number, (320, 240)))
    writer.release()
    started = time.monotonic()
    camera = open_camera(f"gst:filesrc location={path} ! avidemux ! jpegdec")
    numbers = [read_number(frame.image) for frame in camera.frames()]
    assert time.monotonic() - started > 0.8
    assert numbers[-1] == 19
    assert numbers == sorted(n for n in numbers if n is not None)
    assert (camera.state, camera.status().reason) == (CameraState.ENDED, "end")


def test_a_live_pipeline_that_ends_was_lost() -> None:
    source = "gst:videotestsrc is-live=true num-buffers=10 ! video/x-raw,framerate=50/1"
    camera = open_camera(source, reconnect=False)
    with pytest.raises(CameraLost, match="its sender closed it"):
        list(camera.frames())


@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("gst:nonsense", "pipeline", 'no element "nonsense"'),
        ("gst:videotestsrc colour=1", "pipeline", 'no property "colour"'),
        ("gst:videotestsrc ! video/x-h264", "pipeline", "could not link"),
        ("gst:filesrc location=/not/there ! jpegdec", "lost", "Resource not found"),
        ("gst:audiotestsrc is-live=true ! audioconvert", "pipeline", "could not link"),
    ],
)
def test_a_pipeline_that_does_not_run_says_why(source: str, reason: str, message: str) -> None:
    with pytest.raises(CameraError, match=message) as caught:
        open_camera(source, open_s=2)
    assert caught.value.reason == reason


def test_a_frozen_pipeline_is_found_when_asked_for() -> None:
    source = "gst:videotestsrc pattern=white is-live=true ! video/x-raw,framerate=50/1"
    camera = open_camera(source, frozen_ms=300, reconnect=False)
    with pytest.raises(CameraLost) as caught:
        list(camera.frames())
    assert caught.value.reason == "frozen"


def test_importing_the_cameras_does_not_load_gstreamer() -> None:
    code = (
        "import sys, edgesmith.sdk.cameras, edgesmith.sdk.cameras.gstreamer, edgesmith.sdk.cameras.open; "
        "assert 'gi' not in sys.modules and 'http.client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_bindings_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    gstreamer.cache_clear()
    monkeypatch.setitem(sys.modules, "gi", None)
    try:
        with pytest.raises(MissingExtraError, match="apt install python3-gi") as caught:
            open_camera("rtsp://127.0.0.1:1/x")
    finally:
        gstreamer.cache_clear()
    assert caught.value.extra == "gst"
