"""The building half of the fake TensorRT: network, parser, configuration, builder.

Every class is made for one module (``_trt``), whose version decides what it has.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from edgesmith.sdk.onnx_reader import Node, Outline, Value, read_outline
from edgesmith.sdk.testing.simulated import Plan, is_named, write_plan

KINDS = {
    "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "Cast": "CAST", "Relu": "ACTIVATION",
    "LeakyRelu": "ACTIVATION", "Sigmoid": "ACTIVATION", "Clip": "ACTIVATION", "Tanh": "ACTIVATION",
    "MaxPool": "POOLING", "AveragePool": "POOLING", "GlobalAveragePool": "POOLING", "Softmax": "SOFTMAX",
    "Concat": "CONCATENATION", "Add": "ELEMENTWISE", "Mul": "ELEMENTWISE", "Sub": "ELEMENTWISE",
    "Div": "ELEMENTWISE", "Exp": "UNARY", "Reshape": "SHUFFLE", "Transpose": "SHUFFLE", "Flatten": "SHUFFLE",
    "ReduceMean": "REDUCE", "TopK": "TOPK", "Gather": "GATHER", "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY", "Slice": "SLICE", "Resize": "RESIZE", "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE", "Constant": "CONSTANT",
}  # fmt: skip
ON_DLA = {
    "CONVOLUTION", "DECONVOLUTION", "ACTIVATION", "POOLING", "SCALE", "CONCATENATION", "ELEMENTWISE",
    "SOFTMAX",
}  # fmt: skip
DTYPES = {
    "float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8",
    "int64": "INT64", "bfloat16": "BF16",
}  # fmt: skip
_STEPS = 20
Shape = tuple[int, ...]


class Tensor:
    """``ITensor``."""

    def __init__(self, trt: Any, value: Value) -> None:
        self.name = value.name
        self.shape = value.shape
        self.dtype = getattr(trt.DataType, DTYPES[value.dtype])


class Layer:
    """``ILayer``."""

    def __init__(self, trt: Any, node: Node) -> None:
        self.name = node.name
        self.type = getattr(trt.LayerType, KINDS.get(node.operator, "IDENTITY"))
        self.num_inputs, self.num_outputs = len(node.inputs), len(node.outputs)


class Network:
    """``INetworkDefinition``."""

    def __init__(self, trt: Any, flags: int) -> None:
        self.flags = flags
        self.name = ""
        self._trt = trt
        self._graph: bytes | None = None
        self._outline = Outline((), (), (), {}, {})

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self._outline.nodes)

    @property
    def num_inputs(self) -> int:
        """Number of inputs."""
        return len(self._outline.inputs)

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return len(self._outline.outputs)

    def get_layer(self, index: int) -> Layer:
        """One layer."""
        return Layer(self._trt, self._outline.nodes[index])

    def get_input(self, index: int) -> Tensor:
        """One input; an axis of unknown size is -1."""
        return Tensor(self._trt, self._outline.inputs[index])

    def get_output(self, index: int) -> Tensor:
        """One output."""
        return Tensor(self._trt, self._outline.outputs[index])


class ParserError:
    """``ParserError``: everything is a method, as in the bindings."""

    def __init__(self, code: Any, text: str, number: int = -1, node: Node | None = None) -> None:
        self._code, self._text, self._number, self._node = code, text, number, node

    def code(self) -> Any:
        """The ErrorCode."""
        return self._code

    def desc(self) -> str:
        """The message."""
        return self._text

    def node(self) -> int:
        """Index of the node, -1 where it concerns the graph."""
        return self._number

    def node_name(self) -> str:
        """Name of the node."""
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        """Operator of the node."""
        return self._node.operator if self._node else ""


class Parser:
    """``OnnxParser``."""

    _trt: Any

    def __init__(self, network: Network, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        """Number of errors of the last parse."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """One error."""
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        """Fill the network; False with errors where the graph is refused."""
        codes = self._trt.ErrorCode
        self._errors = []
        try:
            outline = read_outline(bytes(model))
        except ValueError as error:
            self._errors = [ParserError(codes.MODEL_DESERIALIZE_FAILED, str(error))]
            return False
        for number, node in enumerate(outline.nodes):
            if node.operator.startswith(("QLinear", "DynamicQuantize")) or node.operator.endswith("Integer"):
                self._errors = [ParserError(codes.UNSUPPORTED_NODE, "false", number, node)]
                return False
        self._network._graph, self._network._outline = bytes(model), outline
        return True


class Profile:
    """``IOptimizationProfile``."""

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        """Range of an input's shape."""
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class TimingCache:
    """``ITimingCache``."""

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    def serialize(self) -> bytes:
        """The cache as bytes."""
        return self._data


