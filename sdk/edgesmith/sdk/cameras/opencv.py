"""Video files and attached cameras through OpenCV."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.base import Frame, SupervisedCamera
from edgesmith.sdk.cameras.book import OnState
from edgesmith.sdk.cameras.ondemand import OnDemandCamera
from edgesmith.sdk.cameras.options import CAMERA_FROZEN_MS, DeviceOptions, FileOptions
from edgesmith.sdk.cameras.request import Request
from edgesmith.sdk.cameras.session import Grab, Link, Session
from edgesmith.sdk.cameras.v4l2 import offers
from edgesmith.sdk.errors import CameraError, CameraFormatError, CameraLost

log = logging.getLogger(__name__)
CLOSE_S = 0.5  # how long close() waits for a read that another thread is in
MISSES = 3  # reads in a row that give nothing: the device is gone


def open_file(path: Path) -> cv2.VideoCapture:
    """The decoder of a video file.

    Raises:
        CameraError: there is no such file, or it is not a video.
    """
    if not path.is_file():
        raise CameraError(f"{path}: there is no such file", reason="not-found")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise CameraError(
            f"{path}: not a video that this OpenCV can open, or a damaged one", reason="damaged"
        )
    return capture


def rate_of(capture: cv2.VideoCapture) -> float | None:
    """Frames a second as the source states them, or None where it states nonsense."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < 1000 else None


def length_of(capture: cv2.VideoCapture) -> int | None:
    """Frames that a file announces, or None."""
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return count if count > 0 else None


def missing_frames(path: Path, decoded: int, announced: int | None) -> str | None:
    """The fault of a file that gave fewer frames than it announces, or None.

    Containers may count one frame more than there is; more than that is missing picture.
    """
    if decoded == 0 or (announced is not None and decoded < announced - 1):
        return f"{path}: damaged: {decoded} of {announced or '?'} frames could be decoded"
    return None


