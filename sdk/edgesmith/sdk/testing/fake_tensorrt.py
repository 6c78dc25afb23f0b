"""A TensorRT without a GPU: the documented contract, computed by onnxruntime.

    trt = FakeTensorRT(version="10.3.0", compute_capability=(8, 7), num_DLA_cores=2)
    builder = trt.Builder(trt.Logger())

It stands where the module ``tensorrt`` stands. What a version lacks the fake lacks (``BuilderFlag.FP16``
and calibrators in 11, TensorRT-RTX's compute capabilities), and enum numbers move as the real ones did. A
refusal is a None or a False, and its reason is in the log alone. Plans begin with the header of real ones,
and do not load in another version, on another GPU, or changed.

``cuda`` is the device's memory, anything of the kind of :class:`Cuda` (:class:`HostMemory` is the smallest);
without it the fake makes a :class:`~edgesmith.sdk.testing.fake_cuda.FakeCuda` when it is first needed, whose
``driver`` and ``libcuda`` the runtime then uses. Settings and faults are those of :class:`Simulated`. In
another process the same fake is made from ``trt.simulated.specification``, or by :func:`make`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesmith.sdk.testing import fake_builder, fake_runtime
from edgesmith.sdk.testing.fake_enums import SEVERITIES, enums_of, severity
from edgesmith.sdk.testing.fake_runtime import Cuda, HostMemory
from edgesmith.sdk.testing.simulated import Simulated, simulated_of

__all__ = ["Cuda", "FakeTensorRT", "HostMemory", "Simulated", "make"]


def make(**settings: Any) -> FakeTensorRT:
    """A fake from the settings of :class:`Simulated`, as values or as text."""
    return FakeTensorRT(**settings)


class FakeTensorRT:
    """The module. Keyword arguments are the fields of :class:`Simulated`, and ``cuda``.

    Raises:
        TypeError: there is no such setting, or it has the wrong type.
    """

    def __init__(self, *, cuda: Cuda | None = None, **settings: Any) -> None:
        self.simulated = simulated_of(settings)
        self.__version__ = self.simulated.version
        self._memory = cuda
        self._runs, self._timed = 0, threading.local()
        self._shape_memory: dict[int, dict[Any, dict[str, tuple[int, ...]]]] = {}
        numbers, rtx = self.simulated.numbers, self.simulated.rtx
        for name, enum in enums_of(numbers, rtx).items():
            setattr(self, name, enum)
        self.ILogger, self.Logger = _loggers()
        self.IProgressMonitor = type("IProgressMonitor", (_Monitor,), {})
        self.Builder = type("Builder", (fake_builder.Builder,), {"_trt": self})
        self.OnnxParser = type("OnnxParser", (fake_builder.Parser,), {"_trt": self})
        self.Runtime = type("Runtime", (fake_runtime.Runtime,), {"_trt": self})
        if numbers[0] >= 10 and numbers[0] < 11:
            self.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (_Calibrator,), {})

    if TYPE_CHECKING:
        # Enums and classes differ from version to version.
        def __getattr__(self, name: str) -> Any: ...

    @property
    def cuda(self) -> Any:
        """The device that engines run on."""
        if self._memory is None:
            from edgesmith.sdk.testing.fake_cuda import FakeCuda

            device = self.simulated
            self._memory = FakeCuda(
                name=device.gpu,
                compute_capability=device.compute_capability,
                integrated=bool(device.l4t),
            )
        return self._memory

    def nptype(self, trt_type: Any) -> type:
        """The numpy type of a DataType.

        Raises:
            TypeError: numpy has none (BF16, FP8).
        """
        names = {v: k for k, v in fake_builder.DTYPES.items() if v != "BF16"}
        if trt_type.name not in names:
            raise TypeError(f"Could not resolve TensorRT datatype to a numpy datatype: {trt_type}")
        return np.dtype(names[trt_type.name]).type

    def _say(self, logger: Any, level: str, text: str) -> None:
        logger.log(getattr(self.ILogger.Severity, level), text)

    @contextlib.contextmanager
    def _untimed(self) -> Iterator[None]:
        """A computation that is no run of the engine."""
        self._timed.off = True
        try:
            yield
        finally:
            self._timed.off = False

    def _take_time(self, names: tuple[str, str]) -> None:
        if getattr(self._timed, "off", False):
            return
        seconds = _named(self.simulated.latency_s, names)
        self._runs += 1
        after = self.simulated.throttle_after
        if after is not None and self._runs > after:
            seconds *= 1.5
        if seconds:
            fake_runtime.sleep(seconds)


def _named(table: dict[str, float], names: tuple[str, str]) -> float:
    kind, digest = names
    exact = [value for name, value in table.items() if digest.startswith(name)]
    return exact[0] if exact else table.get(kind, 0.0)


def _loggers() -> tuple[Any, Any]:
    """``ILogger``, to be derived from, and ``Logger``, which keeps what it is told."""
    levels = severity()

    class ILogger:
        Severity = levels
        locals().update({name: levels[name] for name in SEVERITIES})

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError("a logger has to define log(severity, msg)")

    class Logger(ILogger):
        def __init__(self, min_severity: Any = levels.WARNING) -> None:
            self.min_severity = min_severity
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(self.min_severity):
                self.lines.append((severity, msg))

    return ILogger, Logger


class _Monitor:
    """``IProgressMonitor``."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done; False cancels the build."""
        return True

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over."""


class _Calibrator:
    """``IInt8EntropyCalibrator2``."""

    def get_batch_size(self) -> int:
        """Images in a batch."""
        return 1

    def get_batch(self, names: list[str]) -> list[int] | None:
        """Addresses of the next batch, None where there is none."""
        return None

    def read_calibration_cache(self) -> bytes | None:
        """The cache."""
        return None

    def write_calibration_cache(self, cache: bytes) -> None:
        """Keep a new cache."""
