from __future__ import annotations

import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.sdk.cameras import open_camera
from edgesmith.sdk.cameras.testpattern import draw_number, pattern_image, read_number
from edgesmith.sdk.errors import ConfigError

NUMBERS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(80, 700), st.integers(48, 500))


@settings(max_examples=40, deadline=None)
@given(NUMBERS, SIZES, st.integers(0, 11))
def test_a_number_reads_back_at_any_size_and_line(number: int, size: tuple[int, int], line: int) -> None:
    image = np.full((size[1], size[0], 3), 127, np.uint8)
    draw_number(image, number, line=line)
    assert read_number(image, line=line) == number
    assert read_number(image[..., 0], line=line) == number


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(10, 95), st.floats(0.4, 2.5))
def test_a_number_survives_jpeg_and_scaling(number: int, quality: int, factor: float) -> None:
    image = pattern_image(number, (320, 240))
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    seen = cv2.resize(decoded, None, fx=factor, fy=factor)
    assert read_number(np.asarray(seen, np.uint8)) == number


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(0, 39))
def test_a_flipped_block_is_noticed(number: int, block: int) -> None:
    image = np.zeros((48, 400, 3), np.uint8)
    draw_number(image, number)
    image[:4, block * 10 : block * 10 + 10] ^= 255
    assert read_number(image) is None


@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_plain_picture_has_no_number(value: int) -> None:
    assert read_number(np.full((480, 640, 3), value, np.uint8)) is None
    assert read_number(np.full((4, 4, 3), value, np.uint8)) is None


def test_numbers_survive_a_video_file(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (320, 240))
    for number in range(1000, 1040):
        writer.write(pattern_image(number, (320, 240)))
    writer.release()
    assert [read_number(f.image) for f in open_camera(path).frames()] == list(range(1000, 1040))


def test_the_pattern_is_deterministic_and_moves() -> None:
    assert np.array_equal(pattern_image(7, (320, 240)), pattern_image(7, (320, 240)))
    one, other = pattern_image(7, (320, 240)), pattern_image(8, (320, 240))
    assert np.mean(one[20:] != other[20:]) > 0.3


def test_on_demand_it_gives_every_frame_at_once() -> None:
    camera = open_camera("testpattern://?size=160x120&fps=10&frames=30", realtime=False)
    started = time.monotonic()
    frames = list(camera.frames())
    assert time.monotonic() - started < 2.5  # three seconds in real time
    assert (camera.live, camera.length, camera.fps) == (False, 30, 10.0)
    assert [read_number(f.image) for f in frames] == [f.sequence for f in frames] == list(range(30))
    assert {f.dropped for f in frames} == {0}


def test_in_real_time_it_keeps_its_rate_and_counts_what_is_missed() -> None:
    with_gaps = []
    camera = open_camera("test:", size=(160, 120), fps=100, frames=60)
    started = time.monotonic()
    for frame in camera.frames():
        with_gaps.append(frame)
        time.sleep(0.03)
    assert time.monotonic() - started > 0.55
    status = camera.status()
    assert status.frames == 60 == status.delivered + status.dropped
    assert status.delivered == len(with_gaps) < 45
    numbers = [read_number(f.image) for f in with_gaps]
    assert numbers == [f.sequence for f in with_gaps]
    assert all(b.sequence - a.sequence - 1 == b.dropped for a, b in itertools.pairwise(with_gaps))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("testpattern://?size=10x10", "80x48 at least"),
        ("testpattern://?size=big", "WIDTHxHEIGHT"),
        ("testpattern://?fps=-1", "rate in frames a second"),
        ("testpattern://?frames=0", "frames must be 1 or more"),
        ("testpattern://?speed=2", "no option speed .* there are backoff, frames"),
        ("test:hello", "no option hello"),
    ],
)
def test_a_wrong_address_is_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_camera(source)
