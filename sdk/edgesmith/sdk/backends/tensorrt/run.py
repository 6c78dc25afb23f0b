"""Runs a TensorRT engine: one stream, one context an input shape, CUDA graphs.

What it asks of the ``trt`` module (TensorRT 10.3 to 11.4, RTX 1.7, or the fake):

    Runtime(logger).deserialize_cuda_engine(bytes) -> engine | None; engine_host_code_allowed, DLA_core
    engine: num_io_tensors, get_tensor_name, get_tensor_mode, get_tensor_dtype, get_tensor_shape,
        get_tensor_location, get_tensor_profile_shape(name, i), num_optimization_profiles,
        device_memory_size_v2,
        create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED) -> context | None
    context: set_device_memory(address, nbytes), set_optimization_profile_async(i, stream) -> bool,
        set_input_shape(name, shape) -> bool, infer_shapes() -> [names], get_tensor_shape(name),
        set_tensor_address(name, address) -> bool, execute_async_v3(stream) -> bool
    enums by name: TensorIOMode.INPUT, TensorLocation.DEVICE, DataType.*, ExecutionContextAllocationStrategy

A context that a graph was recorded from may not be used otherwise, so each input shape has its own. Their
scratch memory is one allocation: the contexts of a backend run one after the other. Clones share the
engine, that is the weights.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesmith.sdk.backends.base import Backend, Options
from edgesmith.sdk.backends.tensorrt.library import Found, load_tensorrt, named, title_of
from edgesmith.sdk.backends.tensorrt.plan import Engine
from edgesmith.sdk.backends.tensorrt.target import detect_target
from edgesmith.sdk.backends.tensorrt.worker import make_log
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cuda.backend import DeviceBackend, InputSpec
from edgesmith.sdk.cuda.buffers import Buffers
from edgesmith.sdk.cuda.context import Gpu, find_gpu, load_driver
from edgesmith.sdk.cuda.graph import load_libcuda
from edgesmith.sdk.cuda.lane import Tensor
from edgesmith.sdk.errors import (
    BackendError,
    BindingError,
    CudaError,
    IncompatibleEngineError,
    MissingExtraError,
)
from edgesmith.sdk.manifest import Batch, Preprocess

log = logging.getLogger(__name__)
# TensorRT's own `nptype` knows these too, and raises TypeError for the rest.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


def tensorrt_unavailable() -> str | None:
    """Why this machine cannot run TensorRT engines, or None."""
    found = load_tensorrt()
    if found.trt is None:
        return found.reason
    try:
        find_gpu(0, _driver_of(found.trt))
    except (CudaError, MissingExtraError) as error:
        return str(error)
    return None


def open_tensorrt(bundle: Bundle, variant: str | None, options: Options) -> Backend:
    """A backend whose engine was built, or found, for this device, and self-tested on it.

    Raises:
        BackendError: no engine of the bundle runs here as it should.
        CudaError: the GPU cannot be used.
    """
    # Here and not above: fallback.py is all of the build, which a ready engine does not need.
    from edgesmith.sdk.backends.tensorrt.fallback import open_checked

    found = load_tensorrt()
    target = detect_target(found.require(), options.device)
    open_engine = opener(found, options.device, preprocess=bundle.manifest.preprocess, graphs=options.graphs)
    return open_checked(bundle, variant, found=found, target=target, open_engine=open_engine)


def opener(
    found: Found,
    device: int = 0,
    *,
    preprocess: Preprocess | None = None,
    graphs: bool = True,
    driver: Any | None = None,
    libcuda: Any | None = None,
) -> Callable[[Engine], TensorRTBackend]:
    """What makes a backend of an engine.

    Args:
        found: TensorRT.
        device: the GPU's number.
        preprocess: prepare frames on the GPU so; None leaves it to the host.
        graphs: replay runs as CUDA graphs.
        driver, libcuda: pycuda's driver module and the CUDA library, or what stands for them.

    The function raises:
        IncompatibleEngineError: TensorRT does not load the plan.
        BindingError: the engine has inputs or outputs that cannot be served.
        CudaError: the GPU cannot be used.
    """
    trt = found.require()

    def open_engine(engine: Engine) -> TensorRTBackend:
        gpu_driver = _driver_of(trt) if driver is None else driver
        library = (libcuda or _libcuda_of(trt)) if graphs else None
        gpu = Gpu(device, driver=gpu_driver)
        try:
            with gpu.current("the engine cannot be loaded"):
                shared = SharedEngine(trt, engine)
        except BaseException:
            gpu.close()
            raise
        return shared.backend(gpu, preprocess, library)

    return open_engine


class TensorRTBackend(DeviceBackend):
    """A backend on TensorRT; see :class:`~edgesmith.sdk.cuda.backend.DeviceBackend`."""


class SharedEngine:
    """A deserialised engine that the backends of several threads share; gone with the last of them.

    Make it with the context current.

    Raises:
        IncompatibleEngineError: TensorRT does not load the plan; the message has TensorRT's own words.
        BindingError: it does not have one image as its input, or a type that numpy lacks.
    """

    def __init__(self, trt: Any, engine: Engine) -> None:
        self.trt, self.variant = trt, engine.record.variant
        self.log = make_log(trt)
        self._users, self._lock = 0, threading.Lock()
        options = engine.record.key.options
        low, best, high = engine.record.key.batch
        self.batch = Batch(min=low, opt=best, max=high)
        self._runtime: Any = trt.Runtime(self.log)
        if options.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True
        if options.get("dla") is not None:
            self._runtime.DLA_core = options["dla"]
        self.engine: Any = self._runtime.deserialize_cuda_engine(engine.plan)
        if self.engine is None:
            raise IncompatibleEngineError(
                f"{title_of(trt)} does not load the engine of variant {self.variant!r}: {self.said()}"
            )
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = {n: self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        inputs = [name for name in names if is_input[name]]
        if len(inputs) != 1:
            raise BindingError(
                f"an engine has one image as its input, this one has {', '.join(inputs) or 'none'}"
            )
        self.outputs = [name for name in names if not is_input[name]]
        for name in names:
            if self.engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BindingError(f"tensor {name} is a shape tensor on the host, which is not supported")
        self.dtypes = {name: self._dtype(name) for name in names}
        sides = tuple(None if side < 0 else int(side) for side in self.engine.get_tensor_shape(inputs[0]))
        self.spec = InputSpec(name=inputs[0], dtype=self.dtypes[inputs[0]].name, shape=sides)

    def backend(self, gpu: Gpu, preprocess: Preprocess | None, libcuda: Any | None) -> TensorRTBackend:
        """A backend with its own stream, contexts and memory; it takes over ``gpu``."""
        with self._lock:
            self._users += 1
        scratch = _Scratch(gpu)

        def release() -> None:
            scratch.close()
            self._leave()

        try:
            return TensorRTBackend(
                name="tensorrt",
                batch=self.batch,
                detail=f"{title_of(self.trt)}, {gpu.facts.name} (SM {gpu.facts.compute_capability})",
                variant=self.variant,
                gpu=gpu,
                spec=self.spec,
                open_execution=lambda tensor, address, stream: TensorRTExecution(
                    self, scratch, tensor, address, stream
                ),
                preprocess=preprocess,
                libcuda=libcuda,
                release=release,
                clone=lambda: self.backend(Gpu(gpu.facts.device, driver=gpu.driver), preprocess, libcuda),
            )
        except BaseException:
            with gpu.current("the engine cannot be released"):
                release()
            gpu.close()
            raise

    def said(self) -> str:
        """TensorRT's last errors: its calls return False or None, and the reason is in its log alone."""
        errors = "; ".join(text.strip() for text in self.log.errors[-3:])
        self.log.errors.clear()
        return errors or "no reason in TensorRT's log"

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self.engine = self._runtime = None  # in this order

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self.engine.get_tensor_dtype(name)
        for theirs, ours in DTYPES.items():
            if kind == named(self.trt.DataType, theirs):
                return np.dtype(ours)
        text = getattr(kind, "name", str(kind))
        raise BindingError(
            f"tensor {name} has the type {text}, which numpy has not: keep inputs and outputs in "
            f"{', '.join(DTYPES.values())} (a cast at the graph's border does that)"
        )


