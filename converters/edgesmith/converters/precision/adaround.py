"""Whether each weight rounds up or down, learned layer by layer.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". A weight w of scale s
becomes s * floor(w / s) or s * ceil(w / s), and the choice minimises

    E |y - w' x|^2 + ridge * E[x^2] * |w - w'|^2            (the first term is their equations 20 and 21)

where y is what the float layer gives on float inputs, x what the quantized layer reads when all layers
before it are quantized and rounded ("asymmetric reconstruction"). Without the activation function in
between, the first term is a quadratic form of the moments E[x x'] and E[y x']: they are gathered once. The
paper relaxes the choice to a continuous one and descends its gradient; here the form is so cheap that single
weights are turned round instead, the one that lowers a row's loss most first, until none does: that came
nearer in half of the time (MobileNetV1-0.25: 25.2 against 24.3 dB on the search images). The second term
keeps the few calibration images from being learned by heart: without it the errors of the layers before,
which y - w' x holds as well, are mended for these images alone. Rows of the weight (output channels) do not
meet in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgesmith.converters.precision.agreement import decibels
from edgesmith.converters.precision.bias_correction import Deltas
from edgesmith.converters.precision.lockstep import Floats, LayerOutputs, channel_means, lockstep

Integers = NDArray[np.int8]
Array = NDArray[np.float32]
LAST = 127
POSITIONS = 512  # of each image's output map, drawn at random
# Turns that lower a row's loss by less than this share of its answers' power are left.
LEAST_GAIN = 1e-9


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``ridge`` stands in the loss above: 0 trusts the images alone, more stays nearer to nearest rounding.

    MobileNetV1-0.25, 59 images, by ridge 0, 0.1, 1, 3: 24.3, 24.9, 25.2, 24.4 dB on the search images.
    """

    ridge: float = 1.0
    positions: int = POSITIONS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Unrounded:
    """A layer's weight in units of its integers, with its factor in it, and the offset of its input."""

    weight: NDArray[np.float64]
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Rounded:
    """What was learned.

    ``weights`` are integers by layer, for :class:`~edgesmith.converters.passes.insert_qdq.InsertQdq`;
    ``losses`` the reconstruction error by layer as a share of that of rounding to nearest, on the images
    that it was learned on.
    """

    weights: dict[str, Integers]
    deltas: Deltas
    ratios: dict[str, float]
    losses: dict[str, float]


def learned_rounding(
    exact: onnx.ModelProto,
    quantized: onnx.ModelProto,
    layers: Mapping[str, Unrounded],
    tensors: Sequence[Floats],
    *,
    correct: bool = True,
    settings: Settings | None = None,
) -> Rounded:
    """Learn the rounding of each layer in execution order, with all layers before it rounded.

    Args:
        exact: the float graph.
        quantized: the same graph with Q/DQ pairs, its weights rounded to nearest.
        layers: its quantized Conv and Gemm nodes by name.
        tensors: inputs ``(1, C, H, W)`` of the calibration images.
        correct: take each channel's mean error off the bias as well; then the rounding minimises the error
            around its mean, since the bias takes the mean.
        settings: of the loss.
    """
    settings = settings or Settings()
    nodes = {node.name: node for node in ir.serde.deserialize_model(quantized).graph}
    floats = {node.name: node for node in ir.serde.deserialize_model(exact).graph}
    found = Rounded({}, {}, {}, {})
    for step in lockstep(exact, quantized, list(layers), tensors, inputs=True):
        layer = Layer.of(nodes[step.name], layers[step.name])
        random = np.random.default_rng([settings.seed, len(found.weights)])
        moments = moments_of(layer, step, _bias(floats[step.name]), settings.positions, random, correct)
        rows, found.losses[step.name] = rounded_rows(layer, moments, settings)
        found.weights[step.name] = layer.shaped(rows)
        change = torch.from_numpy((rows - layer.nearest) * layer.scale)
        step.replace([layer.outputs(x, change, y) for x, y in zip(step.inputs, step.quantized, strict=True)])
        found.deltas[step.name] = channel_means(step.exact) - channel_means(step.quantized)
        if correct:
            step.shift(found.deltas[step.name])
        found.ratios[step.name] = decibels(step.exact, step.quantized)
    return found


