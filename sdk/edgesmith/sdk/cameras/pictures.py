"""Pictures: one file, or a folder in name order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.cameras.book import OnState
from edgesmith.sdk.cameras.ondemand import OnDemandCamera
from edgesmith.sdk.cameras.options import PictureOptions
from edgesmith.sdk.cameras.request import Request
from edgesmith.sdk.errors import CameraError

log = logging.getLogger(__name__)
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """A picture file as BGR uint8 ``(H, W, 3)``; grey and 16-bit files are converted, EXIF rotation applied.

    Raises:
        CameraError: the file is missing, cannot be read, or is not a picture.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise CameraError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error as error:
        raise CameraError(f"{os.fspath(path)}: not a picture that OpenCV can decode: {error.err}") from error
    if image is None:
        raise CameraError(f"{os.fspath(path)}: not a picture, or a damaged one ({len(data):,} bytes)")
    return np.asarray(image, np.uint8)


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files of a folder, by ending, in name order; not of its sub-folders.

    Raises:
        CameraError: the folder cannot be read, or holds no picture.
    """
    try:
        paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in PICTURES)
    except OSError as error:
        raise CameraError(f"{os.fspath(folder)}: cannot be read: {error.strerror or error}") from error
    if not paths:
        raise CameraError(
            f"{os.fspath(folder)}: no pictures in this folder (endings {', '.join(sorted(PICTURES))})"
        )
    return paths


class PictureFolder(OnDemandCamera):
    """A camera over picture files; one that cannot be read is a fault, and the next one follows."""

    def __init__(
        self, name: str, paths: Sequence[Path], *, loop: bool = False, on_state: OnState | None = None
    ) -> None:
        super().__init__(name, length=None if loop else len(paths), on_state=on_state)
        self.paths = list(paths)
        self._loop = loop

    def _read(self) -> Iterator[Frame]:
        """Frames in name order; ``source_id`` is the picture's path."""
        missed = number = 0
        while True:
            readable = 0
            for path in self.paths:
                try:
                    image = read_image(path)
                except CameraError as error:
                    if str(error) not in self.faults:  # once, however often the folder is gone through
                        self.faults.append(str(error))
                        log.warning("%s; going on with the next picture", error)
                    missed += 1
                else:
                    yield Frame(image, number, time.monotonic_ns(), None, str(path), missed)
                    missed = 0
                    readable += 1
                number += 1
            if not self._loop or not readable:
                return


def open_pictures(request: Request) -> PictureFolder:
    """A picture or a folder of them; see ``open_camera``."""
    request.refuse(size=request.size, fps=request.fps)
    options = request.read(PictureOptions)
    path = Path(request.source)
    paths = list_pictures(path) if path.is_dir() else [path]
    return PictureFolder(request.name or request.source, paths, loop=options.loop, on_state=request.on_state)
