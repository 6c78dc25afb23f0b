"""What a network can reach on a device at best, from the device's peaks alone (a roofline).

A layer takes as long as the slower of its arithmetic at the device's peak and its bytes at the
memory's bandwidth (Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009). It is an estimate:
a real engine mostly takes longer, by how much is for a measurement to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from edgesmith.device_profiles import DeviceProfile, PowerMode
from edgesmith.sdk.board.layers import FLOATS, ITEM_BYTES, Layer, Network, network_of
from edgesmith.sdk.errors import DeviceProfileError
from edgesmith.sdk.onnx_reader import Outline

Precision = Literal["fp32", "fp16", "int8"]
ASSUMPTIONS = (
    "dense peaks of the GPU at the mode's highest clock (no 2:4 sparsity, no DLA), full memory bandwidth",
    "no launch overhead: small networks take longer than this",
    "no caches: what stays in one between two layers is faster than this",
    "elementwise operators cost no memory traffic of their own; reshapes and Q/DQ cost nothing",
    "concatenations, slices and transposes are copies, though an engine can save some of them",
    "matrix arithmetic on tensor cores in FP16 and INT8, channels filled up to 8 (FP16) or 32 (INT8), "
    "while CUDA cores do the rest of the layer",
    "FP32, depthwise convolutions and all else compute at the CUDA cores' FP32 rate (no TF32)",
    "INT8 is FP16 with the convolutions and matrix products in INT8 that gain from it; "
    "a graph with Q/DQ has its own choice",
    "inputs and outputs keep the type that they have in the bundle",
    "memory is weights and the activations alive at once: without TensorRT, CUDA, the system, workspaces",
)
_ITEM: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 2}
_FILL: dict[Precision, int] = {"fp32": 1, "fp16": 8, "int8": 32}
_FEW = 16  # channels of a group below which TensorRT's INT8 kernels bring nothing
_GAIN = 1.05  # a layer that gets faster by less does not count as a gain


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One layer in one precision. ``int8`` says whether its matrix arithmetic is in INT8."""

    bytes_read: int
    bytes_written: int
    compute_us: float
    memory_us: float
    time_us: float
    bound: Literal["compute", "memory"]
    int8: bool


class LayerEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One layer; ``costs`` by precision.

    ``flops`` are two for each multiply-accumulate, and all other operations, without those of the
    operators ``uncounted``. ``int8_gain`` is the time
    in FP16 over that in INT8, None where the device lacks one of them; ``no_gain`` says why INT8
    arithmetic brings nothing to a layer with weights (a neighbour in INT8 may still save it bytes), and
    is empty where it brings something.
    """

    name: str
    operators: tuple[str, ...]
    macs: int
    flops: int
    weights: int
    uncounted: tuple[str, ...]
    costs: dict[Precision, Cost]
    int8_gain: float | None
    no_gain: str


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """The whole network in one precision. ``fits``: the memory is no more than the device's RAM."""

    time_ms: float
    memory_bound_ms: float
    weight_bytes: int
    activation_bytes: int
    memory_bytes: int
    fits: bool | None


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The roofline of one graph on one device.

    ``peaks`` are 10^12 operations a second by precision. ``int8_gain`` as in :class:`LayerEstimate`.
    ``unverified`` names the profile's figures that no source backs.
    """

    device: str
    mode: str
    batch: int
    peaks: dict[Precision, float]
    bandwidth_gb_s: float
    memory_gb: float | None
    macs: int
    flops: int
    weights: int
    totals: dict[Precision, Total]
    int8_gain: float | None
    layers: tuple[LayerEstimate, ...]
    assumptions: tuple[str, ...]
    unverified: tuple[str, ...]
    warnings: tuple[str, ...]


def estimate(
    outline: Outline,
    device: DeviceProfile,
    *,
    mode: str | None = None,
    batch: int = 1,
    where: str = "the graph",
) -> Estimate:
    """The roofline of a graph on a device.

    Args:
        outline: the graph, as ``read_outline`` gives it.
        device: the profile; it must have figures.
        mode: a power mode of the profile; the usual one without it.
        batch: the size of a batch axis that varies.
        where: what messages call the graph.

    Raises:
        DeviceProfileError: bundles do not run on the device, or its figures are not known, or it has no
            such mode.
        BundleError: the graph does not state the shape of a tensor.
        ConfigError: the size of a tensor varies.
    """
    power = _mode(device, mode)
    machine = _Machine(device, power)
    network = network_of(outline, batch, where)
    takes = {
        p: _integer_layers(network) if p == "int8" else [False] * len(network.layers) for p in machine.peaks
    }
    stored = {p: _stored(network, p, takes[p]) for p in machine.peaks}
    runs = {
        p: [
            _cost(layer, network, p, integer and layer.weighted, stored[p], machine)
            for layer, integer in zip(network.layers, takes[p], strict=True)
        ]
        for p in machine.peaks
    }
    layers = tuple(
        _layer_estimate(layer, {precision: run[index] for precision, run in runs.items()})
        for index, layer in enumerate(network.layers)
    )
    totals = {p: _total(network, p, runs[p], stored[p], machine.memory_gb) for p in machine.peaks}
    weights = {n: size for layer in network.layers for n, size in layer.weights.items()}
    return Estimate(
        device=device.name,
        mode=power.name,
        batch=batch,
        peaks={precision: peak / 1e12 for precision, peak in machine.peaks.items()},
        bandwidth_gb_s=power.bandwidth_gb_s.value,
        memory_gb=machine.memory_gb,
        macs=sum(layer.macs for layer in layers),
        flops=sum(layer.flops for layer in layers),
        weights=sum(weights.values()),
        totals=totals,
        int8_gain=_gain({p: t.time_ms for p, t in totals.items()}),
        layers=layers,
        assumptions=ASSUMPTIONS,
        unverified=machine.unverified,
        warnings=_warnings(device, totals, layers),
    )


def _mode(device: DeviceProfile, name: str | None) -> PowerMode:
    if device.unsupported:
        raise DeviceProfileError(
            f"{device.name}: no estimate, bundles do not run there: {device.unsupported}"
        )
    if not device.modes:
        raise DeviceProfileError(
            f"{device.name}: no estimate, the profile has no figures (clocks, bandwidth); name a device "
            "that has: `edgesmith devices` lists them"
        )
    try:
        return device.mode(name)
    except LookupError as error:
        raise DeviceProfileError(str(error.args[0])) from error


class _Machine:
    """A device's figures in operations and bytes a second."""

    def __init__(self, device: DeviceProfile, mode: PowerMode) -> None:
        if device.cuda_cores is None:
            raise DeviceProfileError(f"{device.name}: no estimate, the profile has no number of CUDA cores")
        # A CUDA core does one multiply-accumulate a clock.
        self.scalar = device.cuda_cores.value * 2 * mode.gpu_mhz.value * 1e6
        figures = {
            "CUDA cores": device.cuda_cores,
            "GPU MHz": mode.gpu_mhz,
            "GB/s": mode.bandwidth_gb_s,
            "FP16": mode.fp16_tflops,
            "INT8": mode.int8_tops,
            "RAM": device.memory_gb,
        }
        self.peaks: dict[Precision, float] = {"fp32": self.scalar}
        if "fp16" in device.precisions:
            self.peaks["fp16"] = mode.fp16_tflops.value * 1e12
        if "int8" in device.precisions and mode.int8_tops is not None:
            self.peaks["int8"] = mode.int8_tops.value * 1e12
        self.bandwidth = mode.bandwidth_gb_s.value * 1e9
        self.memory_gb = device.memory_gb.value if device.memory_gb else None
        self.unverified = tuple(name for name, f in figures.items() if f and f.status == "unverified")


def _few(layer: Layer) -> bool:
    return min(layer.reach, layer.width) < _FEW


def _integer_layers(network: Network) -> list[bool]:
    """Which layers take 8-bit integers: those that are quantized, and those that copy for them alone."""
    chosen = any(layer.quantized for layer in network.layers)
    takes = [
        layer.quantized if chosen else layer.weighted and not layer.depthwise and not _few(layer)
        for layer in network.layers
    ]
    readers = _readers(network)
    # From the end: whether a copy's readers take integers is known before the copy is looked at.
    for index in range(len(takes) - 1, -1, -1):
        layer = network.layers[index]
        if layer.copies:
            takes[index] = all(
                n not in network.outer and readers[n] and all(takes[r] for r in readers[n])
                for n in layer.writes
            )
    return takes


def _readers(network: Network) -> dict[str, list[int]]:
    readers: dict[str, list[int]] = {name: [] for name in network.tensors}
    for index, layer in enumerate(network.layers):
        for name in layer.reads:
            readers[name].append(index)
    return readers


def _stored(network: Network, precision: Precision, integer: list[bool]) -> dict[str, int]:
    """Bytes a value of each tensor: one where all that read it take 8-bit integers."""
    readers = _readers(network)
    item: dict[str, int] = {}
    for name, tensor in network.tensors.items():
        if name in network.outer:
            item[name] = ITEM_BYTES.get(network.outer[name], 4)
        elif tensor.dtype not in FLOATS:
            item[name] = ITEM_BYTES.get(tensor.dtype, 4)
        elif readers[name] and all(integer[index] for index in readers[name]):
            item[name] = 1
        else:
            item[name] = _ITEM[precision]
    return item


