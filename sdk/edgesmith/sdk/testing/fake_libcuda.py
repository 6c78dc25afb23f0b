"""The part of ``libcuda.so.1`` that edgesmith calls, over a :class:`~.fake_cuda.FakeCuda`: CUDA graphs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from edgesmith.sdk.testing.fake_driver import Error

# The FakeCuda that this belongs to; it imports this file, so its type cannot be named here.
Cuda = Any
_NAMES = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    400: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
    900: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
    901: (
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "operation failed due to a previous error during capture",
    ),
}


def _number(value: Any) -> int:
    return int(getattr(value, "value", value) or 0)


class FakeLibcuda:
    """Each function returns a status, 0 for success, and writes through its ``byref`` arguments."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._executables: dict[int, list[Callable[[], None]]] = {}
        self._next = 1

    @property
    def live(self) -> int:
        """Graphs and executable graphs that were not destroyed."""
        return len(self._graphs) + len(self._executables)

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        """Begin a capture."""
        try:
            self._cuda.check_thread()
            target = self._cuda.stream(_number(stream))
        except Error:
            return 201
        if target.recording is not None:
            return 900
        target.recording, target.spoiled, target.thread = [], False, threading.get_ident()
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        """End it."""
        target = self._cuda.stream(_number(stream))
        recording, target.recording = target.recording, None
        if recording is None:
            return 1
        if target.spoiled or not self._cuda.graphs:
            return 901
        graph._obj.value = self._keep(self._graphs, recording)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: int) -> int:
        """Make it executable."""
        work = self._graphs.get(_number(graph))
        if work is None or flags:
            return 1
        executable._obj.value = self._keep(self._executables, list(work))
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        """Put it into a stream."""
        work = self._executables.get(_number(executable))
        if work is None:
            return 400
        try:
            self._cuda.check_thread()
            for step in work:
                self._cuda.enqueue(_number(stream), step)
        except Error:
            return 201
        self._cuda.calls["cuGraphLaunch"] += 1
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:
        """Free an executable one."""
        return 0 if self._executables.pop(_number(executable), None) is not None else 400

    def cuGraphDestroy(self, graph: Any) -> int:
        """Free one."""
        return 0 if self._graphs.pop(_number(graph), None) is not None else 400

    def cuGetErrorName(self, status: int, text: Any) -> int:
        """Name of a status."""
        return self._say(status, text, 0)

    def cuGetErrorString(self, status: int, text: Any) -> int:
        """What a status means."""
        return self._say(status, text, 1)

    def _say(self, status: int, text: Any, which: int) -> int:
        known = _NAMES.get(status)
        if known is None:
            return 1
        text._obj.value = ctypes.c_char_p(known[which].encode()).value
        return 0

    def _keep(self, where: dict[int, list[Callable[[], None]]], work: list[Callable[[], None]]) -> int:
        self._next += 1
        where[self._next] = work
        return self._next
