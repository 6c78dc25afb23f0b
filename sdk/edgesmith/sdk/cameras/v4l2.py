"""What an attached camera offers, asked of the kernel (Video4Linux2's enumeration calls)."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE
DISCRETE = 1  # V4L2_FRMSIZE_TYPE_DISCRETE, V4L2_FRMIVAL_TYPE_DISCRETE
MOST = 256  # a driver that never says "no more" must not hold us


def _request(number: int, size: int) -> int:
    """The ioctl number _IOWR('V', number, size)."""
    return 3 << 30 | size << 16 | ord("V") << 8 | number


FORMATS, SIZES, INTERVALS = _request(2, 64), _request(74, 44), _request(75, 52)


def _enumerate(file: int, request: int, size: int, prefix: tuple[int, ...]) -> Iterator[bytes]:
    """Answers of an enumeration, by rising index, until the driver says that there is no more."""
    for index in range(MOST):
        head = struct.pack(f"={1 + len(prefix)}I", index, *prefix)
        buffer = bytearray(head.ljust(size, b"\0"))
        try:
            fcntl.ioctl(file, request, buffer)
        except OSError:  # EINVAL is the end of the list, ENOTTY a device that has none
            return
        yield bytes(buffer)


def _rates(file: int, code: int, width: int, height: int) -> list[str]:
    rates = []
    for answer in _enumerate(file, INTERVALS, 52, (code, width, height)):
        kind, numerator, denominator = struct.unpack_from("=3I", answer, 16)
        if kind == DISCRETE and numerator:
            rates.append(f"{denominator / numerator:g}")
    return rates


def _sizes(file: int, code: int) -> Iterator[tuple[int, int]]:
    for answer in _enumerate(file, SIZES, 44, (code,)):
        kind, *numbers = struct.unpack_from("=7I", answer, 8)
        if kind == DISCRETE:
            yield numbers[0], numbers[1]
        else:  # a range: its ends say enough
            yield numbers[0], numbers[3]
            yield numbers[1], numbers[4]
            return


def offers(device: int | str) -> tuple[str, ...]:
    """Formats of a camera such as ``MJPG 1280x720 at 30, 15``; empty where it cannot be asked."""
    path = f"/dev/video{device}" if isinstance(device, int) or device.isdecimal() else device
    try:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return ()
    try:
        found = []
        for answer in _enumerate(file, FORMATS, 64, (CAPTURE,)):
            (code,) = struct.unpack_from("=I", answer, 44)
            fourcc = code.to_bytes(4, "little").decode("latin-1").strip()
            for width, height in _sizes(file, code):
                rates = _rates(file, code, width, height)
                found.append(f"{fourcc} {width}x{height}" + (f" at {', '.join(rates)}" if rates else ""))
        return tuple(dict.fromkeys(found))
    finally:
        os.close(file)
