"""CSI cameras, RTSP and any other pipeline, through GStreamer's appsink."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.address import Address, diagnose, read_address, without_credentials
from edgesmith.sdk.cameras.live import LiveCamera
from edgesmith.sdk.cameras.options import CAMERA_FROZEN_MS, CsiOptions, LiveOptions, RtspOptions
from edgesmith.sdk.cameras.pipelines import csi_pipeline, custom_pipeline, rtp_chain, tail
from edgesmith.sdk.cameras.request import Request
from edgesmith.sdk.cameras.session import Grab, Link, Session
from edgesmith.sdk.errors import CameraError, CameraLost, ConfigError, MissingExtraError

log = logging.getLogger(__name__)

POLL_NS = 50_000_000  # how long one wait for a picture lasts: closing is noticed within it
QUIET_NS = 600_000_000  # without a picture for so long, see whether packets come at all
EOS_NS = 300_000_000  # how long a CSI camera may take to end its stream in order
DIAGNOSE_S = 1.0


class GStreamer:
    """The parts of GStreamer's bindings that are used; loaded on first use, never at import."""

    def __init__(self) -> None:
        try:
            import gi

            for name in ("Gst", "GstApp", "GstVideo"):
                gi.require_version(name, "1.0")
            from gi.repository import GLib, Gst, GstApp, GstVideo
        except (ImportError, ValueError) as error:
            raise MissingExtraError(
                f"CSI, RTSP and gst: sources need GStreamer's Python bindings ({error}): apt install "
                "python3-gi gir1.2-gst-plugins-base-1.0, or pip install 'edgesmith[gst]'",
                extra="gst",
            ) from error
        Gst.init(None)
        self.GLib: Any = GLib
        self.Gst: Any = Gst
        self.GstApp: Any = GstApp  # loading it gives appsink its methods
        self.GstVideo: Any = GstVideo

    def has(self, element: str) -> bool:
        """Whether the registry has an element."""
        return self.Gst.ElementFactory.find(element) is not None


@functools.lru_cache(maxsize=1)
def gstreamer() -> GStreamer:
    """GStreamer, initialised once.

    Raises:
        MissingExtraError: its Python bindings are not there.
    """
    return GStreamer()


def pixels(g: GStreamer, sample: Any) -> NDArray[np.uint8]:
    """A sample's picture as an array of its own, BGR uint8 ``(H, W, 3)``.

    Rows are padded (to 4 bytes, or as the allocator likes): the buffer's meta says how, else the format.
    """
    buffer = sample.get_buffer()
    meta = g.GstVideo.buffer_get_video_meta(buffer)
    if meta is None:
        meta = g.GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    mapped, info = buffer.map(g.Gst.MapFlags.READ)
    if not mapped:
        raise CameraError("a picture's memory cannot be read", reason="damaged")
    try:
        view: NDArray[np.uint8] = np.ndarray(
            (meta.height, meta.width, 3),
            np.uint8,
            buffer=info.data,
            offset=meta.offset[0],
            strides=(meta.stride[0], 3, 1),
        )
        return view.copy()
    finally:
        buffer.unmap(info)


def build(g: GStreamer, text: str, name: str) -> Any:
    """The pipeline of a text.

    Raises:
        CameraError: an element or property does not exist, or two elements do not fit.
    """
    try:
        return g.Gst.parse_launch(text)
    except g.GLib.Error as error:
        raise CameraError(
            f"{name}: not a pipeline that GStreamer can build: {without_credentials(error.message)}",
            reason="pipeline",
        ) from None  # the cause's text may hold credentials


def pipeline_session(text: str, *, name: str, end_in_order: bool = False) -> Session:
    """A pipeline from its text, which ends in the appsink ``frames``.

    Args:
        text: as ``gst-launch-1.0`` takes it.
        name: what messages call it.
        end_in_order: send an end-of-stream before letting go; Argus wedges without.
    """

    def run(link: Link) -> None:
        g = gstreamer()
        pipeline = build(g, text, name)
        _Run(g, pipeline, link, _explainer(g, name), name).play(end_in_order)

    return run


