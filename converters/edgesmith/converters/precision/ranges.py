"""Least and largest value by channel of every float tensor in a graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from edgesmith.calibration.statistics import by_channel
from edgesmith.converters.passes.x86 import TensorRange
from edgesmith.converters.runners import graph_runner

Floats = NDArray[np.float32]
SAMPLED = frozenset({"Sigmoid", "LeakyRelu"})  # what they read is worth a closer look
POSITIONS = 24  # of each image


def channel_ranges(exact: onnx.ModelProto, tensors: Iterable[Floats]) -> dict[str, TensorRange]:
    """``(C,)`` least and largest values by tensor name, over all images and positions.

    Calibration keeps histograms of what the quantized layers read; the CPU's graph also needs the ranges of
    what they write, for which the extremes by channel do. Of the arguments of activation functions it
    keeps the values at a few positions of each image, the same at every run.

    Args:
        exact: the float graph.
        tensors: its inputs, ``(1, C, H, W)`` each.
    """
    inferred = onnx.shape_inference.infer_shapes(exact)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    shown = [o for node in exact.graph.node for o in node.output if kinds.get(o) == onnx.TensorProto.FLOAT]
    sampled = {node.input[0] for node in exact.graph.node if node.op_type in SAMPLED}
    model = onnx.ModelProto()
    model.CopyFrom(exact)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    run = graph_runner(model)
    ends: dict[str, tuple[Floats, Floats]] = {}
    samples: dict[str, list[Floats]] = {name: [] for name in sampled}
    for number, tensor in enumerate(tensors):
        for name, value in run(tensor).items():
            if value.ndim < 2:
                continue
            low = by_channel(value, np.minimum).reshape(-1)
            high = by_channel(value, np.maximum).reshape(-1)
            if name in ends:
                low, high = np.minimum(low, ends[name][0]), np.maximum(high, ends[name][1])
            ends[name] = low, high
            if name in sampled:
                samples[name].append(_some(value, number))
    return {
        name: TensorRange(
            low.astype(np.float64),
            high.astype(np.float64),
            np.concatenate(samples[name]).astype(np.float64) if samples.get(name) else None,
        )
        for name, (low, high) in ends.items()
    }


def _some(value: Floats, seed: int) -> Floats:
    """The values of all channels ``(POSITIONS, C)`` at random positions."""
    flat = value.reshape(*value.shape[:2], -1)[0]
    chosen = np.random.default_rng(seed).integers(0, flat.shape[1], POSITIONS)
    return np.ascontiguousarray(flat[:, chosen].T)
