"""Launches the preprocess kernel: frames go up as they are, the network's input appears on the GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cuda.buffers import Buffer, Buffers
from edgesmith.sdk.cuda.compile import KERNELS, PORTABLE, kernel_image
from edgesmith.sdk.cuda.context import Gpu, cuda_error
from edgesmith.sdk.cuda.taps import axis_taps
from edgesmith.sdk.errors import CameraFormatError
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import Geometry, frame_size, geometry_of, pixel_tables

log = logging.getLogger(__name__)
BLOCK = (32, 8, 1)
ORDERS = {"bgr": 0, "rgb": 1, "y": 2}
ARGUMENTS = "PPPiiiiiii"  # jobs, out, table, rows, columns, order, pad, plane, step, image
# `Job` of kernels/prepare.cu.
JOB = np.dtype(
    [
        ("source", "<u8"),
        ("row_start", "<u8"),
        ("row_weights", "<u8"),
        ("column_start", "<u8"),
        ("column_weights", "<u8"),
        ("pitch", "<i4"),
        ("row_taps", "<i4"),
        ("column_taps", "<i4"),
        ("top", "<i4"),
        ("left", "<i4"),
        ("bottom", "<i4"),
        ("right", "<i4"),
        ("unused", "<i4"),
    ]
)


def value_table(preprocess: Preprocess, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """What each of the 256 pixel values becomes, channel by channel, as the bytes of ``dtype``."""
    if preprocess.layout == "nhwc":
        table = np.tile(np.arange(256), (preprocess.channels, 1)).astype(dtype)
    else:
        table = np.stack(pixel_tables(preprocess)).astype(dtype)
    return np.ascontiguousarray(table).view(np.uint8).reshape(-1)


def launch_arguments(preprocess: Preprocess, rows: int, columns: int) -> tuple[int, ...]:
    """The numbers of :data:`ARGUMENTS` after the three pointers, for an input of ``rows`` x ``columns``."""
    channels = preprocess.channels
    plane, step = (rows * columns, 1) if preprocess.layout == "nchw" else (1, channels)
    return (rows, columns, ORDERS[preprocess.color], preprocess.pad, plane, step, rows * columns * channels)


def grid_of(rows: int, columns: int, count: int) -> tuple[int, int, int]:
    """Blocks of the launch: a thread for each output pixel."""
    return (-(-columns // BLOCK[0]), -(-rows // BLOCK[1]), count)


def job_of(
    preprocess: Preprocess, geometry: Geometry, *, source: int, tables: int
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The kernel's job for frames of one size, and the bytes that have to lie at address ``tables``."""
    down, across = axis_taps(preprocess, geometry)
    top, left = max(0, int(geometry.offset_y)), max(0, int(geometry.offset_x))
    parts = [down.start, across.start, down.weights.reshape(-1), across.weights.reshape(-1)]
    content = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
    at = tables + np.cumsum([0, *(len(part) for part in content)])
    job = np.zeros(1, JOB)
    job["source"], job["pitch"] = source, 3 * geometry.width
    job["row_start"], job["column_start"], job["row_weights"], job["column_weights"] = at[:4]
    job["row_taps"], job["column_taps"] = down.width, across.width
    job["top"], job["left"] = top, left
    job["bottom"], job["right"] = top + len(down.start), left + len(across.start)
    return job, np.concatenate(content)


class _Place:
    """One position of the batch: its frame, its tables, and for which size of frame they are."""

    def __init__(self) -> None:
        self.frame: Buffer | None = None
        self.tables: Buffer | None = None
        self.size: tuple[int, int] | None = None
        self.geometry: Geometry | None = None


