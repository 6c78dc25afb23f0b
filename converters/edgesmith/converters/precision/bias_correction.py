"""The mean error that quantization leaves in each channel, taken off the bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, in
its empirical form, strictly one layer after the other: each layer is measured with all layers before
it corrected. Measured all at once, the corrections add up to something else and ruin the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined, Pass, PassResult
from edgesmith.converters.precision.agreement import decibels
from edgesmith.converters.precision.lockstep import Floats, channel_means, lockstep

Deltas = dict[str, NDArray[np.float64]]


def bias_corrections(
    exact: onnx.ModelProto,
    quantized: onnx.ModelProto,
    layers: Sequence[str],
    tensors: Sequence[Floats],
    *,
    correct: bool = True,
) -> tuple[Deltas, dict[str, float]]:
    """What to add to each layer's bias ``(C,)``, and each layer's signal-to-noise ratio in dB after it.

    Args:
        exact: the float graph.
        quantized: the quantized graph.
        layers: names of its quantized layers.
        tensors: inputs ``(1, C, H, W)`` of the calibration images.
        correct: False measures the ratios alone; the deltas are what a correction would add.
    """
    deltas: Deltas = {}
    ratios: dict[str, float] = {}
    for step in lockstep(exact, quantized, layers, tensors):
        deltas[step.name] = channel_means(step.exact) - channel_means(step.quantized)
        if correct:
            step.shift(deltas[step.name])
        ratios[step.name] = decibels(step.exact, step.quantized)
    return deltas, ratios


class AddToBias(Pass):
    """Add a vector to the bias of each named Conv or Gemm."""

    def __init__(self, deltas: Mapping[str, NDArray[np.float64]]) -> None:
        self.deltas = dict(deltas)

    def apply(self, model: ir.Model) -> PassResult:
        """Change the biases; a layer without a constant bias is declined."""
        declined = []
        left = dict(self.deltas)
        for node in model.graph:
            if node.name not in left:
                continue
            delta = left.pop(node.name)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None or bias.const_value is None or bias.name is None:
                declined.append(Declined(node.name, "it has no constant bias"))
                continue
            data = (bias.const_value.numpy().astype(np.float64) + delta).astype(np.float32)
            name = f"{node.name}/corrected_bias"
            value = ir.Value(
                name=name, const_value=ir.tensor(data, name=name),
                type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(data.shape),
            )  # fmt: skip
            model.graph.initializers[name] = value
            node.replace_input_with(2, value)
            if not bias.uses() and bias.name in model.graph.initializers:
                del model.graph.initializers[bias.name]
        declined += [Declined(name, f"no layer {name}") for name in left]
        return PassResult(model, len(self.deltas) - len(declined), tuple(declined))
