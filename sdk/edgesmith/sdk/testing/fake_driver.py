"""The part of ``pycuda.driver`` that edgesmith uses, over a :class:`~.fake_cuda.FakeCuda`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.testing.fake_kernels import KERNELS

Work = Callable[[], None]
# The FakeCuda that all of this belongs to; it imports this file, so its type cannot be named here.
Cuda = Any
_ALIGNMENT = 256
_DEVICEMAP = 2
_INTEGRATED = 18


class Error(Exception):
    """``pycuda.driver.Error``."""


class LogicError(Error):
    """``pycuda.driver.LogicError``."""


class MemoryError_(Error):
    """``pycuda.driver.MemoryError``, which is no MemoryError of Python's."""


class Block:
    """Memory at a real address, aligned as CUDA aligns it."""

    def __init__(self, nbytes: int, *, pinned: bool, mapped: bool) -> None:
        self._whole = np.full(nbytes + _ALIGNMENT, 0xA5, np.uint8)  # new memory holds anything but zeros
        start = -self._whole.ctypes.data % _ALIGNMENT
        self.data: NDArray[np.uint8] = self._whole[start : start + nbytes]
        self.address = self.data.ctypes.data
        self.pinned, self.mapped, self.live = pinned, mapped, True


class Context:
    """``Context``: a retained primary one."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.valid = cuda, True
        cuda.retained += 1

    def push(self) -> None:
        """Make it this thread's."""
        if not self.valid:
            raise LogicError("cuCtxPushCurrent failed: invalid device context")
        self._cuda.stack().append(self)

    def detach(self) -> None:
        """Give it back; where it is this thread's, it is taken off."""
        if not self.valid:
            raise LogicError(
                "context::detach failed: invalid device context - cannot detach from invalid context"
            )
        self.valid = False
        self._cuda.retained -= 1
        stack = self._cuda.stack()
        if stack and stack[-1] is self:
            stack.pop()


class FakeStream:
    """``Stream``."""

    def __init__(self, cuda: Cuda, flags: int = 0) -> None:
        cuda.called("cuStreamCreate")
        self._cuda, self.flags = cuda, flags
        self.pending: list[Work] = []
        self.recording: list[Work] | None = None
        self.spoiled = False
        self.thread = 0
        self.handle = id(self)
        cuda.add_stream(self)

    def synchronize(self) -> None:
        """Do what was enqueued; the first error ends it, and what came after is lost."""
        self._cuda.check_thread()
        self._cuda.forbid_capture("cuStreamSynchronize")
        pending, self.pending = self.pending, []
        for work in pending:
            work()

    def is_done(self) -> bool:
        """Whether nothing is enqueued; not allowed in a capture."""
        self._cuda.check_thread()
        self._cuda.forbid_capture("cuStreamQuery")
        return not self.pending


class _Allocation:
    """``DeviceAllocation``."""

    def __init__(self, cuda: Cuda, block: Block) -> None:
        self._cuda, self._block = cuda, block

    def __int__(self) -> int:
        return self._block.address

    __index__ = __int__

    def free(self) -> None:
        """Give it back."""
        self._cuda.release(self._block)


class _HostAllocation:
    """``PagelockedHostAllocation``: the base of the array that ``pagelocked_empty`` gives."""

    def __init__(self, cuda: Cuda, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda, self._block = cuda, block
        self.__array_interface__ = {
            "shape": shape, "typestr": dtype.str, "data": (block.address, False), "version": 3,
        }  # fmt: skip

    def get_device_pointer(self) -> int:
        """The device's address of mapped memory."""
        if not self._block.mapped:
            raise LogicError("cuMemHostGetDevicePointer failed: invalid argument")
        return self._block.address

    def free(self) -> None:
        """Give it back."""
        self._cuda.release(self._block)


class _Function:
    """``Function``, launched by prepared calls."""

    def __init__(self, cuda: Cuda, name: str) -> None:
        self._cuda, self._name, self._format = cuda, name, ""

    def prepare(self, arg_types: str) -> _Function:
        """The types of the arguments, as of the module struct."""
        self._format = "".join(arg_types)
        return self

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, int, int], stream: FakeStream, *args: Any
    ) -> None:
        """Put a launch into the stream."""
        self._cuda.check_thread()
        given = struct.unpack(self._format, struct.pack(self._format, *args))
        threads = block[0] * block[1] * block[2]
        if not 1 <= threads <= 1024 or min(grid) < 1 or max(grid[1:]) > 65535:
            raise LogicError("cuLaunchKernel failed: invalid argument")
        kernel = KERNELS[self._name]
        self._cuda.enqueue(stream.handle, lambda: kernel(self._cuda, grid, block, given))


