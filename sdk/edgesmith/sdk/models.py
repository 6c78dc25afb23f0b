"""A bundle as a callable: frames in, results out.

    detector = Detector.load("model.edge")
    detections = detector(frame)            # BGR uint8 (H, W, 3)
    several = detector([frame, other])      # a list gives a list, batched where the graph is

Loading and calling are the whole of it; ``backend``, ``bundle`` and ``timings`` are for looking.
One model object serves one thread at a time: take :meth:`Model.clone` for another thread.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.backends.base import Array, Backend, DevicePreprocess, Options
from edgesmith.sdk.backends.choose import choose_backend
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.errors import BackendError, ConfigError
from edgesmith.sdk.manifest import Nms, batch_on
from edgesmith.sdk.maps import Segmentation, Tensors
from edgesmith.sdk.preprocess import Geometry, prepare
from edgesmith.sdk.results import Classifications, Detections

Frame8 = NDArray[np.uint8]
R = TypeVar("R")
M = TypeVar("M", bound="Model[Any]")


class Model(ABC, Generic[R]):
    """What the tasks share: loading, preprocess, batching, timing, the thread rule.

    Attributes:
        bundle: the opened file.
        backend: what runs the graph.
        batch: the batches that it takes; what is missing is filled up, what is more is split.
        timings: nanoseconds of the last call's stages: ``preprocess``, ``infer``, ``postprocess``.
        passed_over: the backends that ``auto`` tried before, each with the reason why it was not taken.
    """

    task: ClassVar[str] = ""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.batch = batch_on(bundle.manifest, backend)
        self.timings: dict[str, int] = {}
        self.passed_over: tuple[tuple[str, str], ...] = ()
        # Two, taken in turn: one is filled while the graph reads the other.
        self._buffers: list[Array] = [np.empty(0, np.float32), np.empty(0, np.float32)]
        self._busy = threading.Lock()
        self._preparing = threading.Lock()

    @classmethod
    def load(
        cls: type[M],
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: int = 0,
        variant: str | None = None,
        threads: int | None = None,
    ) -> M:
        """Open a bundle and load its chosen graph.

        Args:
            path: the ``.edge`` file.
            backend: ``auto`` (the best that runs here), or a name: ``cuda``, ``cpu``.
            device: number of the GPU.
            variant: one of the bundle's graphs by name, in place of the chosen one.
            threads: CPU threads of one run; None leaves it to the backend.

        Raises:
            BundleError: the file is missing, damaged, or for another task.
            BackendError: the backend does not run here.
        """
        bundle = Bundle.open(path)
        if bundle.manifest.task != cls.task:
            right = TASKS.get(bundle.manifest.task)
            advice = f"load it with {right.__name__}.load" if right else "this version cannot run it"
            raise ConfigError(f"{bundle.path} holds a model for task {bundle.manifest.task!r}: {advice}")
        options = Options(device=device, threads=threads)
        chosen = choose_backend(bundle, backend=backend, variant=variant, options=options)
        model = cls(bundle, chosen.backend)
        model.passed_over = chosen.passed_over
        return model

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index; empty where the model has none."""
        return self.bundle.manifest.labels

    def clone(self: M) -> M:
        """Another model object for another thread; weights are shared where the backend can."""
        twin = type(self)(self.bundle, self.backend.clone())
        twin.passed_over = self.passed_over
        return twin

    def close(self) -> None:
        """Free the backend; the model cannot be called afterwards."""
        self.backend.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        tried = "".join(f"; not {name}: {why}" for name, why in self.passed_over)
        what = f"{self.backend.name}: {self.backend.detail}{tried}"
        return f"{type(self).__name__}({str(self.bundle.path)!r}, {what})"

    def raw(self, frames: Sequence[Frame8]) -> Iterator[tuple[dict[str, Array], list[Geometry]]]:
        """The graph's own outputs, a batch at a time, each with the geometry of its frames.

        Raises:
            CameraFormatError: a frame is not BGR uint8 ``(H, W, 3)``.
        """
        with self._alone(self._busy):
            yield from self._raw(frames)

    def prepare(self, frames: Sequence[Frame8]) -> tuple[Array, list[Geometry]]:
        """A batch ``(N, ...)`` for :meth:`run_prepared`, and where each frame lies in it.

        With :meth:`run_prepared` and :meth:`decode` this is a call in three steps, each of which may
        be a thread's own. There are two buffers: a batch holds until the next call but one.

        Args:
            frames: 1 to ``batch.max``; of one size where the model takes any size.

        Raises:
            CameraFormatError: a frame is not BGR uint8 ``(H, W, 3)``.
            BackendError: another thread is preparing with this object.
        """
        with self._alone(self._preparing):
            return self._prepare(frames)

    @abstractmethod
    def decode(self, outputs: dict[str, Array], geometries: Sequence[Geometry]) -> list[R]:
        """The answers in a batch's outputs, one for each geometry."""

    def run_prepared(self, batch: Array) -> dict[str, Array]:
        """The graph's outputs for a batch ``(N, ...)``, of :meth:`prepare` or prepared elsewhere.

        N is within the batch range. :meth:`raw` prepares its frames itself.

        Raises:
            BackendError: the run failed, or another thread is using this object.
        """
        with self._alone(self._busy):
            return self.backend.run(batch)

    def _raw(self, frames: Sequence[Frame8]) -> Iterator[tuple[dict[str, Array], list[Geometry]]]:
        spent = {"preprocess": 0, "infer": 0, "postprocess": 0}
        at = 0
        while at < len(frames):
            started = time.monotonic_ns()
            part = frames[at : at + self._batch_of(frames, at)]
            run, geometries = self._ready(part)
            prepared = time.monotonic_ns()
            outputs = run()
            done = time.monotonic_ns()
            spent["preprocess"] += prepared - started
            spent["infer"] += done - prepared
            at += len(part)
            yield outputs, geometries
            spent["postprocess"] += time.monotonic_ns() - done
        self.timings = spent

    def _batch_of(self, frames: Sequence[Frame8], at: int) -> int:
        """How many frames from ``at`` on go into one run."""
        most = self.batch.max
        if self.bundle.manifest.preprocess.size is not None:
            return most
        # Any size goes in: only frames of one size share a tensor.
        same = 1
        while same < most and at + same < len(frames) and frames[at + same].shape == frames[at].shape:
            same += 1
        return same

    def _ready(self, frames: Sequence[Frame8]) -> tuple[Callable[[], dict[str, Array]], list[Geometry]]:
        """The frames prepared, on the backend's device where it does that, and what runs them."""
        device: DevicePreprocess | None = getattr(self.backend, "on_device", None)
        if device is not None:
            count = max(len(frames), self.batch.min)
            return device.run_prepared, device.prepare(frames, count)
        batch, geometries = self.prepare(frames)
        return partial(self.backend.run, batch), geometries

    def _prepare(self, frames: Sequence[Frame8]) -> tuple[Array, list[Geometry]]:
        preprocess, smallest = self.bundle.manifest.preprocess, self.batch.min
        height, width = frames[0].shape[:2] if getattr(frames[0], "ndim", 0) == 3 else (1, 1)
        count = max(len(frames), smallest)
        shape = preprocess.tensor_shape(height, width)
        self._buffers.reverse()
        if self._buffers[0].shape[1:] != shape or len(self._buffers[0]) < count:
            dtype = np.float32 if preprocess.layout == "nchw" else np.uint8
            self._buffers[0] = np.zeros((count, *shape), dtype)
        batch = self._buffers[0][:count]
        geometries = [prepare(preprocess, frame, out=row) for frame, row in zip(frames, batch, strict=False)]
        return batch, geometries

    @contextmanager
    def _alone(self, lock: threading.Lock) -> Iterator[None]:
        if not lock.acquire(blocking=False):
            raise BackendError(
                "this model object is in use by another thread: give each thread its own clone()"
            )
        try:
            yield
        finally:
            lock.release()

    def _single(self, frames: Frame8 | Sequence[Frame8]) -> tuple[list[Frame8], bool]:
        if isinstance(frames, np.ndarray) and frames.ndim <= 3:
            return [frames], True
        return list(frames), False