class Config:
    """``IBuilderConfig``; what only TensorRT 10 has stands in :class:`CalibratedConfig`."""

    def __init__(self, trt: Any, logger: Any) -> None:
        self.builder_optimization_level = 3
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self.default_device_type = trt.DeviceType.GPU
        self.DLA_core = -1
        self.max_aux_streams = -1
        self.progress_monitor: Any = None
        self._trt, self._logger = trt, logger
        self._flags: set[Any] = set()
        self._pools: dict[Any, int] = {}
        self._profiles: list[Profile] = []
        self._timing: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        """Switch a BuilderFlag on."""
        self._flags.add(flag)

    def get_flag(self, flag: Any) -> bool:
        """Whether a BuilderFlag is on."""
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """Bytes of a pool."""
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        """Bytes of a pool."""
        return self._pools.get(pool, 0)

    def add_optimization_profile(self, profile: Profile) -> int:
        """Add a profile; its index."""
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        """A cache from bytes; empty bytes make an empty one."""
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Use a cache; False where it is of another version or device."""
        head = self._timing_head()
        if cache.serialize() and not cache.serialize().startswith(head) and not ignore_mismatch:
            self._trt._say(self._logger, "WARNING", "timing cache is of another version or device")
            return False
        self._timing = TimingCache(cache.serialize() or head)
        return True

    def get_timing_cache(self) -> TimingCache | None:
        """The cache in use."""
        return self._timing

    def can_run_on_DLA(self, layer: Layer) -> bool:
        """Whether the DLA takes a layer; the reason is in the log."""
        if layer.type.name in ON_DLA:
            return True
        text = f"{layer.name}: DLA only supports some layers, {layer.type.name} is not one of them."
        self._trt._say(self._logger, "WARNING", text)
        return False

    def _timing_head(self) -> bytes:
        device = self._trt.simulated
        return f"timing {device.version} {device.compute_capability}".encode()


class CalibratedConfig(Config):
    """The configuration of TensorRT 10: implicit INT8."""

    def __init__(self, trt: Any, logger: Any) -> None:
        super().__init__(trt, logger)
        self.int8_calibrator: Any = None


class RtxConfig(Config):
    """The configuration of TensorRT-RTX: it names the GPUs that it builds for."""

    def __init__(self, trt: Any, logger: Any) -> None:
        super().__init__(trt, logger)
        self.num_compute_capabilities = 0
        self._capabilities: dict[int, Any] = {}

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        """One GPU to build for; the count comes first."""
        if index >= self.num_compute_capabilities:
            return False
        self._capabilities[index] = compute_capability
        return True


class Builder:
    """``Builder``."""

    _trt: Any

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        """DLA cores that can be used."""
        return int(self._trt.simulated.num_DLA_cores)

    def create_network(self, flags: int = 0) -> Network:
        """An empty network; ``flags`` is a bit set of NetworkDefinitionCreationFlag."""
        return Network(self._trt, flags)

    def create_builder_config(self) -> Config:
        """An empty configuration."""
        if self._trt.simulated.rtx:
            return RtxConfig(self._trt, self._logger)
        kind = CalibratedConfig if self._trt.simulated.numbers[0] < 11 else Config
        return kind(self._trt, self._logger)

    def create_optimization_profile(self) -> Profile:
        """An empty profile."""
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        """The plan; None where the build fails, with the reason in the log alone."""
        device = self._trt.simulated
        fault = self._refusal(network, config)
        if fault is None and not self._work(config):
            fault = "Error Code 7: BuildCanceled (the build was canceled by the progress monitor)"
        if fault is None and device.build_fault == "memory":
            fault = "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes. [memory.cpp::allocate])"
        if fault is None and device.build_fault == "refused":
            fault = "Error Code 10: Internal Error (Could not find any implementation for node node_Conv_0.)"
        if fault is not None:
            self._trt._say(self._logger, "ERROR", f"IBuilder::buildSerializedNetwork: {fault}")
            return None
        assert network._graph is not None
        if device.build_fault == "empty":
            return b""
        flags = self._trt.BuilderFlag
        dla = config.default_device_type == self._trt.DeviceType.DLA and device.num_DLA_cores > 0
        plan = Plan(
            graph=network._graph,
            numbers=device.numbers,
            compute_capability=device.compute_capability,
            version_compatible=config.get_flag(flags.VERSION_COMPATIBLE),
            hardware_compatible=config.hardware_compatibility_level
            != self._trt.HardwareCompatibilityLevel.NONE,
            wrong=is_named(network._graph, device.wrong_plans),
            dla=config.DLA_core if dla else None,
            profiles=tuple(profile._shapes for profile in config._profiles),
            layers=tuple(node.name for node in network._outline.nodes),
        )
        return write_plan(plan, device.rtx)

    def _refusal(self, network: Network, config: Config) -> str | None:
        """What TensorRT says of a network that it cannot build."""
        if network._graph is None:
            return "Error Code 4: API Usage Error (Network must have at least one output)"
        dynamic = [value for value in network._outline.inputs if -1 in value.shape]
        if dynamic and not config._profiles:
            return (
                "Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no optimization "
                "profile has been defined.)"
            )
        for number, profile in enumerate(config._profiles):
            for value in dynamic:
                if value.name not in profile._shapes:
                    return (
                        "Error Code 4: API Usage Error "
                        f"(Dynamic input tensor {value.name} is missing dimensions in profile {number}.)"
                    )
                ranges = profile._shapes[value.name]
                fault = _profile_fault(value, ranges, number)
                if fault:
                    return f"Error Code 4: API Usage Error ({fault})"
                if config.default_device_type == self._trt.DeviceType.DLA and len(set(ranges)) > 1:
                    return f"Error Code 4: API Usage Error (DLA takes no range: {value.name} has {ranges})"
        return self._precision_refusal(network, config)

    def _precision_refusal(self, network: Network, config: Config) -> str | None:
        flags, creation = self._trt.BuilderFlag, self._trt.NetworkDefinitionCreationFlag
        typed = self._trt.simulated.numbers[0] >= 11 or self._trt.simulated.rtx
        typed = typed or bool(network.flags & (1 << int(creation.STRONGLY_TYPED)))
        old = [
            name
            for name in ("FP16", "INT8")
            if hasattr(flags, name) and config.get_flag(getattr(flags, name))
        ]
        if typed and old:
            return f"Error Code 4: API Usage Error (BuilderFlag {old[0]} is set on a strongly typed network.)"
        if not isinstance(config, CalibratedConfig) or "INT8" not in old:
            return None
        cache = config.int8_calibrator.read_calibration_cache() if config.int8_calibrator else None
        major, minor, patch, _ = self._trt.simulated.numbers
        if not cache or not bytes(cache).startswith(f"TRT-{major * 10000 + minor * 100 + patch}-".encode()):
            return "Error Code 1: Internal Error (calibration cache is missing or of another version)"
        return None

    def _work(self, config: Config) -> bool:
        """Take the time that a build takes, with progress; False where the monitor cancels it."""
        device, monitor = self._trt.simulated, config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, _STEPS)
        for step in range(_STEPS):
            time.sleep(device.build_s / _STEPS)
            if step == _STEPS // 2 and device.build_fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            while step == _STEPS // 2 and device.build_fault == "hang":
                time.sleep(0.05)
            if monitor is not None and not monitor.step_complete("Building Engine", step):
                return False
        if monitor is not None:
            monitor.phase_finish("Building Engine")
        return True


def _profile_fault(value: Value, ranges: tuple[Shape, Shape, Shape], number: int) -> str | None:
    for axis, length in enumerate(value.shape):
        low, opt, high = (shape[axis] for shape in ranges)
        if not low <= opt <= high:
            return f"Invalid optimization profiles for input tensors {value.name}: MIN<=OPT<=MAX"
        if length != -1 and (low, opt, high) != (length, length, length):
            return (
                f"Dimension mismatch for tensor {value.name} and profile {number}. At dimension axis {axis}, "
                f"profile has min={low}, opt={opt}, max={high} but tensor has {length}."
            )
    return None
