"""A moving picture that says which frame it is: for tests of cameras, loops and sinks."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.base import Frame, SupervisedCamera
from edgesmith.sdk.cameras.book import OnState
from edgesmith.sdk.cameras.ondemand import OnDemandCamera
from edgesmith.sdk.cameras.options import PatternOptions
from edgesmith.sdk.cameras.request import Request
from edgesmith.sdk.cameras.session import Grab, Link, Session
from edgesmith.sdk.errors import ConfigError

COLUMNS = 40  # blocks in a line: 32 bits of the number, 8 of its checksum
LINES = 12  # a line of blocks is a twelfth of the picture high
SMALLEST = (80, 48)  # below this a block is under two pixels wide
DARK, LIGHT = 96, 160  # a block between the two is not read: the picture is not ours, or too damaged


def _checksum(number: int) -> int:
    """CRC-8 (polynomial 0x07) over four bytes; its start makes all-black and all-white blocks invalid."""
    crc = 0xA5
    for byte in number.to_bytes(4, "big"):
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07 if crc & 0x80 else crc << 1) & 0xFF
    return crc


def draw_number(image: NDArray[np.uint8], number: int, *, line: int = 0) -> None:
    """Write a number into a picture, in place, as black and white blocks over its whole width.

    Args:
        image: uint8 ``(H, W)`` or ``(H, W, C)``, at least 80 x 48.
        number: modulo 2**32.
        line: which line of blocks from the top, 0..11.
    """
    height, width = image.shape[:2]
    number &= 0xFFFFFFFF
    code = number << 8 | _checksum(number)
    bits = np.array([code >> (COLUMNS - 1 - n) & 1 for n in range(COLUMNS)], np.uint8) * 255
    row = bits[np.arange(width) * COLUMNS // width]
    band = image[line * height // LINES : (line + 1) * height // LINES]
    band[:] = row if image.ndim == 2 else row[:, None]


def _middle(block: int, length: int, count: int) -> slice:
    """The inner pixels of one of ``count`` blocks along ``length`` pixels: its edges are blurred."""
    start = math.ceil((block + 0.3) * length / count)
    return slice(start, max(int((block + 0.7) * length / count), start + 1))


def read_number(image: NDArray[np.uint8], *, line: int = 0) -> int | None:
    """The number that ``draw_number`` wrote, or None where there is none or it cannot be trusted.

    The whole picture has to be there; it may have been scaled, compressed (H.264, JPEG) or turned grey.

    Args:
        image: uint8 ``(H, W)`` or ``(H, W, C)``.
        line: which line of blocks from the top, 0..11.
    """
    height, width = image.shape[:2]
    if width < COLUMNS or height < LINES:
        return None
    band = image[_middle(line, height, LINES)]
    middle = band.reshape(len(band), width, -1).mean(axis=(0, 2))
    code = 0
    for n in range(COLUMNS):
        value = middle[_middle(n, width, COLUMNS)].mean()
        if DARK < value < LIGHT:
            return None
        code = code << 1 | int(value >= LIGHT)
    number, checksum = code >> 8, code & 0xFF
    return number if checksum == _checksum(number) else None


@functools.lru_cache(maxsize=8)
def _background(width: int, height: int) -> NDArray[np.uint8]:
    """Twice as wide as the picture: a window that slides over it moves without a seam."""
    x = np.abs(np.arange(2 * width) % width * 2 - width) * 160 // width + 40
    y = np.arange(height) * 120 // height
    image = np.empty((height, 2 * width, 3), np.uint8)
    image[..., 0] = x
    image[..., 1] = y[:, None] + 60
    image[..., 2] = 220 - x
    image.flags.writeable = False
    return image


def pattern_image(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Picture of the pattern: a sliding background, a box that crosses it, and its number on line 0.

    Args:
        number: of the frame; the same number gives the same picture.
        size: ``(width, height)``.

    Returns:
        BGR uint8 ``(H, W, 3)``.
    """
    width, height = size
    offset = number * 3 % width
    image = _background(width, height)[:, offset : offset + width].copy()
    side = max(height // 6, 4)
    left = number * 5 % max(width - side, 1)
    top = height // 3 + number * 2 % max(height // 2 - side, 1)
    image[top : top + side, left : left + side] = (30, 40, 230)
    draw_number(image, number)
    return image


def check_size(size: tuple[int, int]) -> None:
    """Refuse a picture in which the number could not be read.

    Raises:
        ConfigError: it is smaller than 80 x 48.
    """
    if size[0] < SMALLEST[0] or size[1] < SMALLEST[1]:
        raise ConfigError(
            f"test pattern of {size[0]}x{size[1]}: it needs {SMALLEST[0]}x{SMALLEST[1]} at least"
        )


def pattern_session(size: tuple[int, int], fps: float, frames: int | None, loop: bool) -> Session:
    """The pattern in real time; a picture whose moment has passed is still given, late, as a camera would."""

    def run(link: Link) -> None:
        started = time.monotonic_ns()
        number = 0
        while frames is None or loop or number < frames:
            due = started + int(number * 1e9 / fps)
            if link.wait((due - time.monotonic_ns()) / 1e9):
                return
            image = pattern_image(number % frames if frames else number, size)
            link.put(Grab(image, source_ns=due - started))
            number += 1

    return run


class PatternOnDemand(OnDemandCamera):
    """The pattern as fast as it is asked."""

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        fps: float,
        options: PatternOptions,
        on_state: OnState | None = None,
    ) -> None:
        super().__init__(name, fps=fps, length=None if options.loop else options.frames, on_state=on_state)
        self._size = size
        self._options = options
        self._number = 0

    def _read(self) -> Iterator[Frame]:
        frames, loop = self._options.frames, self._options.loop
        fps = self.fps or 1.0
        while frames is None or loop or self._number < frames:
            number = self._number
            self._number += 1
            image = pattern_image(number % frames if frames else number, self._size)
            yield Frame(image, number, time.monotonic_ns(), int(number * 1e9 / fps), self.name)


def open_pattern(request: Request) -> SupervisedCamera:
    """The test pattern; ``size``, ``fps`` and the options may stand in its address. See ``open_camera``."""
    text = request.source.partition(":")[2].removeprefix("//").removeprefix("?")
    extra = dict(parse_qsl(text, keep_blank_values=True))
    if text and not extra:
        raise ConfigError(f"{request.shown}: write testpattern://?size=640x480&fps=30")
    size = request.size or _size_of(extra.pop("size", "640x480"), request.shown)
    fps = request.fps or _rate_of(extra.pop("fps", "30"), request.shown)
    check_size(size)
    options = request.read(PatternOptions, extra=extra)
    if not options.realtime:
        return PatternOnDemand(request.name or request.shown, size, fps, options, request.on_state)
    wanted = dataclasses.replace(request, size=size, fps=fps)
    session = pattern_session(size, fps, options.frames, options.loop)
    return wanted.live(session, options, usual_frozen_ms=0, length=None if options.loop else options.frames)


def _size_of(text: str, shown: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"{shown}: size is WIDTHxHEIGHT, such as 640x480, not {text!r}")
    return int(width), int(height)


def _rate_of(text: str, shown: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 10_000:
        raise ConfigError(f"{shown}: fps is a rate in frames a second, not {text!r}")
    return rate