class Detector(Model[Detections]):
    """Finds objects. Call it with one frame, BGR uint8 ``(H, W, 3)``, or a list of frames."""

    task = "detect"

    @property
    def nms(self) -> Nms:
        """Thresholds that a call uses unless told otherwise."""
        assert self.bundle.manifest.nms is not None  # the manifest of a detector always has it
        return self.bundle.manifest.nms

    @overload
    def __call__(
        self, frames: Frame8, *, score: float | None = None, iou: float | None = None
    ) -> Detections: ...
    @overload
    def __call__(
        self, frames: Sequence[Frame8], *, score: float | None = None, iou: float | None = None
    ) -> list[Detections]: ...
    def __call__(
        self, frames: Frame8 | Sequence[Frame8], *, score: float | None = None, iou: float | None = None
    ) -> Detections | list[Detections]:
        """Detections in frame pixels, best first; an empty list of frames gives an empty list.

        Args:
            frames: one frame, or several of any sizes.
            score: keep what scores more than this, 0..1.
            iou: of two boxes of a class that overlap by more, the better stays.

        Raises:
            CameraFormatError: a frame is not BGR uint8 ``(H, W, 3)``.
            ConfigError: a threshold that this bundle's graph cannot serve.
            BackendError: the run failed, or another thread is using this object.
        """
        several, single = self._single(frames)
        canonical.check_thresholds(self.nms, score, iou)
        found: list[Detections] = []
        with self._alone(self._busy):
            for outputs, geometries in self._raw(several):
                found += self.decode(outputs, geometries, score=score, iou=iou)
        return found[0] if single else found

    def decode(
        self,
        outputs: dict[str, Array],
        geometries: Sequence[Geometry],
        *,
        score: float | None = None,
        iou: float | None = None,
    ) -> list[Detections]:
        """The detections in a batch's outputs, one for each geometry; thresholds as in a call."""
        return [
            canonical.detections(outputs, row, geometry, self.nms, self.names, score=score, iou=iou)
            for row, geometry in enumerate(geometries)
        ]


