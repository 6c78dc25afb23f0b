"""One input shape on its way through the GPU: its memory, its execution, its graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cuda.buffers import Buffer, Buffers
from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.cuda.graph import Graph, capture
from edgesmith.sdk.errors import BackendError

log = logging.getLogger(__name__)
Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """An input or output: ``shape`` has no open axis."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Execution(Protocol):
    """An engine that was made ready for one input shape. All calls come with the context current.

    Attributes:
        outputs: what a run gives.
        capturable: whether :meth:`enqueue` may be recorded as a graph; False where the library
            records and replays on its own.
    """

    outputs: tuple[Tensor, ...]
    capturable: bool

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where input and outputs lie on the device, by name; once, before the first run."""
        ...

    def enqueue(self, stream: Any) -> None:
        """Put one run into the stream."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


# Makes an input shape ready. The input lies at the address, zeros at first.
OpenExecution = Callable[[Tensor, int, Any], Execution]


class Lane:
    """One input shape: page-locked and device memory, an execution, and its graph from the second run on.

    Make it, use it and close it inside :meth:`Gpu.current`.

    Raises:
        BackendError: the engine does not take the shape.
        CudaError: there is no memory.
    """

    def __init__(
        self, gpu: Gpu, stream: Any, tensor: Tensor, open_execution: OpenExecution, libcuda: Any | None
    ) -> None:
        self._stream, self._libcuda = stream, libcuda
        self._buffers = Buffers(gpu)
        self._execution: Execution | None = None
        self._graph: Graph | None = None
        self._outputs: list[tuple[Tensor, Buffer]] = []
        try:
            self.input = self._buffers.take(tensor.nbytes, mapped=False)
            self.view: NDArray[Any] = self.input.array(tensor.dtype, tensor.shape)
            self.view[...] = 0
            self.input.upload(stream)
            execution = self._execution = open_execution(tensor, self.input.address, stream)
            self._outputs = [(out, self._buffers.take(out.nbytes)) for out in execution.outputs]
            addresses = {out.name: buffer.address for out, buffer in self._outputs}
            execution.bind({tensor.name: self.input.address, **addresses})
        except BaseException:
            self.close()
            raise

    @property
    def has_graph(self) -> bool:
        """Whether runs are replayed."""
        return self._graph is not None

    def run(self) -> dict[str, NDArray[Any]]:
        """Run on what lies in the input; the arrays are the caller's.

        Raises:
            BackendError: the run failed.
        """
        if self._graph is not None:
            self._graph.launch(self._stream.handle)
        else:
            self._enqueue()
        self._stream.synchronize()
        found = {out.name: np.array(buffer.array(out.dtype, out.shape)) for out, buffer in self._outputs}
        if self._graph is None and self._libcuda is not None:
            self._record()
        return found

    def close(self) -> None:
        """Free everything; nothing may be running."""
        graph, self._graph = self._graph, None
        execution, self._execution = self._execution, None
        self.view = np.empty(0)
        try:
            if graph is not None:
                graph.close()
        finally:
            try:
                if execution is not None:
                    execution.close()
            finally:
                self._buffers.close()

    def _enqueue(self) -> None:
        assert self._execution is not None
        self._execution.enqueue(self._stream)
        for _, buffer in self._outputs:
            buffer.download(self._stream)

    def _record(self) -> None:
        """After a run outside of it, which did what an engine puts off to its first run."""
        library, self._libcuda = self._libcuda, None  # tried once
        if self._execution is None or not self._execution.capturable:
            return
        try:
            self._graph = capture(library, self._stream.handle, self._enqueue)
        except BackendError as error:
            log.warning("this engine runs without a CUDA graph: %s", error)