class VideoFile(OnDemandCamera):
    """A video file, frame by frame, as fast as it is asked.

    Where the size changes within the file, OpenCV scales the later frames to the first one's size.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        loop: bool = False,
        size: tuple[int, int] | None = None,
        on_state: OnState | None = None,
    ) -> None:
        self._capture = open_file(path)
        super().__init__(
            name or str(path), fps=rate_of(self._capture), length=length_of(self._capture), on_state=on_state
        )
        self._path = path
        self._loop = loop
        self._announced, self.length = self.length, None if loop else self.length
        self._number = 0
        self._lock = threading.Lock()  # releasing a decoder while it decodes ends the process
        has = tuple(int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if size is not None and has != size:
            self._capture.release()
            raise CameraFormatError(
                f"{path} is {has[0]}x{has[1]}, and {size[0]}x{size[1]} was asked for: leave the size out",
                offers=(f"{has[0]}x{has[1]}",),
            )

    def _read(self) -> Iterator[Frame]:
        """Frames in order; ``source_ns`` is the position in the file.

        Frames that the file announces and that cannot be decoded are a fault.
        """
        while True:
            decoded = 0
            while (got := self._next()) is not None:
                image, grabbed, at = got
                yield Frame(image, self._number, grabbed, at, self.name)
                self._number += 1
                decoded += 1
            if self._closed.is_set():
                return
            if fault := missing_frames(self._path, decoded, self._announced):
                self._fault(fault)
            if not self._loop or not decoded:
                return
            with self._lock:
                self._capture.release()
                self._capture = open_file(self._path)

    def _next(self) -> tuple[NDArray[np.uint8], int, int] | None:
        with self._lock:
            if self._closed.is_set():
                return None
            good, image = self._capture.read()
            grabbed = time.monotonic_ns()
            if not good or image is None:
                return None
            at = int(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        return np.asarray(image, np.uint8), grabbed, at

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._lock.acquire(timeout=CLOSE_S):
            try:
                self._capture.release()
            finally:
                self._lock.release()
        else:
            log.warning("%s: a read did not end within %g s and is left to itself", self.name, CLOSE_S)


def file_session(path: Path, *, loop: bool = False) -> Session:
    """A video file at its own rate, by its own timestamps."""

    def run(link: Link) -> None:
        offset_ns = 0
        started = time.monotonic_ns()
        while True:
            capture = open_file(path)
            try:
                period = int(1e9 / (rate_of(capture) or 25.0))
                announced = length_of(capture)
                decoded, at = 0, -period
                while not link.closing:
                    good, image = capture.read()
                    if not good or image is None:
                        break
                    stated = int(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                    # Some containers have no usable timestamps: then the rate counts.
                    at = stated if stated > at else at + period
                    if link.wait((started + offset_ns + at - time.monotonic_ns()) / 1e9):
                        return
                    link.put(Grab(np.asarray(image, np.uint8), source_ns=at))
                    decoded += 1
            finally:
                capture.release()
            if link.closing:
                return
            if fault := missing_frames(path, decoded, announced):
                link.fault(fault)
            if not loop or not decoded:
                return
            offset_ns += at + period

    return run


def device_session(
    device: int | str, *, size: tuple[int, int] | None, fps: float | None, fourcc: str | None
) -> Session:
    """A camera of this machine by number or device path; what it was asked for is read back and compared."""
    name = f"camera {device}"

    def run(link: Link) -> None:
        capture = open_device(device)
        try:
            negotiate(capture, name, device, size=size, fps=fps, fourcc=fourcc)
            misses = 0
            while not link.closing:
                good, image = capture.read()
                grabbed = time.monotonic_ns()
                if good and image is not None:
                    misses = 0
                    link.put(Grab(np.asarray(image, np.uint8), captured_ns=grabbed))
                    continue
                misses += 1
                if misses >= MISSES:
                    raise CameraLost(
                        f"{name} stopped giving pictures: is it still plugged in?", reason="lost"
                    )
                link.wait(0.02)
        except cv2.error as error:
            raise CameraLost(f"{name}: OpenCV cannot read it on: {error.err}", reason="device") from error
        finally:
            capture.release()

    return run


def open_device(device: int | str) -> cv2.VideoCapture:
    """An attached camera.

    Raises:
        CameraError: it is not there, or cannot be had.
    """
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        capture.release()
        raise CameraError(
            f"camera {device} cannot be opened: `ls /dev/video*` lists what there is; "
            "another program may hold it, or this user may not read it (group `video`)",
            reason="device",
        )
    return capture


def negotiate(
    capture: cv2.VideoCapture,
    name: str,
    device: int | str,
    *,
    size: tuple[int, int] | None,
    fps: float | None,
    fourcc: str | None,
) -> None:
    """Ask a device for a format, and compare with what it took.

    OpenCV's ``set`` answers True for wishes that the driver turned into something else.

    Raises:
        CameraFormatError: it took something else; ``offers`` lists what it has, as far as it says so.
    """
    refused = []
    # The pixel format first: which sizes and rates there are depends on it.
    if fourcc is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))
        took = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1")
        if took != fourcc:
            refused.append(f"{fourcc} (it took {took})")
    if size is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        has = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if has != size:
            refused.append(f"{size[0]}x{size[1]} (it took {has[0]}x{has[1]})")
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
        rate = capture.get(cv2.CAP_PROP_FPS)
        if abs(rate - fps) > 0.02 * fps:  # 29.97 is 30 to whoever asks
            refused.append(f"{fps:g} frames/s (it took {rate:g})")
    if refused:
        formats = offers(device)
        listed = (
            "; it offers " + ", ".join(formats) if formats else "; `v4l2-ctl --list-formats-ext` lists more"
        )
        raise CameraFormatError(f"{name} does not give {', '.join(refused)}{listed}", offers=formats)


def open_video(request: Request) -> SupervisedCamera:
    """A video file; see ``open_camera``."""
    request.refuse(fps=request.fps)
    options = request.read(FileOptions)
    path = Path(request.source)
    if not options.realtime:
        return VideoFile(
            path, name=request.name, loop=options.loop, size=request.size, on_state=request.on_state
        )
    capture = open_file(path)
    rate, length = rate_of(capture), None if options.loop else length_of(capture)
    capture.release()
    session = file_session(path, loop=options.loop)
    return dataclasses.replace(request, fps=rate).live(session, options, usual_frozen_ms=0, length=length)


def open_attached(request: Request) -> SupervisedCamera:
    """A camera of this machine by number or device path; see ``open_camera``."""
    options = request.read(DeviceOptions)
    device = int(request.source) if request.source.isdecimal() else request.source
    session = device_session(device, size=request.size, fps=request.fps, fourcc=options.fourcc)
    named = request if request.name else dataclasses.replace(request, name=f"camera {device}")
    return named.live(session, options, usual_frozen_ms=CAMERA_FROZEN_MS)
