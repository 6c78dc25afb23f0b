"""A Backend on the GPU, whatever the engine: memory, stream, graphs, and frames prepared by the kernel.

    frame -> page-locked memory -> GPU: kernel -> engine -> page-locked memory -> arrays

All of it is one non-default stream, with one wait at its end. An engine gives an
:data:`~edgesmith.sdk.cuda.lane.OpenExecution`; TensorRT and onnxruntime differ in that only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.cuda.lane import Lane, OpenExecution, Shape, Tensor
from edgesmith.sdk.cuda.preprocess import FramePreparer
from edgesmith.sdk.errors import BackendError, BindingError, CudaError
from edgesmith.sdk.manifest import Batch, Preprocess
from edgesmith.sdk.preprocess import Geometry, frame_size

log = logging.getLogger(__name__)
Array = NDArray[Any]
LANES = 8  # input shapes that are kept ready; the one that was not used for longest goes


class InputSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's one input: an open axis of ``shape`` is None; ``dtype`` by numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def check(self, images: Array) -> None:
        """Refuse a batch that does not fit.

        Raises:
            BindingError: its rank, a fixed side or its type is another.
        """
        fits = len(images.shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, images.shape, strict=True)
        )
        if not fits or not np.can_cast(images.dtype, np.dtype(self.dtype), "same_kind"):
            wanted = ", ".join("any" if side is None else str(side) for side in self.shape)
            raise BindingError(
                f"input {self.name} is {self.dtype} ({wanted}), got {images.dtype} {images.shape}"
            )


class DeviceBackend:
    """Runs an engine; satisfies :class:`~edgesmith.sdk.backends.base.Backend` and ``DevicePreprocess``.

    It takes over ``gpu``, and closes it.

    Args:
        name, detail, variant: as of a Backend.
        gpu: where it runs.
        spec: the engine's input.
        open_execution: makes one input shape ready.
        preprocess: prepare frames on the GPU so; None leaves it to the host.
        libcuda: of :func:`~edgesmith.sdk.cuda.graph.load_libcuda`; None runs without graphs.
        release: is called once on close, with the context current: lets go of the engine.
        clone: makes the backend of another thread.
        batch: the batches it takes where these are not the bundle's.

    Raises:
        CudaError: there is no stream to be had.
    """

    def __init__(
        self,
        *,
        name: str,
        detail: str,
        variant: str,
        gpu: Gpu,
        spec: InputSpec,
        open_execution: OpenExecution,
        preprocess: Preprocess | None = None,
        libcuda: Any | None = None,
        release: Callable[[], None] = lambda: None,
        clone: Callable[[], DeviceBackend] | None = None,
        batch: Batch | None = None,
        stream: Any | None = None,
    ) -> None:
        self.name, self.detail, self.variant = name, detail, variant
        self.batch = batch
        self._gpu, self._spec, self._open = gpu, spec, open_execution
        self._libcuda, self._release, self._clone = libcuda, release, clone
        self._lanes: dict[Shape, Lane] = {}
        self._prepared: Lane | None = None
        self._preparer: FramePreparer | None = None
        self._closed = False
        self._stream: Any = stream
        if stream is None:
            with gpu.current("no CUDA stream"):
                self._stream = gpu.stream()
        if preprocess is not None:
            self._preparer = self._load_kernel(preprocess)

    @property
    def on_device(self) -> DeviceBackend | None:
        """Itself, where frames are prepared on the GPU."""
        return None if self._preparer is None else self

    @property
    def graphs(self) -> int:
        """Number of recorded graphs."""
        return sum(lane.has_graph for lane in self._lanes.values())

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name for a batch ``(N, ...)``.

        Raises:
            BindingError: the batch does not fit the engine's input.
            BackendError: closed already, or the run failed.
        """
        self._spec.check(images)
        with self._working("the run failed"):
            lane = self._lane(images.shape)
            np.copyto(lane.view, images, casting="same_kind")
            lane.input.upload(self._stream)
            return lane.run()

    def prepare(self, frames: Sequence[NDArray[np.uint8]], count: int) -> list[Geometry]:
        """Send frames up and prepare them there for a batch of ``count``; does not wait for it.

        Raises:
            CameraFormatError: a frame has another shape or type.
            BackendError: closed already, or the GPU refuses.
        """
        if self._preparer is None:
            raise BackendError("this backend does not prepare frames")
        shape = self._preparer.preprocess.tensor_shape(*frame_size(frames[0]))
        rows = [np.ascontiguousarray(frame) for frame in frames]
        with self._working("the frames could not be prepared"):
            lane = self._lane((count, *shape))
            geometries = self._preparer.place(rows, lane.input.address)
            self._prepared = lane
        return geometries

    def run_prepared(self) -> dict[str, Array]:
        """Outputs by name for the batch that was prepared last.

        Raises:
            BackendError: nothing was prepared, closed already, or the run failed.
        """
        lane, self._prepared = self._prepared, None
        if lane is None:
            raise BackendError(
                "no batch was prepared: call prepare(frames, count) before each run_prepared()"
            )
        with self._working("the run failed"):
            return lane.run()

    def clone(self) -> DeviceBackend:
        """A backend for another thread: its own stream, memory and executions.

        Raises:
            BackendError: closed already, or it cannot be had.
        """
        if self._closed or self._clone is None:
            raise BackendError("this backend was closed")
        return self._clone()

    def close(self) -> None:
        """Wait for what is running and free everything; from any thread, any number of times."""
        if self._closed:
            return
        self._closed, self._prepared = True, None
        lanes, self._lanes = list(self._lanes.values()), {}
        preparer, self._preparer = self._preparer, None
        stream, self._stream = self._stream, None
        steps = [stream.synchronize, *(lane.close for lane in lanes)]
        steps += [preparer.close] if preparer is not None else []
        steps.append(self._release)
        failure: BackendError | None = None
        for step in steps:
            try:
                with self._gpu.current("a GPU backend could not be closed"):
                    step()
            except BackendError as error:
                failure = failure or error
        # Pycuda destroys streams and modules with their last reference, and needs the context for it.
        with self._gpu.current("a CUDA stream could not be destroyed"):
            del stream, preparer, lanes, step, steps
        self._gpu.close()
        if failure is not None:
            raise failure

    def _load_kernel(self, preprocess: Preprocess) -> FramePreparer | None:
        dtype = np.dtype(self._spec.dtype)
        if dtype.name not in ("float32", "float16", "uint8"):
            log.info("frames are prepared on the host: the engine takes %s", dtype)
            return None
        try:
            with self._gpu.current("the preprocess kernel cannot be used"):
                return FramePreparer(self._gpu, self._stream, preprocess, dtype)
        except CudaError as error:
            log.warning("frames are prepared on the host: %s", error)
            return None

    def _lane(self, shape: Shape) -> Lane:
        lane = self._lanes.pop(shape, None)
        if lane is None:
            while len(self._lanes) >= LANES:
                oldest = self._lanes.pop(next(iter(self._lanes)))
                self._prepared = None if self._prepared is oldest else self._prepared
                oldest.close()
            tensor = Tensor(self._spec.name, np.dtype(self._spec.dtype), shape)
            lane = Lane(self._gpu, self._stream, tensor, self._open, self._libcuda)
        self._lanes[shape] = lane  # last: it was used last
        return lane

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """The context, and after an error a stream with nothing in it."""
        if self._closed:
            raise BackendError("this backend was closed")
        with self._gpu.current(what):
            try:
                yield
            except BaseException:
                self._drain()
                raise

    def _drain(self) -> None:
        """What was enqueued before an error must not run on memory that is used anew."""
        try:
            self._stream.synchronize()
        except self._gpu.driver.Error as error:
            log.warning("the CUDA stream is in error: %s", error)