@dataclass(frozen=True, eq=False)
class Layer:
    """A quantized Conv or Gemm as a matrix ``(out, K)`` over what each output position reads.

    ``nearest`` are the integers that it has, ``target`` what they were rounded from, ``scale (out, 1)``;
    ``shape`` is that of the weight.
    """

    node: ir.Node
    shape: tuple[int, ...]
    nearest: Array
    target: Array
    scale: Array
    offset: float
    group: int

    @classmethod
    def of(cls, node: ir.Node, unrounded: Unrounded) -> Layer:
        """The layer behind a weight's DequantizeLinear."""
        weight = node.inputs[1]
        dequantize = weight.producer() if weight is not None else None
        assert dequantize is not None
        integers, scale = (_array(dequantize.inputs[index]) for index in (0, 1))
        group = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
        turned = _turned(node)
        return cls(
            node, integers.shape, _rows(integers, turned), _rows(unrounded.weight, turned),
            scale.astype(np.float32).reshape(-1, 1), unrounded.offset, group,
        )  # fmt: skip

    def shaped(self, rows: Array) -> Integers:
        """A matrix of integers in the shape of the layer's weight."""
        turned = _turned(self.node)
        found = rows.reshape(self.shape[::-1] if turned else self.shape).astype(np.int8)
        return np.ascontiguousarray(found.T) if turned else found

    def columns(self, value: Floats, chosen: NDArray[np.int64] | None) -> torch.Tensor:
        """What output positions read, ``(groups, K, positions)``, with the offset added again."""
        shifted = torch.from_numpy(np.ascontiguousarray(value)) + self.offset
        if self.node.op_type == "Gemm":
            rows: torch.Tensor = shifted.reshape(-1, value.shape[-1])
            return (rows if chosen is None else rows[torch.from_numpy(chosen)]).T[None]
        padded, strides, dilations = self._padded(shifted)
        kernel = self.shape[2:]
        size = [
            (length - dilation * (k - 1) - 1) // stride + 1
            for length, k, stride, dilation in zip(padded.shape[2:], kernel, strides, dilations, strict=True)
        ]
        wanted = np.arange(int(np.prod(size))) if chosen is None else chosen
        places = np.unravel_index(wanted, size)
        taps = np.unravel_index(np.arange(int(np.prod(kernel))), kernel)
        index = [
            tap[:, None] * dilation + place[None] * stride
            for tap, place, stride, dilation in zip(taps, places, strides, dilations, strict=True)
        ]
        found = padded[0].flatten(1)[:, _flat(index, padded.shape[2:])]  # (C, taps, positions)
        return found.reshape(self.group, -1, found.shape[-1])

    def _padded(self, value: torch.Tensor) -> tuple[torch.Tensor, list[int], list[int]]:
        """The input with the convolution's zeros around it, strides and dilations."""
        attributes, rank = self.node.attributes, value.ndim - 2
        pads = attributes.get_ints("pads", [0] * 2 * rank)
        around = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
        strides, dilations = (attributes.get_ints(name, [1] * rank) for name in ("strides", "dilations"))
        return functional.pad(value, around), list(strides), list(dilations)

    def outputs(self, value: Floats, change: torch.Tensor, before: Floats) -> Floats:
        """The layer's outputs after a change ``(out, K)`` of its weight."""
        shifted = torch.from_numpy(np.ascontiguousarray(value)) + self.offset
        if self.node.op_type == "Gemm":
            return np.asarray(before + (shifted @ change.T).numpy())
        padded, strides, dilations = self._padded(shifted)
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[padded.ndim - 3]
        added = convolve(padded, change.reshape(self.shape), None, strides, 0, dilations, self.group)
        return np.asarray(before + added.numpy())

    def answers(self, value: Floats) -> torch.Tensor:
        """Outputs as ``(groups, out / groups, positions)``."""
        if self.node.op_type == "Gemm":
            return torch.from_numpy(value.reshape(1, -1, value.shape[-1])).transpose(1, 2)
        return torch.from_numpy(np.ascontiguousarray(value)).reshape(
            self.group, value.shape[1] // self.group, -1
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """``second (groups, K, K)`` = E[x x'], ``cross (out, K)`` = E[y x'], ``power (out,)`` = E[y^2]."""

    second: Array
    cross: Array
    power: Array

    def product(self, rows: Array) -> Array:
        """Rows of a weight times the second moments of their group."""
        found = rows.reshape(self.second.shape[0], -1, rows.shape[-1]) @ self.second
        return np.asarray(found.reshape(rows.shape))

    def loss(self, rows: Array) -> NDArray[np.float64]:
        """E |y - w x|^2 of each row."""
        inner = ((self.product(rows) - 2 * self.cross) * rows).sum(1, dtype=np.float64)
        return np.asarray(inner + self.power)


def moments_of(
    layer: Layer,
    step: LayerOutputs,
    bias: NDArray[np.float32],
    positions: int,
    random: np.random.Generator,
    centred: bool,
) -> Moments:
    """Gathered over the images, some positions of each; about the means where ``centred``.

    No more than one image's columns are held at a time.
    """
    sums: list[torch.Tensor] = []
    count = 0
    for value, target in zip(step.inputs, step.exact, strict=True):
        y, chosen = layer.answers(target), None
        if y.shape[-1] > positions:
            chosen = np.sort(random.choice(y.shape[-1], positions, replace=False))
            y = y[:, :, torch.from_numpy(chosen)]
        x = layer.columns(value, chosen)
        y = y - torch.from_numpy(bias).reshape(layer.group, -1, 1)
        turned = x.transpose(1, 2)
        parts = [x @ turned, y @ turned, (y * y).sum(-1), x.sum(-1), y.sum(-1)]
        sums = (
            [s + p.double() for s, p in zip(sums, parts, strict=True)]
            if sums
            else [p.double() for p in parts]
        )
        count += x.shape[-1]
    second, cross, power, mean_x, mean_y = (s / count for s in sums)
    if centred:
        second = second - mean_x[:, :, None] * mean_x[:, None, :]
        cross = cross - mean_y[:, :, None] * mean_x[:, None, :]
        power = power - mean_y * mean_y
    return Moments(
        second.numpy().astype(np.float32),
        cross.reshape(-1, cross.shape[-1]).numpy().astype(np.float32),
        power.reshape(-1).numpy().astype(np.float32),
    )


def rounded_rows(layer: Layer, moments: Moments, settings: Settings) -> tuple[Array, float]:
    """Integers ``(out, K)`` as floats, and their error as a share of that of rounding to nearest.

    Each turn lowers the loss, and nearest rounding has the least of its second term: so no row's error grows.
    """
    groups, length = moments.second.shape[:2]
    rows, scale = layer.nearest.copy(), layer.scale
    other = np.clip(np.floor(layer.target) + np.ceil(layer.target) - rows, -LAST, LAST)
    diagonal = np.diagonal(moments.second, axis1=1, axis2=2)
    pull = settings.ridge * diagonal.mean(1)  # E[x^2] by group
    second = moments.second + pull[:, None, None] * np.eye(length, dtype=np.float32)
    group = np.repeat(np.arange(groups), len(rows) // groups)
    weight = rows * scale
    # Half the loss's derivative by each weight, and half its second one.
    slope = moments.product(weight) - moments.cross
    slope += pull[group, None] * (weight - layer.target * scale)
    curve = (diagonal + pull[:, None])[group]
    left = np.arange(len(rows))
    while len(left):
        step = (other[left] - rows[left]) * scale[left]
        change = step * (2 * slope[left] + step * curve[left])
        best = change.argmin(1)
        gains = -change[np.arange(len(left)), best] > LEAST_GAIN * moments.power[left]
        left, best, step = left[gains], best[gains], step[gains]
        slope[left] += step[np.arange(len(left)), best, None] * second[group[left], best]
        rows[left, best], other[left, best] = other[left, best], rows[left, best]
    before, after = (float(moments.loss(r * scale).sum()) for r in (layer.nearest, rows))
    return rows, after / max(before, 1e-30)


def _flat(index: Sequence[NDArray[np.int64]], size: Sequence[int]) -> torch.Tensor:
    """Indices along several axes as those along one."""
    return torch.from_numpy(np.ravel_multi_index(tuple(index), tuple(size)))


def _turned(node: ir.Node) -> bool:
    """Whether the weight's output channels lie on its second axis."""
    return node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)


def _rows(weight: NDArray[Any], turned: bool) -> Array:
    flat = weight.T if turned else weight
    return np.ascontiguousarray(flat, np.float32).reshape(flat.shape[0], -1)


def _array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _bias(node: ir.Node) -> NDArray[np.float32]:
    """The float layer's bias by channel, zeros where it has none."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        weight = _array(node.inputs[1])
        return np.zeros(weight.shape[1 if _turned(node) else 0], np.float32)
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.asarray(_array(node.inputs[2]).reshape(-1) * beta, np.float32)
