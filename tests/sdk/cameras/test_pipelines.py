from __future__ import annotations

import pytest

from edgesmith.sdk.cameras.pipelines import (
    SINK,
    Has,
    csi_pipeline,
    custom_pipeline,
    rate_text,
    rtp_chain,
    tail,
)
from edgesmith.sdk.errors import CameraError, ConfigError


def machine(*elements: str) -> Has:
    return lambda element: element in elements


JETSON = machine("nvarguscamerasrc", "nvvidconv", "nvv4l2decoder", "avdec_h264", "jpegdec")
DESK = machine("avdec_h264", "avdec_h265", "jpegdec", "openh264dec")
PI = machine("libcamerasrc", "v4l2h264dec", "avdec_h264", "jpegdec")
SOFTWARE_TAIL = f"videoconvert name=tail ! video/x-raw,format=BGR ! {SINK}"
NVIDIA_TAIL = (
    "nvvidconv name=tail ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! " + SINK
)


def test_the_sink_keeps_the_newest_and_never_hangs_at_the_end() -> None:
    for wish in ("drop=true", "max-buffers=1", "sync=false", "wait-on-eos=false"):
        assert wish in SINK


@pytest.mark.parametrize(
    ("encoding", "has", "text"),
    [
        ("H264", JETSON, "rtph264depay ! h264parse ! nvv4l2decoder"),
        ("H264", DESK, "rtph264depay ! h264parse ! avdec_h264 output-corrupt=false"),
        ("H264", PI, "rtph264depay ! h264parse ! v4l2h264dec"),
        ("H264", machine("openh264dec"), "rtph264depay ! h264parse ! openh264dec"),
        ("h265", DESK, "rtph265depay ! h265parse ! avdec_h265 output-corrupt=false"),
        ("JPEG", JETSON, "rtpjpegdepay ! jpegparse ! nvv4l2decoder mjpeg=1"),
        ("JPEG", PI, "rtpjpegdepay ! jpegdec"),
        # NVIDIA's decoder without its converter gives pictures that nothing reads.
        (
            "H264",
            machine("nvv4l2decoder", "avdec_h264"),
            "rtph264depay ! h264parse ! avdec_h264 output-corrupt=false",
        ),
    ],
)
def test_the_best_decoder_of_the_machine_is_taken(encoding: str, has: Has, text: str) -> None:
    assert rtp_chain(encoding, has) == text


def test_an_encoding_that_nothing_decodes_is_named() -> None:
    with pytest.raises(CameraError, match=r"no decoder for it: apt install gstreamer1\.0-libav"):
        rtp_chain("H264", machine())
    with pytest.raises(CameraError, match="the stream is VP8, and only H264, H265, JPEG can be taken"):
        rtp_chain("VP8", DESK)


def test_a_csi_camera_goes_through_nvidias_elements_on_a_jetson() -> None:
    text = csi_pipeline(1, JETSON, size=(1280, 720), fps=30, flip=2)
    assert text == (
        "nvarguscamerasrc sensor-id=1 ! "
        "video/x-raw(memory:NVMM),format=NV12,width=1280,height=720,framerate=30/1 ! "
        "nvvidconv flip-method=2 name=tail ! video/x-raw,format=BGRx ! videoconvert ! "
        f"video/x-raw,format=BGR ! {SINK}"
    )


def test_a_csi_camera_elsewhere_goes_through_libcamera_or_says_what_is_missing() -> None:
    text = csi_pipeline(0, PI, size=(640, 480), fps=None)
    assert text == f"libcamerasrc ! video/x-raw,width=640,height=480 ! {SOFTWARE_TAIL}"
    assert "videoflip method=rotate-180" in csi_pipeline(0, PI, size=None, fps=None, flip=2)
    with pytest.raises(CameraError, match="neither nvarguscamerasrc"):
        csi_pipeline(0, DESK, size=None, fps=None)
    with pytest.raises(CameraError, match="only camera 0 has a number"):
        csi_pipeline(1, PI, size=None, fps=None)


@pytest.mark.parametrize(
    ("text", "has", "whole"),
    [
        ("videotestsrc", DESK, f"videotestsrc ! {SOFTWARE_TAIL}"),
        (" videotestsrc ! ", DESK, f"videotestsrc ! {SOFTWARE_TAIL}"),
        ("videotestsrc", JETSON, f"videotestsrc ! {SOFTWARE_TAIL}"),
        ("a ! nvv4l2decoder", JETSON, f"a ! nvv4l2decoder ! {NVIDIA_TAIL}"),
        ("a ! video/x-raw(memory:NVMM)", JETSON, f"a ! video/x-raw(memory:NVMM) ! {NVIDIA_TAIL}"),
    ],
)
def test_a_pipeline_of_ones_own_gets_its_end(text: str, has: Has, whole: str) -> None:
    assert custom_pipeline(text, has) == whole


@pytest.mark.parametrize(
    "text", ["", " ! ", "a ! appsink", "a ! fakesink sync=true", "a ! appsink name=x ! b"]
)
def test_a_pipeline_with_a_sink_or_without_anything_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="gst:"):
        custom_pipeline(text, DESK)


@pytest.mark.parametrize(
    ("fps", "text"),
    [(30, "30/1"), (29.97, "30000/1001"), (59.94, "60000/1001"), (12.5, "12500/1000"), (0.2, "200/1000")],
)
def test_rates_are_written_as_fractions(fps: float, text: str) -> None:
    assert rate_text(fps) == text


def test_the_tail_follows_the_decoder() -> None:
    assert tail(JETSON, nvidia=True) == NVIDIA_TAIL
    assert tail(DESK, nvidia=True) == tail(JETSON, nvidia=False) == SOFTWARE_TAIL
