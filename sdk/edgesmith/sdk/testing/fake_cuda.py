"""A GPU that is not there: CUDA's documented contract over host memory.

    cuda = FakeCuda(integrated=True)
    gpu = Gpu(driver=cuda.driver)            # cuda.driver stands where pycuda.driver stands
    capture(cuda.libcuda, ...)               # cuda.libcuda where libcuda.so.1 does

What the real one may forgive, this one does not:

- a call from a thread without a current context is an error, and so is a context left pushed
  (``cuda.leaks()``);
- streams run late: nothing that was enqueued has happened before its stream is waited for;
- memory that was freed stays known: its use is an error, as is a copy out of bounds;
- while a graph is captured, allocating, freeing, waiting and copies from ordinary memory are errors
  and spoil the capture.

Device addresses are real addresses of host memory, so that onnxruntime's CPU provider can work on them.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.testing.fake_driver import (
    Block,
    Context,
    Driver,
    Error,
    FakeStream,
    LogicError,
    MemoryError_,
    Work,
)
from edgesmith.sdk.testing.fake_libcuda import FakeLibcuda

__all__ = ["Error", "FakeCuda", "LogicError"]
_FREED = 0xCB  # what freed memory reads as, for whoever looks behind the fake's back


class FakeCuda:
    """The device. All addresses, streams, contexts and graphs belong to it.

    Args:
        name, compute_capability, integrated, memory_bytes, version: what the driver says of the GPU;
            ``version`` is the driver's number, such as 12060.
        graphs: False makes every capture fail at its end.
        loads: whether it takes the code of a module; by default every one.
    """

    def __init__(
        self,
        *,
        name: str = "Fake GPU",
        compute_capability: tuple[int, int] = (8, 7),
        integrated: bool = False,
        memory_bytes: int = 8 << 30,
        version: int = 12060,
        graphs: bool = True,
        loads: Callable[[bytes], bool] = lambda image: True,
    ) -> None:
        self.name, self.compute_capability, self.integrated = name, compute_capability, integrated
        self.memory_bytes, self.version, self.graphs, self.loads = memory_bytes, version, graphs, loads
        self.calls: Counter[str] = Counter()
        self.retained = 0
        self._failures: dict[str, list[int]] = {}
        self._lock = threading.RLock()
        self._blocks: dict[int, Block] = {}
        self._starts: list[int] = []
        self._threads: dict[int, list[Context]] = {}
        self._streams: dict[int, FakeStream] = {}
        self.driver = Driver(self)
        self.libcuda = FakeLibcuda(self)

    # --- what a fake TensorRT needs ---------------------------------------------------------------

    def read(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """A view of memory that the device can reach.

        Raises:
            LogicError: it was never allocated, was freed, or ends too soon.
        """
        block = self.find(address, nbytes)
        at = address - block.address
        return block.data[at : at + nbytes]

    def write(self, address: int, data: NDArray[Any]) -> None:
        """Change memory that the device can reach; errors as of :meth:`read`."""
        flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self.read(address, flat.size)[...] = flat

    def check_thread(self) -> None:
        """Raise LogicError where the calling thread has no current context."""
        stack = self._threads.get(threading.get_ident())
        if not stack or not stack[-1].valid:
            raise LogicError(
                "explicit_context_dependent failed: invalid device context - no currently active context?"
            )

    def is_capturing(self, stream: int) -> bool:
        """Whether a graph is being captured from the stream with that handle."""
        return self.stream(stream).recording is not None

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work into a stream: done when it is waited for, or kept in the graph that is captured."""
        target = self.stream(stream)
        (target.pending if target.recording is None else target.recording).append(work)

    # --- the rest of the device -------------------------------------------------------------------

    def fail(self, call: str, *numbers: int) -> None:
        """Let calls of this name fail as if memory had run out: the 1st, 2nd... counted from now."""
        self._failures[call] = [self.calls[call] + number for number in numbers or (1,)]

    def leaks(self) -> dict[str, int]:
        """What is still held, by kind; empty when all is well."""
        found = {
            "device allocations": sum(b.live and not b.pinned for b in self._blocks.values()),
            "pinned allocations": sum(b.live and b.pinned for b in self._blocks.values()),
            "graphs": self.libcuda.live,
            "retained contexts": self.retained,
            "pushed contexts": sum(len(stack) for stack in self._threads.values()),
        }
        return {kind: number for kind, number in found.items() if number}

    def called(self, call: str) -> None:
        """Count a call of the driver that allocates; raise where it was told to fail."""
        self.check_thread()
        self.forbid_capture(call)
        self.calls[call] += 1
        if self.calls[call] in self._failures.get(call, ()):
            raise MemoryError_(f"{call} failed: out of memory")

    def forbid_capture(self, call: str) -> None:
        """Spoil the captures that this thread has open, if any, and raise."""
        thread = threading.get_ident()
        open_here = [s for s in self._streams.values() if s.recording is not None and s.thread == thread]
        for stream in open_here:
            stream.spoiled = True
        if open_here:
            raise LogicError(f"{call} failed: operation not permitted when stream is capturing")

    def allocate(self, nbytes: int, *, pinned: bool = False, mapped: bool = False) -> Block:
        """New memory; on a discrete GPU only unpinned, or mapped, memory is the device's too."""
        call = "cuMemHostAlloc" if pinned else "cuMemAlloc"
        self.called(call)
        if nbytes < 1:
            raise LogicError(f"{call} failed: invalid argument")
        with self._lock:
            used = sum(b.data.size for b in self._blocks.values() if b.live)
            if used + nbytes > self.memory_bytes:
                raise MemoryError_(f"{call} failed: out of memory")
            block = Block(nbytes, pinned=pinned, mapped=mapped)
            self._blocks[block.address] = block
            bisect.insort(self._starts, block.address)
        return block

    def release(self, block: Block) -> None:
        """Free memory: it is poisoned, and kept so that its use is noticed."""
        self.check_thread()
        self.forbid_capture("cuMemFree")
        if not block.live:
            raise LogicError("cuMemFree failed: invalid argument (freed already)")
        block.live = False
        block.data[...] = _FREED

    def find(self, address: int, nbytes: int, *, device: bool = True) -> Block:
        """The block that holds a range of addresses; errors as of :meth:`read`."""
        at = bisect.bisect_right(self._starts, address) - 1
        block = self._blocks[self._starts[at]] if at >= 0 else None
        fault = "it was never allocated"
        if block is not None and address < block.address + block.data.size:
            if not block.live:
                fault = "it was freed"
            elif address + nbytes > block.address + block.data.size:
                fault = f"it ends {address + nbytes - block.address - block.data.size} bytes sooner"
            elif device and block.pinned and not block.mapped:
                fault = "it is host memory that is not mapped"
            else:
                return block
        raise LogicError(f"an illegal memory access was encountered: {nbytes} bytes at {address:#x}: {fault}")

    def is_pinned(self, array: NDArray[Any]) -> bool:
        """Whether an array lies in live page-locked memory; LogicError where that was freed."""
        address = array.__array_interface__["data"][0]
        at = bisect.bisect_right(self._starts, address) - 1
        block = self._blocks[self._starts[at]] if at >= 0 else None
        if block is None or not block.pinned or address >= block.address + block.data.size:
            return False
        self.find(address, array.nbytes, device=False)
        return True

    def stack(self) -> list[Context]:
        """The contexts that this thread has pushed."""
        return self._threads.setdefault(threading.get_ident(), [])

    def add_stream(self, stream: FakeStream) -> None:
        """Make a stream known by its handle."""
        self._streams[stream.handle] = stream

    def stream(self, handle: int) -> FakeStream:
        """The stream of a handle.

        Raises:
            LogicError: there is none.
        """
        found = self._streams.get(int(handle))
        if found is None:
            raise LogicError(f"invalid resource handle: no stream {handle:#x}")
        return found
