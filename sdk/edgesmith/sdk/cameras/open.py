"""From a source's text to its camera."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from edgesmith.sdk.cameras.address import without_credentials
from edgesmith.sdk.cameras.base import SupervisedCamera
from edgesmith.sdk.cameras.book import OnState
from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.cameras.request import Request
from edgesmith.sdk.errors import CameraError, ConfigError

# What opens each kind of source, by import path: a kind's libraries are loaded when it is asked for.
HERE = "edgesmith.sdk.cameras"
SCHEMES = {
    "csi": f"{HERE}.gstreamer:open_csi",
    "gst": f"{HERE}.gstreamer:open_pipeline",
    "http": f"{HERE}.mjpeg:open_mjpeg",
    "https": f"{HERE}.mjpeg:open_mjpeg",
    "rtsp": f"{HERE}.gstreamer:open_rtsp",
    "rtsps": f"{HERE}.gstreamer:open_rtsp",
    "test": f"{HERE}.testpattern:open_pattern",
    "testpattern": f"{HERE}.testpattern:open_pattern",
}
DEVICE = f"{HERE}.opencv:open_attached"
VIDEO = f"{HERE}.opencv:open_video"
STILLS = f"{HERE}.pictures:open_pictures"


def open_camera(
    source: str | int | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    name: str | None = None,
    on_state: OnState | None = None,
    **options: Any,
) -> SupervisedCamera:
    """Open a source of frames.

    | source | what it is | options of its own |
    |---|---|---|
    | ``0``, ``/dev/video0`` | an attached camera | ``fourcc`` |
    | ``csi://0`` | a camera on the board's connector | ``flip`` |
    | ``rtsp://host/path`` (rtsps) | a network camera | ``transport``, ``latency_ms`` |
    | ``http://host/path`` (https) | a network camera that sends MJPEG | |
    | ``gst:PIPELINE`` | any GStreamer pipeline, without its sink | |
    | ``test:`` | a moving picture that carries its number | ``frames``, ``loop``, ``realtime`` |
    | a video file | every frame; with ``realtime`` as a camera | ``loop``, ``realtime`` |
    | a picture, a folder of them | each picture | ``loop`` |

    All but pictures also take the options of live sources: ``reconnect``, ``stall_ms``, ``frozen_ms``,
    ``open_s``, ``wait`` and ``backoff`` (see ``LiveOptions``). The test pattern takes its options in the
    address, too: ``testpattern://?size=640x480&fps=30&frames=90``.

    Args:
        source: as in the table.
        size: ``(width, height)`` to ask for; what comes is compared with it.
        fps: frames a second to ask for; likewise.
        name: what to call it in messages and results; its address without credentials where left out.
        on_state: called with a ``CameraStatus`` at every change of state, from a thread of the camera's
            own; it has to return soon, and may call ``close()``.
        options: of the kind of source.

    Raises:
        CameraError: there is no such source, or it cannot be opened; ``reason`` and the message say why.
        CameraFormatError: it does not give the size or rate that was asked for; ``offers`` lists what it has.
        ConfigError: an option is unknown for this kind, or cannot be used.
        MissingExtraError: GStreamer's Python bindings are needed and not there.
    """
    text = str(source) if isinstance(source, int) else os.fspath(source)
    shown = without_credentials(text)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"{shown}: size is (width, height), both over 0, not {size}")
    if fps is not None and not 0 < fps < 10_000:
        raise ConfigError(f"{shown}: fps is a rate in frames a second, not {fps}")
    request = Request(text, shown, name, (size[0], size[1]) if size else None, fps, on_state, options)
    module, _, function = _opener(text, shown).partition(":")
    camera: SupervisedCamera = getattr(importlib.import_module(module), function)(request)
    return camera


def _opener(text: str, shown: str) -> str:
    if text.isdecimal() or text.startswith("/dev/"):
        return DEVICE
    scheme, mark, _rest = text.partition(":")
    if mark and scheme.lower() in SCHEMES:
        return SCHEMES[scheme.lower()]
    if "://" in text:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise CameraError(
            f"{shown}: sources of kind {scheme}:// are not supported: use {known}, a file, a folder or a "
            "camera number",
            reason="not-supported",
        )
    path = Path(text)
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long for a name, or a zero byte in it
        folder = there = False
    if folder:
        return STILLS
    if not there:
        raise CameraError(f"{shown}: there is no such file, folder or camera", reason="not-found")
    return STILLS if path.suffix.lower() in PICTURES else VIDEO
