"""The running half of the fake TensorRT: runtime, engine, execution context.

It computes through onnxruntime. Device memory is not its own: an object of the kind of :class:`Cuda` has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.onnx_reader import Outline, Value, read_outline
from edgesmith.sdk.testing.fake_builder import DTYPES, Shape
from edgesmith.sdk.testing.simulated import Plan, is_named, names_of, read_plan, write_plan

_SEVERITY_ERROR = 3
_UNSOUND = ("WeightBiasQuantization",)  # as in backends/onnxruntime.py: wrong beside FP16 scales
Bytes = NDArray[np.uint8]


class Cuda(Protocol):
    """The device memory and streams that an execution context works on."""

    def read(self, address: int, nbytes: int) -> Bytes:
        """A view of device memory; raises where it is not allocated."""
        ...

    def write(self, address: int, data: Bytes) -> None:
        """Change device memory; raises where it is not allocated."""
        ...

    def check_thread(self) -> None:
        """Raise where the calling thread has no context."""
        ...

    def is_capturing(self, stream: int) -> bool:
        """Whether a graph is being captured from the stream."""
        ...

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Do the work in the stream's order; while a graph is captured, keep it for each replay."""
        ...


class HostMemory:
    """The smallest :class:`Cuda`: arrays on the host, work done at once, any thread, no graphs."""

    def __init__(self) -> None:
        self._blocks: dict[int, Bytes] = {}
        self._next = 1 << 20

    def allocate(self, nbytes: int) -> int:
        """Address of a new block of zeros."""
        address = self._next
        self._blocks[address] = np.zeros(nbytes, np.uint8)
        self._next += (nbytes // 512 + 2) * 512
        return address

    def free(self, address: int) -> None:
        """Give a block back."""
        del self._blocks[address]

    def read(self, address: int, nbytes: int) -> Bytes:
        """A view of a block; KeyError where it was freed, ValueError where it is too small."""
        block = self._blocks[address]
        if nbytes > block.size:
            raise ValueError(f"{nbytes} bytes of a block of {block.size}")
        return block[:nbytes]

    def write(self, address: int, data: Bytes) -> None:
        """Change a block."""
        self.read(address, data.size)[:] = data

    def check_thread(self) -> None:
        """Every thread may."""

    def is_capturing(self, stream: int) -> bool:
        """Never."""
        return False

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Do it now."""
        work()


class Runtime:
    """``Runtime``."""

    _trt: Any

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False
        self.DLA_core = -1

    @property
    def num_DLA_cores(self) -> int:
        """DLA cores that can be used."""
        return int(self._trt.simulated.num_DLA_cores)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        """The engine; None where the plan does not fit, with the reason in the log alone."""
        try:
            plan = read_plan(bytes(serialized_engine), self._trt.simulated.rtx)
            fault = self._misfit(plan)
        except ValueError as error:
            plan, fault = None, f"Error Code 1: Serialization ({error})"
        if fault is None and plan is not None:
            return Engine(self._trt, self.logger, plan)
        self._trt._say(self.logger, "ERROR", f"IRuntime::deserializeCudaEngine: {fault}")
        return None

    def _misfit(self, plan: Plan) -> str | None:
        device = self._trt.simulated
        if plan.numbers != device.numbers:
            same = plan.version_compatible and plan.numbers[0] == device.numbers[0]
            if not same or plan.numbers > device.numbers:
                mine, its = (".".join(str(n) for n in numbers) for numbers in (device.numbers, plan.numbers))
                return (
                    "Error Code 6: API Usage Error (The engine plan file is not compatible with this version "
                    f"of TensorRT, expecting library version {mine} got {its}, please rebuild.)"
                )
        if plan.version_compatible and not self.engine_host_code_allowed:
            return "Error Code 4: API Usage Error (host code in engines is not allowed)"
        mine, its = (f"{c[0]}.{c[1]}" for c in (device.compute_capability, plan.compute_capability))
        if mine != its and not (plan.hardware_compatible and device.compute_capability >= (8, 0)):
            return (
                "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, "
                f"expecting compute {mine} got compute {its}, please rebuild.)"
            )
        return None


class Engine:
    """``ICudaEngine``."""

    def __init__(self, trt: Any, logger: Any, plan: Plan) -> None:
        self.name = "Unnamed Network 0"
        self._trt, self._logger, self._plan = trt, logger, plan
        self._outline: Outline = read_outline(plan.graph)
        self._values = {v.name: v for v in (*self._outline.inputs, *self._outline.outputs)}
        self._session: Any = None

    @property
    def num_io_tensors(self) -> int:
        """Number of inputs and outputs."""
        return len(self._values)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self._plan.layers)

    @property
    def num_optimization_profiles(self) -> int:
        """Number of profiles; one where the shapes are fixed."""
        return max(1, len(self._plan.profiles))

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of scratch memory of a context."""
        return 1 << 20

    def get_tensor_name(self, index: int) -> str:
        """Name of an input or output."""
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> Any:
        """Whether it is an input or an output."""
        modes = self._trt.TensorIOMode
        if name not in self._values:
            return modes.NONE
        return modes.INPUT if name in {v.name for v in self._outline.inputs} else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        """Its DataType."""
        return getattr(self._trt.DataType, DTYPES[self._values[name].dtype])

    def get_tensor_shape(self, name: str) -> Shape:
        """Its shape; an axis that varies is -1."""
        return self._values[name].shape

    def get_tensor_location(self, name: str) -> Any:
        """Where it lies."""
        return self._trt.TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        """How it lies there."""
        return self._trt.TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        """(min, opt, max) of an input."""
        if not self._plan.profiles or name not in self._plan.profiles[profile_index]:
            return [self._values[name].shape] * 3
        return list(self._plan.profiles[profile_index][name])

    def create_execution_context(self, strategy: Any = None) -> Context:
        """A context; the network's weights are shared. Its scratch memory may be the caller's."""
        strategies = self._trt.ExecutionContextAllocationStrategy
        return Context(self._trt, self._logger, self, managed=strategy == strategies.USER_MANAGED)

    def serialize(self) -> bytes:
        """The plan again."""
        return write_plan(self._plan, self._trt.simulated.rtx)

    def _compute(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._session is None:
            self._session = _session(self._plan.graph)
        names = [value.name for value in self._outline.outputs]
        outputs = dict(zip(names, self._session.run(names, inputs), strict=True))
        self._trt._take_time(names_of(self._plan.graph))
        if self._plan.wrong or is_named(self._plan.graph, self._trt.simulated.wrong):
            outputs[names[0]] = outputs[names[0]] + outputs[names[0]].dtype.type(1)
        return outputs


class Context:
    """``IExecutionContext``: every address set, every shape in range, or nothing runs."""

    def __init__(self, trt: Any, logger: Any, engine: Engine, *, managed: bool = False) -> None:
        self.engine = engine
        self._managed, self._scratch = managed, (0, 0)
        self.name = ""
        self.active_optimization_profile = 0
        self._trt, self._logger = trt, logger
        self._shapes = {v.name: v.shape for v in engine._outline.inputs if -1 not in v.shape}
        self._addresses: dict[str, int] = {}
        self._ready: dict[str, Shape] | None = None
        self._outputs: dict[str, Shape] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose a profile; the shapes have to be set again."""
        self._trt.cuda.check_thread()
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._refuse(f"profile index {profile_index} is out of range")
        self.active_optimization_profile = profile_index
        self._shapes = {v.name: v.shape for v in self.engine._outline.inputs if -1 not in v.shape}
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        """Scratch memory of the caller's, at least ``engine.device_memory_size_v2`` bytes."""
        self._scratch = (int(memory), int(size))

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """The shape of an input for the next runs."""
        value = next((v for v in self.engine._outline.inputs if v.name == name), None)
        if value is None:
            return self._refuse(f"{name} is no input")
        wanted = tuple(shape)
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        inside = len(wanted) == len(value.shape) and all(
            a <= n <= b for a, n, b in zip(low, wanted, high, strict=True)
        )
        if not inside:
            return self._refuse(
                f"Static dimension mismatch or out of profile: {name} has {wanted}, profile "
                f"{self.active_optimization_profile} takes {low} to {high}"
            )
        self._shapes[name] = wanted
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        """An input's shape as set, an output's as it follows; -1 where it is not known yet."""
        if name in self._shapes:
            return self._shapes[name]
        if self.engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT or self.infer_shapes():
            return self.engine._values[name].shape
        self._infer_outputs()
        return self._outputs[name]

    def infer_shapes(self) -> list[str]:
        """Names of the inputs whose shape is not set."""
        return [v.name for v in self.engine._outline.inputs if v.name not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where a tensor lies on the device."""
        if name not in self.engine._values:
            return self._refuse(f"{name} is neither input nor output")
        self._addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        """Where a tensor lies on the device, 0 where that is not set."""
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Put a run into the stream; False where something is missing, with the reason in the log alone."""
        cuda: Cuda = self._trt.cuda
        cuda.check_thread()
        unset = self.infer_shapes()
        if unset:
            return self._refuse(f"Neither address or allocator, or no shape, for input {unset[0]}")
        missing = [name for name in self.engine._values if not self._addresses.get(name)]
        if missing:
            return self._refuse(f"Neither address or allocator is set for tensor {missing[0]}")
        if self._managed and self._scratch[1] < self.engine.device_memory_size_v2:
            return self._refuse("no device memory is set, or too little")
        capturing = cuda.is_capturing(stream_handle)
        if capturing and self._ready != self._shapes:
            return self._refuse("deferred shape work during stream capture: run once outside of it first")
        self._infer_outputs()
        self._ready = dict(self._shapes)
        shapes, addresses, outputs = dict(self._shapes), dict(self._addresses), dict(self._outputs)
        cuda.enqueue(stream_handle, lambda: self._run(shapes, addresses, outputs))
        return True

    def _run(self, shapes: dict[str, Shape], addresses: dict[str, int], outputs: dict[str, Shape]) -> None:
        cuda: Cuda = self._trt.cuda
        if self._managed:
            cuda.read(*self._scratch)  # raises where it was freed meanwhile
        inputs = {}
        for value in self.engine._outline.inputs:
            kind, shape = np.dtype(value.dtype), shapes[value.name]
            data = cuda.read(addresses[value.name], int(np.prod(shape)) * kind.itemsize)
            inputs[value.name] = np.array(data).view(kind).reshape(shape)
        found = self.engine._compute(inputs)
        for name, array in found.items():
            if array.shape != outputs[name]:
                raise ValueError(f"{name} came out as {array.shape}, not {outputs[name]}")
            cuda.write(addresses[name], np.ascontiguousarray(array).view(np.uint8).reshape(-1))

    def _infer_outputs(self) -> None:
        """Shapes of the outputs: those of the graph, the open axes found by computing once on zeros."""
        if self._ready == self._shapes and self._outputs:
            return
        known = {v.name: v for v in self.engine._outline.outputs}
        if all(-1 not in v.shape for v in known.values()):
            self._outputs = {name: v.shape for name, v in known.items()}
            return
        key = tuple(sorted(self._shapes.items()))
        shapes = self._trt._shape_memory.setdefault(id(self.engine), {})
        if key not in shapes:
            zeros = {
                v.name: np.zeros(self._shapes[v.name], np.dtype(v.dtype)) for v in self.engine._outline.inputs
            }
            with self._trt._untimed():
                shapes[key] = {name: a.shape for name, a in self.engine._compute(zeros).items()}
        self._outputs = shapes[key]

    def _refuse(self, reason: str) -> bool:
        text = f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error ({reason})"
        self._trt._say(self._logger, "ERROR", text)
        return False


def _session(graph: bytes) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _SEVERITY_ERROR
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        graph, settings, providers=["CPUExecutionProvider"], disabled_optimizers=list(_UNSOUND)
    )


def sleep(seconds: float) -> None:
    """Wait; short waits by looking at the clock, which `time.sleep` overruns."""
    until = time.perf_counter() + seconds
    if seconds > 0.002:
        time.sleep(seconds - 0.001)
    while time.perf_counter() < until:
        pass


__all__ = ["Bytes", "Context", "Cuda", "Engine", "HostMemory", "Runtime", "Value", "sleep"]
