"""From a source's text to its camera."""

from __future__ import annotations

import os
from pathlib import Path

from edgesmith.sdk.cameras.base import Camera
from edgesmith.sdk.cameras.opencv import AttachedCamera, VideoFile
from edgesmith.sdk.cameras.pictures import PICTURES, PictureFolder, list_pictures
from edgesmith.sdk.errors import CameraError


def open_camera(source: str | int | os.PathLike[str]) -> Camera:
    """Open a source of frames.

    Args:
        source: ``0`` or ``/dev/video0`` (an attached camera), a video file, a picture, or a folder of
            pictures.

    Raises:
        CameraError: there is no such source, or it cannot be opened; the message says which.
    """
    text = str(source) if isinstance(source, int) else os.fspath(source)
    if text.isdecimal():
        return AttachedCamera(int(text))
    if text.startswith("/dev/"):
        return AttachedCamera(text)
    if "://" in text:
        scheme = text.split("://")[0]
        raise CameraError(
            f"sources of kind {scheme}:// are not supported: use a file, a folder or a camera number"
        )
    path = Path(text)
    if path.is_dir():
        return PictureFolder(text, list_pictures(path))
    if not path.exists():
        raise CameraError(f"{text}: there is no such file, folder or camera")
    if path.suffix.lower() in PICTURES:
        return PictureFolder(text, [path])
    return VideoFile(path)
