"""An RTSP server of the test pattern: a process of its own, as it needs GLib's main loop and gets killed.

``/test`` is plain H.264. ``/frozen`` (JPEG) shows the same picture again and again from frame 15 on,
``/switch`` halves its size at frame 20, ``/garbage`` sends bytes that are no H.264. With ``--clip`` the
pictures of ``/test`` are a video's, again and again, and ``--fps`` is another rate than 30.

Line 0 of a picture is its number; line 1 is the monotonic clock at which it was drawn, in tenths of a
millisecond, so that whoever reads it on this machine knows its age. Prints ``READY`` once it listens.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import cv2
import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

from edgesmith.sdk.cameras.testpattern import draw_number, pattern_image  # noqa: E402

FPS = 30
SIZE = (640, 480)
FREEZE_AT, SWITCH_AT = 15, 20
H264 = (
    "videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast threads=1 "
    f"key-int-max={FPS} bitrate=3000 ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1"
)
ENCODERS = {
    "test": H264,
    "switch": H264,
    "frozen": "videoconvert ! video/x-raw,format=I420 ! jpegenc ! rtpjpegpay name=pay0 pt=26",
    "garbage": "rtph264pay name=pay0 pt=96 config-interval=-1",
}


class Stream(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc]
    """The stream of one path; `/test` goes on counting whoever comes and leaves, the others start afresh."""

    def __init__(self, path: str, fps: int, clip: str | None) -> None:
        super().__init__()
        self.path = path
        self.fps = fps
        self.number = 0
        self.clip = cv2.VideoCapture(clip) if clip and path == "test" else None
        self.shown = SIZE
        if self.clip is not None:
            self.shown = (
                int(self.clip.get(cv2.CAP_PROP_FRAME_WIDTH)),
                int(self.clip.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            )
        self.set_shared(True)

    def do_create_element(self, _url: Any) -> Any:
        return Gst.parse_launch(
            "( appsrc name=src is-live=true do-timestamp=true format=time block=true max-buffers=1 "
            f"! {ENCODERS[self.path]} )"
        )

    def do_configure(self, media: Any) -> None:
        source = media.get_element().get_child_by_name("src")
        source.set_property("caps", self.caps(self.shown))
        rng = np.random.default_rng(1)
        if self.path != "test":
            self.number = 0

        def tick() -> bool:
            number = self.number
            if self.path == "switch" and number == SWITCH_AT:
                source.set_property("caps", self.caps(self.size(number)))
            data = (
                b"\x00\x00\x00\x01\x65" + rng.bytes(4000) if self.path == "garbage" else self.picture(number)
            )
            self.number += 1
            return bool(source.emit("push-buffer", Gst.Buffer.new_wrapped(data)) == Gst.FlowReturn.OK)

        GLib.timeout_add(1000 // self.fps, tick)

    def caps(self, size: tuple[int, int]) -> Any:
        if self.path == "garbage":
            return Gst.Caps.from_string("video/x-h264,stream-format=byte-stream,alignment=au")
        return Gst.Caps.from_string(
            f"video/x-raw,format=BGR,width={size[0]},height={size[1]},framerate={self.fps}/1"
        )

    def size(self, number: int) -> tuple[int, int]:
        return (SIZE[0] // 2, SIZE[1] // 2) if self.path == "switch" and number >= SWITCH_AT else self.shown

    def picture(self, number: int) -> bytes:
        if self.path == "frozen" and number >= FREEZE_AT:
            return pattern_image(FREEZE_AT, SIZE).tobytes()
        image = (
            pattern_image(number, self.size(number)) if self.clip is None else self.of_clip(self.clip, number)
        )
        draw_number(image, time.monotonic_ns() // 100_000, line=1)
        return image.tobytes()

    def of_clip(self, clip: cv2.VideoCapture, number: int) -> Any:
        """The clip's next picture, with the number drawn into it."""
        good, read = clip.read()
        if not good:
            clip.set(cv2.CAP_PROP_POS_FRAMES, 0)
            good, read = clip.read()
        assert good, "the clip cannot be read"
        image = np.asarray(read, np.uint8)
        draw_number(image, number)
        return image


def lock(server: Any, streams: list[Stream], password: str) -> None:
    """Let only the user ``robot`` in."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "robot")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("robot", password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("robot", "media.factory.access", True)
    permissions.add_permission_for_role("robot", "media.factory.construct", True)
    for stream in streams:
        stream.set_permissions(permissions)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--password", help="of the user `robot`; without it everybody is let in")
    parser.add_argument("--fps", type=int, default=FPS)
    parser.add_argument("--clip", help="a video whose pictures /test shows")
    options = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(options.port))
    streams = [Stream(path, options.fps, options.clip) for path in ENCODERS]
    for stream in streams:
        server.get_mount_points().add_factory(f"/{stream.path}", stream)
    if options.password:
        lock(server, streams, options.password)
    if not server.attach(None):
        sys.exit(f"port {options.port} is taken")
    parent = os.getppid()

    def orphaned() -> bool:
        # A test run that is killed must not leave servers behind.
        if os.getppid() != parent:
            os._exit(1)
        return True

    GLib.timeout_add(1000, orphaned)
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