class _WithoutThresholds(Model[R]):
    """A model whose call takes frames and nothing else."""

    @overload
    def __call__(self, frames: Frame8) -> R: ...
    @overload
    def __call__(self, frames: Sequence[Frame8]) -> list[R]: ...
    def __call__(self, frames: Frame8 | Sequence[Frame8]) -> R | list[R]:
        """The answer of a frame, or those of several; an empty list of frames gives an empty list.

        Raises:
            CameraFormatError: a frame is not BGR uint8 ``(H, W, 3)``.
            BackendError: the run failed, or another thread is using this object.
        """
        several, single = self._single(frames)
        found: list[R] = []
        with self._alone(self._busy):
            for outputs, geometries in self._raw(several):
                found += self.decode(outputs, geometries)
        return found[0] if single else found


class Classifier(_WithoutThresholds[Classifications]):
    """Names what a frame shows: all classes, best first, with softmax scores.

    Call it with one frame, BGR uint8 ``(H, W, 3)``, or a list of frames.
    """

    task = "classify"

    def decode(self, outputs: dict[str, Array], geometries: Sequence[Geometry]) -> list[Classifications]:
        """The classes in a batch's outputs, one for each geometry."""
        return [canonical.classifications(outputs, row, self.names) for row in range(len(geometries))]


class Segmenter(_WithoutThresholds[Segmentation]):
    """Gives each pixel of a frame its class, at the frame's own size.

    Call it with one frame, BGR uint8 ``(H, W, 3)``, or a list of frames.
    """

    task = "segment"

    def decode(self, outputs: dict[str, Array], geometries: Sequence[Geometry]) -> list[Segmentation]:
        """The class maps in a batch's outputs, one for each geometry."""
        return [
            canonical.segmentation(outputs, row, geometry, self.names)
            for row, geometry in enumerate(geometries)
        ]


class TensorModel(_WithoutThresholds[Tensors]):
    """Gives the network's own outputs by name: image enhancement, text, embeddings.

    Call it with one frame, BGR uint8 ``(H, W, 3)``, or a list of frames.
    """

    task = "tensor"

    def decode(self, outputs: dict[str, Array], geometries: Sequence[Geometry]) -> list[Tensors]:
        """The tensors in a batch's outputs, one for each geometry."""
        preprocess = self.bundle.manifest.preprocess
        return [canonical.tensors(outputs, row, preprocess, self.names) for row in range(len(geometries))]


TASKS: dict[str, type[Model[Any]]] = {
    "detect": Detector,
    "classify": Classifier,
    "segment": Segmenter,
    "tensor": TensorModel,
}


def load_model(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: int = 0,
    variant: str | None = None,
    threads: int | None = None,
) -> Model[Any]:
    """The model class that fits the bundle's task, loaded; arguments as in :meth:`Model.load`."""
    bundle = Bundle.open(path)
    kind = TASKS.get(bundle.manifest.task)
    if kind is None:
        raise ConfigError(f"{bundle.path}: this version cannot run task {bundle.manifest.task!r}")
    return kind.load(path, backend=backend, device=device, variant=variant, threads=threads)
