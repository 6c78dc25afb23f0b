"""Uploaded pictures: looked at before they are decoded.

A few hundred bytes of PNG can claim a billion pixels. The size stands at the head of every format that is
taken here, so it is read first, and what is too large is never handed to a decoder.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.serve.refusal import Refusal

KINDS = "JPEG, PNG, WebP or BMP"
_MOST_SEGMENTS = 4096
_PNG = b"\x89PNG\r\n\x1a\n"
# Markers without a length: TEM, RST0 to RST7.
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
# Start of frame: all of C0 to CF but DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels by the head of the file, as it is stored (EXIF may turn it later).

    Raises:
        Refusal: 415 where it is no picture of a known kind, 400 where it is cut off or contradicts itself.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(_PNG):
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith(b"BM"):
            return _bmp(data)
    except (struct.error, IndexError) as error:
        raise Refusal(400, "the picture ends before its size is told") from error
    raise Refusal(415, f"the body is no picture of a kind that is taken here: {KINDS}")


def decode_picture(data: bytes) -> NDArray[np.uint8]:
    """The picture as BGR uint8 ``(H, W, 3)``, as :func:`~edgesmith.sdk.cameras.read_image` gives a file's.

    Its size is to be checked before (:func:`picture_size`).

    Raises:
        Refusal: 400, it cannot be decoded.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise Refusal(400, f"the picture cannot be decoded: {error.err}") from error
    if image is None:
        raise Refusal(400, "the picture is damaged and cannot be decoded")
    return np.asarray(image, np.uint8)


def _jpeg(data: bytes) -> tuple[int, int]:
    """ISO/IEC 10918-1, annex B: segments up to the first scan; a cut-off file has no EOI after it."""
    at, size = 2, None
    for _ in range(_MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0:
            break
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0 or marker in _BARE:
            continue
        if marker == 0xDA and size is not None:
            if data.find(b"\xff\xd9", at) < 0:
                raise Refusal(400, "the picture is cut off: the JPEG has no end marker")
            return size
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES and size is None:
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = (width, height)
        at += max(length, 2)
    raise Refusal(400, "the picture is damaged: the JPEG has no frame and scan")


def _png(data: bytes) -> tuple[int, int]:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise Refusal(400, "the picture is damaged: the PNG does not begin with its header")
    if data.rfind(b"IEND") < 0:
        raise Refusal(400, "the picture is cut off: the PNG has no end chunk")
    return width, height


def _webp(data: bytes) -> tuple[int, int]:
    """RFC 9649: the canvas of the extended format, or the one frame of the simple ones."""
    (claimed,) = struct.unpack_from("<I", data, 4)
    if claimed + 8 > len(data):
        raise Refusal(400, "the picture is cut off: the WebP is shorter than it says")
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise Refusal(400, "the picture is damaged: the WebP holds no known frame")


def _bmp(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return abs(width), abs(height)
