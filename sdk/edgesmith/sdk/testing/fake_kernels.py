"""What the CUDA kernels compute, in numpy, on the memory of a :class:`~.fake_cuda.FakeCuda`.

Written from the kernel's contract (its job and its arguments), not from the code that launches it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Memory(Protocol):
    """The part of a FakeCuda that a kernel needs."""

    def read(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """A view of device memory."""
        ...


Kernel = Callable[[Memory, tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]
_JOB_BYTES = 72
_LUMA = np.array([1868, 9617, 4899])
_BGR, _RGB, _Y = range(3)


def _prepare(
    kind: type[np.generic],
    cuda: Memory,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: tuple[Any, ...],
) -> None:
    jobs, out, table_at, rows, columns, order, pad, plane, step, image = arguments
    if grid[0] * block[0] < columns or grid[1] * block[1] < rows:
        raise ValueError("the launch does not cover the output")
    size, channels = np.dtype(kind).itemsize, 1 if order == _Y else 3
    table = cuda.read(table_at, channels * 256 * size).view(kind).reshape(channels, 256)
    for number in range(grid[2]):
        words = cuda.read(jobs + number * _JOB_BYTES, _JOB_BYTES)
        pixels = np.full((rows, columns, channels), pad)
        top, left, bottom, right = words[40:].view("<i4")[3:7]
        pixels[top:bottom, left:right] = _resampled(cuda, words, order)
        if order == _RGB:
            pixels = pixels[..., ::-1]
        target = cuda.read(out + number * image * size, image * size).view(kind)
        places = (np.arange(rows)[:, None] * columns + np.arange(columns)) * step
        for channel in range(channels):
            target[places + channel * plane] = table[channel][pixels[..., channel]]


def _resampled(cuda: Memory, words: NDArray[np.uint8], order: int) -> NDArray[np.int64]:
    source, row_start, row_weights, column_start, column_weights = (int(n) for n in words[:40].view("<u8"))
    pitch, row_taps, column_taps, top, left, bottom, right, _ = (int(n) for n in words[40:].view("<i4"))
    down = _matrix(cuda, row_start, row_weights, bottom - top, row_taps)
    across = _matrix(cuda, column_start, column_weights, right - left, column_taps)
    height, width = down.shape[1], across.shape[1]
    # The last row ends with its last pixel.
    flat = cuda.read(source, (height - 1) * pitch + 3 * width)
    frame = np.lib.stride_tricks.as_strided(flat, (height, width, 3), (pitch, 3, 1))
    values = frame.astype(np.float64)
    if order == _Y:
        values = ((frame.astype(np.int64) @ _LUMA + 8192) >> 14)[..., None].astype(np.float64)
    lines = (down @ values.reshape(height, -1)).reshape(len(down), width, -1)
    pixels: NDArray[np.int64] = np.clip(np.rint(np.matmul(across, lines)), 0, 255).astype(np.int64)
    return pixels


def _matrix(cuda: Memory, start_at: int, weights_at: int, count: int, taps: int) -> NDArray[np.float64]:
    """The taps of one axis as a matrix ``(count, size)``, as large as they reach."""
    start = cuda.read(start_at, 4 * count).view("<i4").astype(np.int64)
    weights = cuda.read(weights_at, 4 * count * taps).view("<f4").reshape(count, taps)
    matrix = np.zeros((count, int(start.max()) + taps))
    for tap in range(taps):
        matrix[np.arange(count), start + tap] += weights[:, tap]
    return matrix


KERNELS: dict[str, Kernel] = {
    "prepare_u8": partial(_prepare, np.uint8),
    "prepare_u16": partial(_prepare, np.uint16),
    "prepare_u32": partial(_prepare, np.uint32),
}
