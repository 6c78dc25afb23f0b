"""The GPU's primary context, shared with TensorRT and onnxruntime, current only while a call runs.

A context is current per thread. So every use is ``with gpu.current():`` on whichever thread it happens:
nothing is left pushed, which at exit would abort the process, and no thread has to own the GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from edgesmith.sdk.errors import CudaError, MissingExtraError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for, and by, the default stream
# What the driver says, its name for it, and what to do.
ERRORS: tuple[tuple[str, str, str], ...] = (
    (
        "out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "free GPU memory, run fewer models or clones, use a smaller batch or an fp16 or int8 variant",
    ),
    (
        "no CUDA-capable device",
        "CUDA_ERROR_NO_DEVICE",
        "is the driver loaded, the user in group video, and CUDA_VISIBLE_DEVICES empty?",
    ),
    ("invalid device ordinal", "CUDA_ERROR_INVALID_DEVICE", "there is no GPU of this number: count from 0"),
    (
        "no currently active context",
        "CUDA_ERROR_INVALID_CONTEXT",
        "this thread has no CUDA context: call through the backend, which pushes its own",
    ),
    (
        "invalid device context",
        "CUDA_ERROR_INVALID_CONTEXT",
        "this thread has no CUDA context: call through the backend, which pushes its own",
    ),
    (
        "illegal memory access",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "memory was used after it was freed or out of its bounds; the process has to be started anew",
    ),
    (
        "unspecified launch failure",
        "CUDA_ERROR_LAUNCH_FAILED",
        "a kernel failed; the process has to be started anew, `dmesg` may say more",
    ),
    (
        "no kernel image is available",
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "the code was compiled for another GPU: remove the kernels from edgesmith's cache folder",
    ),
    (
        "unsupported toolchain",
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the compiler here is newer than the driver: update the driver, or remove nvcc from the path",
    ),
    (
        "device kernel image is invalid",
        "CUDA_ERROR_INVALID_IMAGE",
        "the compiler here does not fit the driver: update the driver, or remove nvcc from the path",
    ),
    (
        "capturing",
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "the operation is not allowed while a CUDA graph is captured",
    ),
    ("initialization error", "CUDA_ERROR_NOT_INITIALIZED", "a forked process cannot use CUDA: spawn it"),
    ("driver version is insufficient", "CUDA_ERROR_INSUFFICIENT_DRIVER", "update the NVIDIA driver"),
)


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a GPU is.

    ``compute_capability`` is written ``8.7``; ``integrated`` is true where CPU and GPU share the memory;
    ``driver`` is the CUDA version that the driver supports, such as ``12.6``.
    """

    device: int
    name: str
    compute_capability: str
    integrated: bool
    driver: str
    memory_bytes: int


def load_driver() -> Any:
    """pycuda's driver module.

    Raises:
        MissingExtraError: pycuda is not installed.
        CudaError: there is no CUDA driver.
    """
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "pycuda is not installed: pip install 'edgesmith[gpu]', on a Jetson 'edgesmith[jetson]'",
            extra="gpu",
        ) from error
    except ImportError as error:
        raise CudaError(f"there is no CUDA driver on this machine: {error}") from error


def find_gpu(device: int, driver: Any) -> tuple[Any, GpuFacts]:
    """The driver's handle of a GPU and what it is; no context is made.

    Raises:
        CudaError: there is no such GPU.
    """
    with explained(driver, f"GPU {device} cannot be opened"):
        driver.init()
        handle = driver.Device(device)
        facts = GpuFacts(
            device=device,
            name=handle.name(),
            compute_capability=".".join(str(n) for n in handle.compute_capability()),
            integrated=bool(handle.get_attribute(driver.device_attribute.INTEGRATED)),
            driver=_version_text(driver.get_driver_version()),
            memory_bytes=handle.total_memory(),
        )
    return handle, facts


class Gpu:
    """One GPU's primary context, retained until :meth:`close`.

    Args:
        device: the GPU's number.
        driver: pycuda's driver module, or what stands for it.

    Raises:
        CudaError: there is no such GPU, or it cannot be used.
    """

    def __init__(self, device: int = 0, *, driver: Any = None) -> None:
        self.driver = load_driver() if driver is None else driver
        handle, self.facts = find_gpu(device, self.driver)
        with explained(self.driver, f"GPU {device} cannot be opened"):
            self._context: Any = handle.retain_primary_context()

    @contextmanager
    def current(self, what: str = "a CUDA call failed") -> Iterator[None]:
        """Make the context this thread's for the block; the driver's errors inside become CudaError.

        Raises:
            CudaError: the GPU was closed, or a call in the block failed; ``what`` begins the message.
        """
        if self._context is None:
            raise CudaError(f"{what}: this GPU was closed")
        with explained(self.driver, what):
            self._context.push()
            try:
                yield
            finally:
                self.driver.Context.pop()

    def stream(self) -> Any:
        """A new stream of its own; call it, and drop the stream, inside :meth:`current`."""
        return self.driver.Stream(_NON_BLOCKING)

    def close(self) -> None:
        """Give the context back; from any thread, any number of times."""
        context, self._context = self._context, None
        if context is not None:
            with explained(self.driver, "the CUDA context cannot be released"):
                context.push()
                context.detach()  # which also takes it off this thread


@contextmanager
def explained(driver: Any, what: str) -> Iterator[None]:
    """Turn the driver's errors into CudaError: ``what`` failed, the driver's name for it, what mends it."""
    try:
        yield
    except driver.Error as error:
        raise cuda_error(what, str(error)) from error


def cuda_error(what: str, said: str, *, name: str = "") -> CudaError:
    """The error for what the driver said."""
    for text, known, advice in ERRORS:
        if text in said or name == known:
            return CudaError(f"{what}: {known} ({said}); {advice}", name=known)
    return CudaError(f"{what}: {name + ' ' if name else ''}({said})", name=name)


def _version_text(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