class _Module:
    """``Module``."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def get_function(self, name: str) -> _Function:
        """A kernel by name."""
        self._cuda.check_thread()
        if name not in KERNELS:
            raise LogicError("cuModuleGetFunction failed: named symbol not found")
        return _Function(self._cuda, name)


class _Device:
    """``Device``."""

    def __init__(self, cuda: Cuda, number: int) -> None:
        if number != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")
        self._cuda = cuda

    def name(self) -> str:
        """The GPU's name."""
        return str(self._cuda.name)

    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number."""
        major, minor = self._cuda.compute_capability
        return int(major), int(minor)

    def total_memory(self) -> int:
        """Bytes."""
        return int(self._cuda.memory_bytes)

    def get_attribute(self, attribute: int) -> int:
        """One attribute."""
        if attribute != _INTEGRATED:
            raise LogicError("cuDeviceGetAttribute failed: invalid argument")
        return int(self._cuda.integrated)

    def retain_primary_context(self) -> Context:
        """The primary context, not made current."""
        return Context(self._cuda)


class Driver:
    """The module ``pycuda.driver``. What it lacks, edgesmith does not use."""

    Error, LogicError, MemoryError = Error, LogicError, MemoryError_
    device_attribute = SimpleNamespace(INTEGRATED=_INTEGRATED)
    host_alloc_flags = SimpleNamespace(DEVICEMAP=_DEVICEMAP)

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._begun = False
        self.Context = SimpleNamespace(pop=self._pop)

    def init(self) -> None:
        """Has to come first."""
        self._begun = True

    def get_driver_version(self) -> int:
        """Such as 12060."""
        return int(self._cuda.version)

    def Device(self, number: int) -> _Device:
        """A GPU by number."""
        if not self._begun:
            raise LogicError("cuDeviceGet failed: initialization error")
        return _Device(self._cuda, number)

    def Stream(self, flags: int = 0) -> FakeStream:
        """A new stream."""
        return FakeStream(self._cuda, flags)

    def mem_alloc(self, nbytes: int) -> _Allocation:
        """Device memory."""
        return _Allocation(self._cuda, self._cuda.allocate(nbytes))

    def pagelocked_empty(
        self, shape: int | tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0
    ) -> NDArray[Any]:
        """Page-locked host memory, mapped where asked for."""
        sides, kind = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
        nbytes = int(np.prod(sides)) * kind.itemsize
        block = self._cuda.allocate(nbytes, pinned=True, mapped=bool(mem_flags & _DEVICEMAP))
        return np.asarray(_HostAllocation(self._cuda, block, sides, kind))

    def memcpy_htod_async(self, dest: int, src: NDArray[Any], stream: FakeStream) -> None:
        """Host to device, in the stream's order; the source is read when its turn comes."""
        self._copy("cuMemcpyHtoDAsync", dest, src, stream)
        flat = src.reshape(-1).view(np.uint8)
        self._cuda.enqueue(stream.handle, lambda: self._checked(src, lambda: self._cuda.write(dest, flat)))

    def memcpy_dtoh_async(self, dest: NDArray[Any], src: int, stream: FakeStream) -> None:
        """Device to host, in the stream's order."""
        self._copy("cuMemcpyDtoHAsync", src, dest, stream)
        flat = dest.reshape(-1).view(np.uint8)

        def copy() -> None:
            flat[...] = self._cuda.read(src, flat.size)

        self._cuda.enqueue(stream.handle, lambda: self._checked(dest, copy))

    def module_from_buffer(self, buffer: bytes) -> _Module:
        """Load code; the kernels themselves are those of :mod:`.fake_kernels`."""
        self._cuda.check_thread()
        if not buffer or not self._cuda.loads(buffer):
            raise LogicError("cuModuleLoadDataEx failed: device kernel image is invalid")
        return _Module(self._cuda)

    def _pop(self) -> None:
        if not self._cuda.stack():
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        self._cuda.stack().pop()

    def _copy(self, call: str, address: int, host: NDArray[Any], stream: FakeStream) -> None:
        self._cuda.check_thread()
        self._cuda.find(address, host.nbytes)
        if not host.flags.c_contiguous:
            raise ValueError("ndarray is not contiguous")
        if not self._cuda.is_pinned(host) and stream.recording is not None:
            self._cuda.forbid_capture(call)

    def _checked(self, host: NDArray[Any], copy: Work) -> None:
        """The copy, once it is sure that the host's side was not freed meanwhile."""
        self._cuda.is_pinned(host)
        copy()
