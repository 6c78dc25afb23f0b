"""CUDA graphs: a run recorded once and launched as one thing. pycuda has none, so libcuda is called.

A graph freezes the addresses and shapes it was recorded with. Capture is in the thread-local mode:
what other threads do meanwhile does not spoil it.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any

from edgesmith.sdk.cuda.context import cuda_error
from edgesmith.sdk.errors import CudaError

log = logging.getLogger(__name__)
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_POINTER, _OUT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_PROTOTYPES: dict[str, list[Any]] = {
    "cuStreamBeginCapture_v2": [_POINTER, ctypes.c_int],
    "cuStreamEndCapture": [_POINTER, _OUT],
    "cuGraphInstantiateWithFlags": [_OUT, _POINTER, ctypes.c_ulonglong],
    "cuGraphLaunch": [_POINTER, _POINTER],
    "cuGraphExecDestroy": [_POINTER],
    "cuGraphDestroy": [_POINTER],
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuGetErrorString": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
}


def load_libcuda() -> Any | None:
    """The driver's library, or None where it, or graphs in it, cannot be had (CUDA before 11.4)."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, arguments in _PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as error:
        log.info("no CUDA graphs: %s", error)
        return None
    return library


class Graph:
    """A recorded run. Its memory must outlive it; free it by :meth:`close`."""

    def __init__(self, library: Any, executable: int) -> None:
        self._library = library
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Put the run into the stream.

        Raises:
            CudaError: the driver refuses.
        """
        _check(self._library, "cuGraphLaunch", self._library.cuGraphLaunch(self._executable, stream))

    def close(self) -> None:
        """Free it; any number of times."""
        executable, self._executable = self._executable, 0
        if executable:
            _check(self._library, "cuGraphExecDestroy", self._library.cuGraphExecDestroy(executable))


def capture(library: Any, stream: int, work: Callable[[], None]) -> Graph:
    """Record what ``work`` puts into the stream; nothing of it runs.

    Args:
        library: of :func:`load_libcuda`.
        stream: the handle of a stream that is not the default one.
        work: enqueues; it may not allocate, wait, or use another stream.

    Raises:
        CudaError: it cannot be recorded (loops, data-dependent shapes); the stream is usable again.
    """
    _check(library, "cuStreamBeginCapture", library.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL))
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        work()
    except BaseException:
        # The capture has to end whatever happened, and what it gives is thrown away.
        if library.cuStreamEndCapture(stream, ctypes.byref(graph)) == 0 and graph.value:
            library.cuGraphDestroy(graph.value)
        raise
    _check(library, "cuStreamEndCapture", library.cuStreamEndCapture(stream, ctypes.byref(graph)))
    try:
        status = library.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph.value, 0)
    finally:
        library.cuGraphDestroy(graph.value)
    _check(library, "cuGraphInstantiate", status)
    if not executable.value:
        raise CudaError("cuGraphInstantiate gave no graph")
    return Graph(library, executable.value)


def _check(library: Any, call: str, status: int) -> None:
    if status:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(name))
        library.cuGetErrorString(status, ctypes.byref(text))
        known = (name.value or b"").decode()
        raise cuda_error(f"{call} failed", (text.value or str(status).encode()).decode(), name=known)
