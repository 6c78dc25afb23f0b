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


class PictureFolder:
    """A camera over picture files; one that cannot be read is a fault, and the next one follows."""

    fps: float | None = None

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name = name
        self.paths = list(paths)
        self.length: int | None = len(self.paths)
        self.faults: list[str] = []

    def frames(self) -> Iterator[Frame]:
        """Frames in name order; ``source_id`` is the picture's path."""
        missed = 0
        for number, path in enumerate(self.paths):
            try:
                image = read_image(path)
            except CameraError as error:
                self.faults.append(str(error))
                log.warning("%s; going on with the next picture", error)
                missed += 1
                continue
            yield Frame(image, number, time.monotonic_ns(), None, str(path), missed)
            missed = 0

    def close(self) -> None:
        """Nothing is held open."""
