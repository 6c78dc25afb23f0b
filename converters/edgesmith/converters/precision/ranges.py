"""Least and largest value by channel of every float tensor in a graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from edgesmith.calibration.statistics import by_channel
from edgesmith.converters.runners import graph_runner

Floats = NDArray[np.float32]


def channel_ranges(exact: onnx.ModelProto, tensors: Iterable[Floats]) -> dict[str, tuple[Floats, Floats]]:
    """``(C,)`` least and largest values by tensor name, over all images and positions.

    Calibration keeps histograms of what the quantized layers read; the CPU's graph also needs the ranges of
    what they write, for which the extremes by channel do.

    Args:
        exact: the float graph.
        tensors: its inputs, ``(1, C, H, W)`` each.
    """
    inferred = onnx.shape_inference.infer_shapes(exact)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    shown = [o for node in exact.graph.node for o in node.output if kinds.get(o) == onnx.TensorProto.FLOAT]
    model = onnx.ModelProto()
    model.CopyFrom(exact)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    run = graph_runner(model)
    found: dict[str, tuple[Floats, Floats]] = {}
    for tensor in tensors:
        for name, value in run(tensor).items():
            if value.ndim < 2:
                continue
            low = by_channel(value, np.minimum).reshape(-1)
            high = by_channel(value, np.maximum).reshape(-1)
            if name in found:
                low, high = np.minimum(low, found[name][0]), np.maximum(high, found[name][1])
            found[name] = low, high
    return found