def rtsp_session(address: Address, *, transport: str, latency_ms: int) -> Session:
    """A stream of an RTSP server; the decoder is chosen when the server has said what it sends."""

    def run(link: Link) -> None:
        g = gstreamer()
        pipeline = build(g, tail(g.has, nvidia=g.has("nvv4l2decoder")), address.url)
        source = g.Gst.ElementFactory.make("rtspsrc", "source")
        if source is None:
            raise CameraError(
                f"{address.url}: GStreamer here has no rtspsrc: apt install gstreamer1.0-plugins-good",
                reason="pipeline",
            )
        source.set_property("location", address.location)
        source.set_property("latency", latency_ms)
        g.Gst.util_set_object_arg(source, "protocols", transport)
        # Not in the address: these stay out of GStreamer's own messages.
        if address.user is not None:
            source.set_property("user-id", address.user)
            source.set_property("user-pw", address.password or "")
        pipeline.add(source)
        player = _Run(g, pipeline, link, _rtsp_explainer(g, address), address.url)
        handlers = [
            source.connect("select-stream", lambda _source, _number, caps: _media(caps) == "video"),
            source.connect("pad-added", player.take_stream),
        ]
        try:
            player.play(end_in_order=False)
        finally:
            for handler in handlers:
                source.disconnect(handler)

    return run


def _media(caps: Any) -> str:
    return str(caps.get_structure(0).get_string("media"))


Explain = Callable[[Any, str], CameraError]  # (GError, debug text) -> what to raise


class _Run:
    """One pipeline from start to end."""

    def __init__(self, g: GStreamer, pipeline: Any, link: Link, explain: Explain, name: str) -> None:
        self.g = g
        self.pipeline = pipeline
        self.link = link
        self.explain = explain
        self.name = name
        self.sink = pipeline.get_by_name("frames")
        self.bus = pipeline.get_bus()
        self.trouble: CameraError | None = None
        self._taken = False
        self._counter: Any = None
        self._packets = 0
        self._caps: Any = None
        self._size = (0, 0)

    def play(self, end_in_order: bool) -> None:
        """Hand pictures over until the stream ends or the link closes."""
        g = self.g
        try:
            change = self.pipeline.set_state(g.Gst.State.PAUSED)
            live = change == g.Gst.StateChangeReturn.NO_PREROLL
            if not live:
                # A pipeline that does not run by itself (a file) is played at its own rate.
                self.sink.set_property("sync", True)
            self.pipeline.set_state(g.Gst.State.PLAYING)
            newest = time.monotonic_ns()
            while not self.link.closing:
                sample = self.sink.try_pull_sample(POLL_NS)
                grabbed = time.monotonic_ns()
                if sample is not None:
                    newest = grabbed
                    self.link.put(self._grab(sample, grabbed))
                elif grabbed - newest > QUIET_NS:
                    self._tell_silence_from_damage()
                if self._ended(live):
                    return
        finally:
            if end_in_order:
                self.pipeline.send_event(g.Gst.Event.new_eos())
                self.bus.timed_pop_filtered(EOS_NS, g.Gst.MessageType.EOS | g.Gst.MessageType.ERROR)
            self.pipeline.set_state(g.Gst.State.NULL)

    def take_stream(self, _source: Any, pad: Any) -> None:
        """Decode the first video stream of a server; called by GStreamer when it appears."""
        caps = pad.get_current_caps() or pad.query_caps(None)
        if self._taken or _media(caps) != "video":
            return
        self._taken = True
        try:
            text = rtp_chain(caps.get_structure(0).get_string("encoding-name") or "?", self.g.has)
            chain = self.g.Gst.parse_bin_from_description(
                f"identity name=received silent=true ! {text}", True
            )
            self._counter = chain.get_by_name("received")
        except CameraError as error:
            self.trouble = CameraError(f"{self.name}: {error}", reason=error.reason)
            return
        except self.g.GLib.Error as error:
            self.trouble = CameraError(f"{self.name}: {error.message}", reason="pipeline")
            return
        self.pipeline.add(chain)
        linked = chain.link(self.pipeline.get_by_name("tail"))
        chain.sync_state_with_parent()
        result = pad.link(chain.get_static_pad("sink"))
        if not linked or result != self.g.Gst.PadLinkReturn.OK:
            self.trouble = CameraError(f"{self.name}: `{text}` does not take the stream", reason="pipeline")

    def _tell_silence_from_damage(self) -> None:
        """No picture for a while: whether packets still come, where that can be known (GStreamer 1.20)."""
        if self._counter is None or self._counter.find_property("stats") is None:
            return
        known, count = self._counter.get_property("stats").get_uint64("num-buffers")
        if known and count > self._packets:
            # The first look only sets the mark.
            if self._packets:
                self.link.hint("damaged", "data comes, and no picture can be decoded from it")
            self._packets = count
        else:
            self.link.hint("", "")

    def _grab(self, sample: Any, grabbed: int) -> Grab:
        caps = sample.get_caps()
        if self._caps is None or not caps.is_equal(self._caps):
            self._caps = caps
            structure = caps.get_structure(0)
            self._size = structure.get_value("width"), structure.get_value("height")
            known, above, below = structure.get_fraction("framerate")
            if known and above > 0 and below > 0:
                self.link.rate(above / below)
        pts = sample.get_buffer().pts
        return Grab(
            lambda: pixels(self.g, sample),
            captured_ns=grabbed,
            source_ns=None if pts == self.g.Gst.CLOCK_TIME_NONE else pts,
            size=self._size,
        )

    def _ended(self, live: bool) -> bool:
        """Read the bus; whether the stream came to its end.

        Raises:
            CameraError: the pipeline reports one, or a live stream ended.
        """
        types = self.g.Gst.MessageType
        for message in self._messages():
            if self.trouble is not None:
                break
            if message.type == types.ERROR:
                error, debug = message.parse_error()
                raise self.explain(error, debug or "")
            if message.type == types.WARNING:
                warning, _debug = message.parse_warning()
                log.debug("%s: %s", self.name, without_credentials(warning.message))
            if message.type == types.EOS:
                if live:
                    raise CameraLost(f"{self.name}: the stream ended: its sender closed it", reason="lost")
                return True
        if self.trouble is not None:
            raise self.trouble
        return False

    def _messages(self) -> Iterator[Any]:
        # All of them, always: an unread bus grows without bound.
        while (message := self.bus.pop()) is not None:
            yield message


