"""Video files and attached cameras through OpenCV."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.errors import CameraError, CameraLost

log = logging.getLogger(__name__)


class VideoFile:
    """A video file, frame by frame, as fast as it is asked."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CameraError(f"{path}: there is no such file")
        self.name = str(path)
        self.faults: list[str] = []
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise CameraError(f"{path}: not a video that this OpenCV can open, or a damaged one")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.fps: float | None = rate if 0 < rate < 1000 else None
        self.length: int | None = count if count > 0 else None

    def frames(self) -> Iterator[Frame]:
        """Frames in order; ``source_ns`` is the position in the file.

        Frames that the file announces and that cannot be decoded are a fault.
        """
        number = 0
        while True:
            good, image = self._capture.read()
            grabbed = time.monotonic_ns()
            if not good or image is None:
                break
            at = int(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            yield Frame(np.asarray(image, np.uint8), number, grabbed, at, self.name)
            number += 1
        # Containers may count one frame more than there is; more than that is missing picture.
        if number == 0 or (self.length is not None and number < self.length - 1):
            fault = f"{self.name}: damaged: {number} of {self.length or '?'} frames could be decoded"
            self.faults.append(fault)
            log.warning("%s", fault)

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class AttachedCamera:
    """A camera of this machine by number or device path."""

    length: int | None = None

    def __init__(self, device: int | str) -> None:
        self.name = f"camera {device}"
        self.faults: list[str] = []
        self._capture = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            raise CameraError(
                f"{self.name} cannot be opened: `ls /dev/video*` lists what there is; "
                "another program may hold it, or this user may not read it (group `video`)"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps: float | None = rate if 0 < rate < 1000 else None

    def frames(self) -> Iterator[Frame]:
        """Frames as they come.

        Raises:
            CameraLost: the camera stopped giving frames.
        """
        number = 0
        while True:
            good, image = self._capture.read()
            if not good or image is None:
                raise CameraLost(f"{self.name} stopped after {number} frames: is it still plugged in?")
            yield Frame(np.asarray(image, np.uint8), number, time.monotonic_ns(), None, self.name)
            number += 1

    def close(self) -> None:
        """Let go of the device."""
        self._capture.release()