class FramePreparer:
    """The kernel with its memory, for inputs of one number format.

    Make it, use it and close it inside :meth:`Gpu.current`; work goes into ``stream`` and the caller
    waits for it before the next call.

    Args:
        gpu: where it runs.
        stream: of :meth:`Gpu.stream`.
        preprocess: what the network was trained with.
        dtype: of the network's input: float32, float16 or uint8.

    Raises:
        CudaError: the kernel does not load, or there is no memory.
    """

    def __init__(self, gpu: Gpu, stream: Any, preprocess: Preprocess, dtype: np.dtype[Any]) -> None:
        self.preprocess = preprocess
        self._gpu, self._stream = gpu, stream
        self._buffers = Buffers(gpu)
        self._places: list[_Place] = []
        self._jobs: Buffer | None = None
        self._stale = True
        self._address, self._size = 0, (0, 0)
        # The module stays referenced: it is unloaded with its last reference.
        self._module = _load(gpu)
        try:
            self._kernel = self._module.get_function(KERNELS[dtype.itemsize])
            self._kernel.prepare(ARGUMENTS)
            table = value_table(preprocess, dtype)
            self._table = self._buffers.take(len(table))
            self._table.host[:] = table
            self._table.upload(stream)
            stream.synchronize()
        except BaseException:
            self._buffers.close()
            raise

    def place(self, frames: Sequence[NDArray[np.uint8]], address: int) -> list[Geometry]:
        """Send frames up and write them, prepared, to ``address`` one after the other; does not wait.

        Raises:
            CameraFormatError: a frame has another shape, type or memory layout.
        """
        geometries = [self._geometry(at, frame) for at, frame in enumerate(frames)]
        rows, columns = geometries[0].rows, geometries[0].columns
        self._reserve(len(frames))
        for at, (frame, geometry) in enumerate(zip(frames, geometries, strict=True)):
            self._send(at, frame, geometry)
        assert self._jobs is not None
        if self._stale:
            self._jobs.upload(self._stream)
            self._stale = False
        self._address, self._size = address, (rows, columns)
        self.launch(len(frames))
        return geometries

    def launch(self, count: int) -> None:
        """The kernel alone, once more on the first ``count`` frames that were placed last."""
        assert self._jobs is not None
        self._kernel.prepared_async_call(
            grid_of(*self._size, count), BLOCK, self._stream,
            self._jobs.address, self._address, self._table.address,
            *launch_arguments(self.preprocess, *self._size),
        )  # fmt: skip

    def close(self) -> None:
        """Free everything."""
        self._places, self._jobs = [], None
        self._kernel = self._module = None
        self._buffers.close()

    def _geometry(self, at: int, frame: NDArray[np.uint8]) -> Geometry:
        size = frame_size(frame)
        if not frame.flags.c_contiguous:
            raise CameraFormatError(
                "the GPU takes frames whose rows lie one after the other: pass np.ascontiguousarray(frame)"
            )
        known = self._places[at] if at < len(self._places) else None
        if known is not None and known.size == size and known.geometry is not None:
            return known.geometry
        return geometry_of(self.preprocess, *size)

    def _reserve(self, count: int) -> None:
        if self._jobs is not None and self._jobs.nbytes >= count * JOB.itemsize:
            return
        wider = self._buffers.take(count * JOB.itemsize)
        if self._jobs is not None:
            wider.host[: self._jobs.nbytes] = self._jobs.host
            self._buffers.give_back(self._jobs)
        self._jobs, self._stale = wider, True
        self._places += [_Place() for _ in range(count - len(self._places))]

    def _send(self, at: int, frame: NDArray[np.uint8], geometry: Geometry) -> None:
        place = self._places[at]
        if place.size != frame.shape[:2]:
            self._fit(at, place, frame, geometry)
        assert place.frame is not None
        np.copyto(place.frame.host[: frame.nbytes], frame.reshape(-1))
        place.frame.upload(self._stream, frame.nbytes)

    def _fit(self, at: int, place: _Place, frame: NDArray[np.uint8], geometry: Geometry) -> None:
        """Another size of frame: its memory, its tables, its job."""
        place.size = None  # what stands there is worth nothing until all of it is new
        place.frame = self._at_least(place.frame, frame.nbytes)
        _, content = job_of(self.preprocess, geometry, source=0, tables=0)
        place.tables = self._at_least(place.tables, len(content))
        job, content = job_of(
            self.preprocess, geometry, source=place.frame.address, tables=place.tables.address
        )
        place.tables.host[: len(content)] = content
        place.tables.upload(self._stream, len(content))
        assert self._jobs is not None
        self._jobs.host[at * JOB.itemsize : (at + 1) * JOB.itemsize] = job.view(np.uint8)
        self._stale = True
        place.size, place.geometry = (frame.shape[0], frame.shape[1]), geometry

    def _at_least(self, buffer: Buffer | None, nbytes: int) -> Buffer:
        if buffer is not None and buffer.nbytes >= nbytes:
            return buffer
        # The new one first: without memory for it the old one still stands.
        larger = self._buffers.take(nbytes)
        if buffer is not None:
            self._buffers.give_back(buffer)
        return larger


def _load(gpu: Gpu) -> Any:
    """The kernel's module: of what was compiled here, else of the portable assembly."""
    image = kernel_image(gpu.facts.compute_capability)
    portable = PORTABLE.read_bytes()
    try:
        return gpu.driver.module_from_buffer(image)
    except gpu.driver.Error as error:
        if image == portable:
            raise cuda_error("the preprocess kernel does not load", str(error)) from error
        log.warning("the kernel that was compiled here does not load (%s): the portable one serves", error)
    return gpu.driver.module_from_buffer(portable)