class _Scratch:
    """The scratch memory of the contexts of one backend."""

    def __init__(self, gpu: Gpu) -> None:
        self._buffers = Buffers(gpu)
        self._address = 0

    def of(self, nbytes: int) -> int:
        """Its address; taken at the first call, every context of an engine needs the same."""
        if not self._address:
            self._address = self._buffers.take(nbytes, host=False).address
        return self._address

    def close(self) -> None:
        """Free it."""
        self._address = 0
        self._buffers.close()


class TensorRTExecution:
    """A context for one input shape; an :class:`~edgesmith.sdk.cuda.lane.Execution`.

    Raises:
        BindingError: no profile of the engine takes the shape, or an output's shape depends on the data.
        BackendError: TensorRT refuses; the message has TensorRT's own words.
    """

    capturable = True

    def __init__(
        self, shared: SharedEngine, scratch: _Scratch, tensor: Tensor, address: int, stream: Any
    ) -> None:
        self._shared = shared
        trt, engine = shared.trt, shared.engine
        profile = _profile_for(engine, tensor)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._context = engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(f"TensorRT gives no execution context: {shared.said()}")
        nbytes = int(engine.device_memory_size_v2)
        if nbytes:
            context.set_device_memory(scratch.of(nbytes), nbytes)
        if profile:
            self._held(context.set_optimization_profile_async(profile, stream.handle), f"profile {profile}")
        self._held(
            context.set_input_shape(tensor.name, tensor.shape), f"shape {tensor.shape} of {tensor.name}"
        )
        unset = context.infer_shapes()
        if unset:
            raise BindingError(f"the shape of {', '.join(unset)} is not known from that of {tensor.name}")
        self.outputs: tuple[Tensor, ...] = tuple(self._output(name) for name in shared.outputs)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where input and outputs lie."""
        for name, address in addresses.items():
            self._held(self._context.set_tensor_address(name, address), f"the address of {name}")

    def enqueue(self, stream: Any) -> None:
        """Put one run into the stream.

        Raises:
            BackendError: TensorRT refuses.
        """
        self._held(self._context.execute_async_v3(stream.handle), "the run")

    def close(self) -> None:
        """Let go of the context."""
        self._context = None

    def _output(self, name: str) -> Tensor:
        shape = tuple(int(side) for side in self._context.get_tensor_shape(name))
        if any(side < 0 for side in shape):
            raise BindingError(
                f"the shape of output {name} depends on the data {shape}: pad it to a fixed size in the graph"
            )
        return Tensor(name, self._shared.dtypes[name], shape)

    def _held(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(f"TensorRT refuses {what}: {self._shared.said()}")


def _profile_for(engine: Any, tensor: Tensor) -> int:
    """The optimization profile for a shape: of those that take it, one that was tuned for it comes first."""
    fitting, ranges = [], []
    for index in range(engine.num_optimization_profiles):
        low, best, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, index))
        ranges.append(f"{low} to {high}")
        if len(low) == len(tensor.shape) and all(
            a <= n <= b for a, n, b in zip(low, tensor.shape, high, strict=True)
        ):
            fitting.append((best != tensor.shape, index))
    if fitting:
        return min(fitting)[1]
    raise BindingError(
        f"input {tensor.name} {tensor.shape} fits no profile of the engine: {'; '.join(ranges)}"
    )


def _driver_of(trt: Any) -> Any:
    """pycuda's driver; that of the fake GPU where TensorRT is a fake."""
    return trt.cuda.driver if hasattr(trt, "simulated") else load_driver()


def _libcuda_of(trt: Any) -> Any | None:
    return trt.cuda.libcuda if hasattr(trt, "simulated") else load_libcuda()