def _cost(
    layer: Layer,
    network: Network,
    precision: Precision,
    int8: bool,
    item: Mapping[str, int],
    machine: _Machine,
) -> Cost:
    weights = sum(layer.weights.values()) * (1 if int8 else _ITEM[precision])
    read = sum(size * item[name] for name, size in layer.reads.items()) + weights
    written = sum(network.tensors[name].elements * item[name] for name in layer.writes)
    number: Precision = "fp16" if precision == "int8" and not int8 else precision
    scalar = layer.other / machine.scalar
    if layer.depthwise or number == "fp32":
        scalar += 2 * layer.macs / machine.scalar
        matrix = 0.0
    else:
        matrix = 2 * layer.macs * _filling(layer, number) / machine.peaks[number]
    compute, memory = max(matrix, scalar) * 1e6, (read + written) / machine.bandwidth * 1e6
    return Cost(
        bytes_read=read,
        bytes_written=written,
        compute_us=compute,
        memory_us=memory,
        time_us=max(compute, memory),
        bound="compute" if compute > memory else "memory",
        int8=int8,
    )


def _filling(layer: Layer, precision: Precision) -> float:
    """How much more a tensor core computes than is asked: channels come in fixed numbers."""
    if not layer.macs:
        return 1.0
    unit = _FILL[precision]
    return math.prod(math.ceil(n / unit) * unit / n for n in (layer.reach, layer.width))


def _layer_estimate(layer: Layer, costs: dict[Precision, Cost]) -> LayerEstimate:
    gain = _gain({precision: cost.time_us for precision, cost in costs.items()})
    return LayerEstimate(
        name=layer.name,
        operators=layer.operators,
        macs=layer.macs,
        flops=2 * layer.macs + layer.other,
        weights=sum(layer.weights.values()),
        uncounted=layer.uncounted,
        costs=costs,
        int8_gain=gain,
        no_gain=_no_gain(layer, costs["int8"].int8, gain) if layer.weighted and gain is not None else "",
    )


def _gain(times: Mapping[Precision, float]) -> float | None:
    """Time in FP16 over time in INT8; 1 where both are nothing."""
    if "fp16" not in times or "int8" not in times:
        return None
    return times["fp16"] / times["int8"] if times["int8"] else 1.0


def _no_gain(layer: Layer, int8: bool, gain: float) -> str:
    if layer.depthwise:
        return "depthwise: not on tensor cores"
    if _few(layer):
        return f"few channels: {layer.reach} in, {layer.width} out"
    if not int8:
        return "kept in float by the graph"
    return "" if gain >= _GAIN else "bound by what stays in float around it"


def _total(
    network: Network, precision: Precision, run: list[Cost], item: Mapping[str, int], memory_gb: float | None
) -> Total:
    weights: dict[str, int] = {}
    for layer, cost in zip(network.layers, run, strict=True):
        for name, size in layer.weights.items():
            width = 1 if cost.int8 else _ITEM[precision]
            weights[name] = max(weights.get(name, 0), size * width)
    weight_bytes, activation_bytes = sum(weights.values()), _live(network, item)
    memory = weight_bytes + activation_bytes
    return Total(
        time_ms=sum(cost.time_us for cost in run) / 1e3,
        memory_bound_ms=sum(cost.time_us for cost in run if cost.bound == "memory") / 1e3,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        memory_bytes=memory,
        fits=memory <= memory_gb * 1e9 if memory_gb is not None else None,
    )


def _live(network: Network, item: Mapping[str, int]) -> int:
    """The most bytes of activations that are alive while a layer runs; outputs stay to the end."""
    last = len(network.layers)
    dies = {name: max(users, default=-1) for name, users in _readers(network).items()}
    dies.update(dict.fromkeys(network.outputs, last))
    size = {name: tensor.elements * item[name] for name, tensor in network.tensors.items()}
    alive = sum(size[name] for name in network.inputs)
    most = alive
    for index, layer in enumerate(network.layers):
        alive += sum(size[name] for name in layer.writes)
        most = max(most, alive)
        alive -= sum(size[name] for name in {*layer.reads, *layer.writes} if dies[name] <= index)
    return most


def _warnings(
    device: DeviceProfile, totals: Mapping[Precision, Total], layers: tuple[LayerEstimate, ...]
) -> tuple[str, ...]:
    found = []
    for precision, total in totals.items():
        if total.fits is False and device.memory_gb:
            found.append(
                f"{precision} does not fit: {total.memory_bytes / 1e9:.1f} GB of weights and activations, "
                f"{device.name} has {device.memory_gb.value:g} GB for the system and all programs"
            )
    if uncounted := sorted({name for layer in layers for name in layer.uncounted}):
        found.append(
            f"only bytes are counted of operators whose arithmetic is not known: {', '.join(uncounted)}"
        )
    return tuple(found)
