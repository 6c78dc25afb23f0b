"""Memory that the host and the GPU both know, owned in one place and freed together.

On a discrete GPU a buffer is page-locked host memory with device memory beside it, and copies run in
the stream. Where the GPU shares the board's memory (Jetson) it is one mapped allocation, and a copy is
nothing at all.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cuda.context import Gpu, cuda_error

log = logging.getLogger(__name__)


class Buffer:
    """``nbytes`` bytes: ``host`` is a uint8 view of the host's side, ``address`` the device's.

    Made by :meth:`Buffers.take`, freed by it too.
    """

    def __init__(self, gpu: Gpu, nbytes: int, *, host: bool = True, mapped: bool = True) -> None:
        self.nbytes = nbytes
        self.address = 0
        self.host: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._driver = gpu.driver
        self._pinned: Any = None
        self._device: Any = None
        # Words are read whole, and an empty allocation is an error.
        size = max(4, -(-nbytes // 4) * 4)
        try:
            if not host:
                self._device = self._driver.mem_alloc(size)
            elif mapped and gpu.facts.integrated:
                flags = self._driver.host_alloc_flags.DEVICEMAP
                self._pinned = self._driver.pagelocked_empty(size, np.uint8, mem_flags=flags)
            else:
                self._pinned = self._driver.pagelocked_empty(size, np.uint8)
                self._device = self._driver.mem_alloc(size)
            self.address = int(self._device or self._pinned.base.get_device_pointer())
        except BaseException:
            self.free()
            raise
        if self._pinned is not None:
            self.host = self._pinned[:nbytes]

    @property
    def mapped(self) -> bool:
        """True where host and device see the same bytes."""
        return self._device is None

    def upload(self, stream: Any, nbytes: int | None = None) -> None:
        """Copy from the host's side to the device's, in the stream's order."""
        if self._device is not None and nbytes != 0:
            self._driver.memcpy_htod_async(self.address, self.host[:nbytes], stream)

    def download(self, stream: Any) -> None:
        """Copy from the device's side to the host's, in the stream's order."""
        if self._device is not None and self.nbytes:
            self._driver.memcpy_dtoh_async(self.host, self.address, stream)

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The host's side as an array; it lives as long as the buffer."""
        count = int(np.prod(shape)) * dtype.itemsize
        return self.host[:count].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give both sides back; views of the host's side must not be used afterwards."""
        device, pinned = self._device, self._pinned
        self._device = self._pinned = None
        self.host, self.address = np.empty(0, np.uint8), 0
        try:
            if device is not None:
                device.free()
        finally:
            if pinned is not None:
                pinned.base.free()


class Buffers:
    """Owner of buffers: what it gave is freed by :meth:`close`, also when only a part could be had.

    Call everything inside :meth:`Gpu.current`.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._taken: list[Buffer] = []

    def take(self, nbytes: int, *, host: bool = True, mapped: bool = True) -> Buffer:
        """A new buffer.

        Args:
            nbytes: its size.
            host: False is device memory alone.
            mapped: False is device memory beside the host's also where the two share the board's: for
                what the GPU reads more than once, as its caches may leave mapped memory out.

        Raises:
            CudaError: there is no memory.
        """
        try:
            buffer = Buffer(self._gpu, nbytes, host=host, mapped=mapped)
        except self._gpu.driver.MemoryError as error:
            raise cuda_error(f"no memory for {nbytes} bytes on {self._gpu.facts.name}", str(error)) from error
        self._taken.append(buffer)
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Free one buffer now."""
        self._taken.remove(buffer)
        buffer.free()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._taken)

    def close(self) -> None:
        """Free all; the first error is raised once everything was tried."""
        failure: BaseException | None = None
        while self._taken:
            try:
                self._taken.pop().free()
            except self._gpu.driver.Error as error:
                failure = failure or error
        if failure is not None:
            raise failure
