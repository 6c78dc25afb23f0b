from __future__ import annotations

import logging
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.sdk.cameras import open_camera
from edgesmith.sdk.cameras.address import read_address, without_credentials
from edgesmith.sdk.cameras.options import Backoff
from edgesmith.sdk.errors import CameraError, CameraFormatError, ConfigError, EdgesmithError

SECRET = "s3cr3t-passw0rd"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.floats(0, 10),
    st.floats(1, 5),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_pauses_are_bounded_and_repeatable(
    attempt: int, first: float, more: float, factor: float, jitter: float, seed: int
) -> None:
    backoff = Backoff(first_s=first, longest_s=first + more, factor=factor, jitter=jitter)
    pause = backoff.pause_s(attempt, random.Random(seed))
    assert pause == backoff.pause_s(attempt, random.Random(seed))
    assert 0 <= pause <= backoff.longest_s * (1 + jitter)
    plain = Backoff(first_s=first, longest_s=first + more, factor=factor, jitter=0)
    assert plain.pause_s(0, random.Random()) == first
    assert plain.pause_s(attempt, random.Random()) <= plain.pause_s(attempt + 1, random.Random())


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("test:", {"colour": 1}, "no option colour .* there are backoff, frames, frozen_ms, loop"),
        ("rtsp://h/1", {"latency": 1}, "no option latency .* latency_ms, .* transport"),
        ("rtsp://h/1", {"transport": "smoke"}, "transport must be tcp or udp"),
        ("gst:videotestsrc", {"loop": True}, "no option loop"),
        ("http://h/1", {"fps": 30}, "fps cannot be asked"),
        ("0", {"fourcc": "MJPEG"}, "fourcc must have four characters"),
        ("csi://front", {}, "the number of the sensor"),
        ("csi://0", {"flip": 9}, "flip must be 0..7"),
        ("rtsp://", {}, "names no host"),
        ("rtsp://h:port/", {}, "not an address"),
        ("gst:", {}, "needs a pipeline"),
        ("gst:videotestsrc ! autovideosink", {}, "leave the sink out"),
        ("test:", {"size": (0, 5)}, "both over 0"),
        ("test:", {"fps": -1}, "a rate in frames a second"),
        ("test:", {"stall_ms": "soon"}, "option cannot be used: .*stall_ms"),
        ("test:", {"backoff": {"first": 1}}, "unknown field `first`"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_camera(source, **options)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"rtsp://robot:{SECRET}@cam:554/a", "rtsp://cam:554/a"),
        (f"rtsp://robot:p@/{SECRET}@cam/a", "rtsp://cam/a"),
        (f"http://cam/v.cgi?user=robot&pwd={SECRET}&ch=1", "http://cam/v.cgi?user=***&pwd=***&ch=1"),
        (f"gst:rtspsrc location=rtsp://robot:{SECRET}@cam/a ! d", "gst:rtspsrc location=rtsp://cam/a ! d"),
        (f"gst:rtspsrc user-id=robot user-pw={SECRET} ! d", "gst:rtspsrc user-id=*** user-pw=*** ! d"),
        (f'gst:rtspsrc user-pw="{SECRET} x" ! d', "gst:rtspsrc user-pw=*** ! d"),
        ("clip with spaces.mp4", "clip with spaces.mp4"),
    ],
)
def test_what_is_shown_has_no_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


def test_an_address_keeps_its_credentials_to_itself() -> None:
    address = read_address(f"rtsp://robot:{SECRET}%40@cam/live?token={SECRET}", 554)
    assert (address.user, address.password, address.port) == ("robot", f"{SECRET}@", 554)
    assert address.location == f"rtsp://cam/live?token={SECRET}"
    assert address.target == f"/live?token={SECRET}"
    assert SECRET not in repr(address)
    assert address.url == "rtsp://cam/live?token=***"


@pytest.mark.parametrize(
    "source",
    [
        f"rtsp://robot:{SECRET}@127.0.0.1:1/x",
        f"rtsp://robot:{SECRET}@nowhere.invalid/x?pwd={SECRET}",
        f"http://robot:{SECRET}@127.0.0.1:1/x",
        f"http://robot:{SECRET}@nowhere.invalid/x",
        f"http://robot:{SECRET}@host:port/x",
        f"gst:rtspsrc location=rtsp://robot:{SECRET}@127.0.0.1:1/x ! nothing-like-it",
        f"gst:rtspsrc location=rtsp://robot:{SECRET}@127.0.0.1:1/x ! rtph264depay ! avdec_h264",
        f"gst:rtspsrc user-pw={SECRET} location=rtsp://127.0.0.1:1/x nonsense=1",
        f"ftp://robot:{SECRET}@host/x",
    ],
)
def test_no_error_and_no_log_holds_credentials(
    source: str, caplog: pytest.LogCaptureFixture, component: Any
) -> None:
    component("gstreamer")
    with caplog.at_level(logging.DEBUG), pytest.raises(EdgesmithError) as caught:
        open_camera(source)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r} {error.args}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("rtsp://127.0.0.1:1/x", "refused", r"nothing listens at 127\.0\.0\.1:1"),
        ("http://127.0.0.1:1/x", "refused", r"nothing listens at 127\.0\.0\.1:1"),
        ("rtsp://nowhere.invalid/x", "dns", r"the name nowhere\.invalid cannot be resolved"),
        ("http://nowhere.invalid/x", "dns", r"the name nowhere\.invalid cannot be resolved"),
    ],
)
def test_a_host_that_cannot_be_reached_says_why(
    source: str, reason: str, message: str, component: Any
) -> None:
    component("gstreamer")
    started = time.monotonic()
    with pytest.raises(CameraError, match=message) as caught:
        open_camera(source)
    assert caught.value.reason == reason
    assert time.monotonic() - started < 5


def test_another_size_or_rate_than_asked_is_refused_with_what_there_is(component: Any) -> None:
    component("gstreamer")
    source = "gst:videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=20/1"
    with pytest.raises(CameraFormatError, match=r"gives 320x240 pictures, and 640x480 was asked") as caught:
        open_camera(source, size=(640, 480))
    assert (caught.value.offers, caught.value.reason) == (("320x240",), "format")
    with pytest.raises(CameraFormatError, match=r"gives 20 frames/s, and 30 was asked"):
        open_camera(source, fps=30)
    camera = open_camera(source, size=(320, 240), fps=20)
    assert camera.fps == 20
    camera.close()


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "gst:nothing ! " + "y" * 5000])
def test_a_source_that_cannot_be_a_name_is_an_error_of_ours(source: str, component: Any) -> None:
    component("gstreamer")
    with pytest.raises(CameraError):
        open_camera(source)
