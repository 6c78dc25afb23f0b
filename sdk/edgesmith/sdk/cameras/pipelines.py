"""GStreamer pipelines as text: which elements, in which order, with what this machine has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgesmith.sdk.errors import CameraError, ConfigError

Has = Callable[[str], bool]  # whether an element is in the registry

# One buffer, the newest; no wait for the clock; no hang at the end of a stream that nobody reads.
SINK = "appsink name=frames drop=true max-buffers=1 sync=false wait-on-eos=false enable-last-sample=false"
BGR = "videoconvert name=tail ! video/x-raw,format=BGR"
# nvvidconv cannot make BGR: BGRx on the GPU's side, the rest on the CPU.
BGR_NVIDIA = "nvvidconv name=tail ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR"
NVMM_MAKERS = ("NVMM", "nvv4l2decoder", "nvarguscamerasrc")


@dataclass(frozen=True)
class Codec:
    """How one encoding gets out of RTP: its depayloader and parser, and decoders, best first."""

    depay: str
    decoders: tuple[tuple[str, str], ...]  # element to look for, text to write
    package: str


# An RTP stream's `encoding-name` -> what takes it apart. libav would also hand out what it decodes before the
# first key frame or with its references lost: grey smears that a detector takes for pictures.
CODECS: dict[str, Codec] = {
    "H264": Codec(
        "rtph264depay ! h264parse",
        (
            ("nvv4l2decoder", "nvv4l2decoder"),
            ("v4l2h264dec", "v4l2h264dec"),
            ("avdec_h264", "avdec_h264 output-corrupt=false"),
            ("openh264dec", "openh264dec"),
        ),
        "gstreamer1.0-libav",
    ),
    "H265": Codec(
        "rtph265depay ! h265parse",
        (
            ("nvv4l2decoder", "nvv4l2decoder"),
            ("v4l2slh265dec", "v4l2slh265dec"),
            ("avdec_h265", "avdec_h265 output-corrupt=false"),
        ),
        "gstreamer1.0-libav",
    ),
    # jpegparse has to stand before NVIDIA's decoder.
    "JPEG": Codec(
        "rtpjpegdepay",
        (("nvv4l2decoder", "jpegparse ! nvv4l2decoder mjpeg=1"), ("jpegdec", "jpegdec")),
        "gstreamer1.0-plugins-good",
    ),
}


def tail(has: Has, *, nvidia: bool) -> str:
    """From decoded video to BGR in an appsink."""
    return f"{BGR_NVIDIA if nvidia and has('nvvidconv') else BGR} ! {SINK}"


def rtp_chain(encoding: str, has: Has) -> str:
    """From RTP packets to decoded video.

    Raises:
        CameraError: the encoding is not known here, or nothing on this machine decodes it.
    """
    codec = CODECS.get(encoding.upper())
    if codec is None:
        raise CameraError(
            f"the stream is {encoding}, and only {', '.join(CODECS)} can be taken: set the camera to one",
            reason="pipeline",
        )
    for element, text in codec.decoders:
        # NVIDIA's decoder leaves its pictures in memory that only NVIDIA's converter reads.
        if has(element) and (element != "nvv4l2decoder" or has("nvvidconv")):
            return f"{codec.depay} ! {text}"
    raise CameraError(
        f"the stream is {encoding}, and this machine's GStreamer has no decoder for it: "
        f"apt install {codec.package}",
        reason="pipeline",
    )


def csi_pipeline(
    sensor: int, has: Has, *, size: tuple[int, int] | None, fps: float | None, flip: int = 0
) -> str:
    """A camera on the board's own connector: by NVIDIA's Argus on a Jetson, else by libcamera.

    Raises:
        CameraError: GStreamer here has neither.
    """
    wish = "" if size is None else f",width={size[0]},height={size[1]}"
    wish += "" if fps is None else f",framerate={rate_text(fps)}"
    if has("nvarguscamerasrc"):
        turned = BGR_NVIDIA.replace("nvvidconv", f"nvvidconv flip-method={flip}", 1)
        return (
            f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),format=NV12{wish} "
            f"! {turned} ! {SINK}"
        )
    if has("libcamerasrc"):
        turned = f"videoflip method={FLIPS[flip]} ! " if flip else ""
        # libcamera names its cameras; without a name it takes the first, and only that one is numbered here.
        if sensor:
            raise CameraError(
                f"csi://{sensor}: with libcamera only camera 0 has a number: "
                "use gst:libcamerasrc camera-name=...",
                reason="pipeline",
            )
        return f"libcamerasrc ! video/x-raw{wish} ! {turned}{BGR} ! {SINK}"
    raise CameraError(
        f"csi://{sensor}: GStreamer here has neither nvarguscamerasrc (JetPack) nor libcamerasrc: on a "
        "Jetson apt install nvidia-l4t-gstreamer",
        reason="pipeline",
    )


# nvvidconv's flip-method numbers as videoflip's names.
FLIPS = (
    "none",
    "counterclockwise",
    "rotate-180",
    "clockwise",
    "horizontal-flip",
    "upper-right-diagonal",
    "vertical-flip",
    "upper-left-diagonal",
)


def custom_pipeline(text: str, has: Has) -> str:
    """A pipeline of the user's own, which ends before the sink.

    Raises:
        ConfigError: it is empty or has a sink already.
    """
    text = text.strip().rstrip("!").strip()
    if not text:
        raise ConfigError("gst: needs a pipeline, such as gst:v4l2src device=/dev/video0 ! jpegdec")
    if "appsink" in text or text.split("!")[-1].strip().split(" ")[0].endswith("sink"):
        raise ConfigError(
            "gst: leave the sink out: the pipeline ends with raw or NVMM video, the rest is added"
        )
    return f"{text} ! {tail(has, nvidia=any(word in text for word in NVMM_MAKERS))}"


def rate_text(fps: float) -> str:
    """A rate as GStreamer's fraction: 30 -> 30/1, 29.97 -> 30000/1001."""
    if abs(fps - round(fps)) < 1e-6:
        return f"{round(fps)}/1"
    ntsc = round(fps * 1.001)
    if abs(fps - ntsc * 1000 / 1001) < 0.005:
        return f"{ntsc * 1000}/1001"
    return f"{round(fps * 1000)}/1000"