def _explainer(g: GStreamer, name: str) -> Explain:
    def explain(error: Any, debug: str) -> CameraError:
        text = without_credentials(error.message)
        if error.matches(g.Gst.StreamError.quark(), g.Gst.StreamError.DECODE):
            return CameraLost(f"{name}: the stream cannot be decoded: {text}", reason="damaged")
        if "Failed to create CaptureSession" in f"{text} {debug}":
            return CameraError(
                f"{name}: Argus gives no session: another program holds the sensor, or its daemon is wedged: "
                "sudo systemctl restart nvargus-daemon",
                reason="device",
            )
        if "not-negotiated" in debug or error.matches(g.Gst.CoreError.quark(), g.Gst.CoreError.NEGOTIATION):
            return CameraError(f"{name}: the elements cannot agree on a format: {text}", reason="format")
        return CameraLost(f"{name}: {text}", reason="lost")

    return explain


def _rtsp_explainer(g: GStreamer, address: Address) -> Explain:
    usual = _explainer(g, address.url)

    def explain(error: Any, debug: str) -> CameraError:
        resource, codes = g.Gst.ResourceError.quark(), g.Gst.ResourceError
        if error.matches(resource, codes.NOT_AUTHORIZED) or "401" in debug.split("(")[-1]:
            why = "the user or password is wrong" if address.user else "it wants rtsp://USER:PASSWORD@HOST"
            return CameraError(f"{address.url}: not authorized: {why}", reason="unauthorized")
        if error.matches(resource, codes.NOT_FOUND):
            return CameraError(
                f"{address.url}: there is no such stream on this camera: check the path", reason="not-found"
            )
        return diagnose(address, DIAGNOSE_S) or usual(error, debug)

    return explain


def open_rtsp(request: Request) -> LiveCamera:
    """A stream of an RTSP server; see ``open_camera``."""
    options = request.read(RtspOptions)
    address = read_address(request.source, 322 if request.source.lower().startswith("rtsps:") else 554)
    gstreamer()  # its absence is a fault of the installation, not of the camera
    session = rtsp_session(address, transport=options.transport, latency_ms=options.latency_ms)
    return request.live(session, options, usual_frozen_ms=CAMERA_FROZEN_MS)


def open_csi(request: Request) -> LiveCamera:
    """A camera on the board's own connector; see ``open_camera``."""
    options = request.read(CsiOptions)
    number = request.source.partition("://")[2]
    if not number.isdecimal():
        raise ConfigError(f"{request.shown}: write csi://0, the number of the sensor")
    text = csi_pipeline(int(number), gstreamer().has, size=request.size, fps=request.fps, flip=options.flip)
    session = pipeline_session(text, name=request.shown, end_in_order=True)
    return request.live(session, options, usual_frozen_ms=CAMERA_FROZEN_MS)


def open_pipeline(request: Request) -> LiveCamera:
    """A pipeline of the user's own; see ``open_camera``."""
    options = request.read(LiveOptions)
    text = custom_pipeline(request.source.partition(":")[2], gstreamer().has)
    session = pipeline_session(text, name=request.name or request.shown)
    return request.live(session, options, usual_frozen_ms=0)
