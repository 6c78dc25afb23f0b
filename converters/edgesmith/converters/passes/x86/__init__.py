"""The quantized graph as an x86 CPU wants it: uint8 activations, and a Q behind each layer as well.

onnxruntime computes a layer in integers only where a Q follows it, has fast kernels on x86 for uint8
activations with one scale a tensor alone, and takes a ReLU in where the zero point is 0. What stands in
front of the Q for TensorRT's sake becomes the zero point:

    x -> Mul(1 / f) -> Pad(0) -> Add(-c) -> Q(int8, 0)     q = round(x / (f s)) - shift,  c = shift * s
    x / f -> Q(uint8, 128 - shift)                         u = round(x / (f s)) + 128 - shift = q + 128

Behind a ReLU ``shift`` is 128, so the zero point is 0. Padding goes back into the convolution, which pads
with the zero point, and the compensation comes off its bias. The factor goes into the weights of the layer
that makes the tensor (``factors``); a SiLU becomes a table lookup and an integer product (``silu``).
"""

from __future__ import annotations

import onnx_ir as ir

from edgesmith.converters.passes.base import Pass, PassResult
from edgesmith.converters.passes.constants import drop_unused
from edgesmith.converters.passes.x86.draft import Draft, Ranges, TensorRange
from edgesmith.converters.passes.x86.factors import explicit_factors, fill_channels
from edgesmith.converters.passes.x86.pairs import integer_biases, take_pairs, write_pairs
from edgesmith.converters.passes.x86.spread import absorb_limits, inherit, join, spread

__all__ = ["X86", "Ranges", "TensorRange"]


class X86(Pass):
    """Rewrite a graph with int8 Q/DQ pairs for onnxruntime on an x86 CPU.

    Tensors that calibration did not measure, those that no quantized layer reads, get their grid from
    ``ranges``: least and largest value by channel, by tensor name. Where a tensor has none, what makes it
    stays in float and is declined.
    """

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges

    def apply(self, model: ir.Model) -> PassResult:
        """Rewrite; a graph whose activations are uint8 already is left alone."""
        draft = Draft(model, self.ranges)
        count = take_pairs(draft)
        if count:
            absorb_limits(draft)
            explicit_factors(draft)
            fill_channels(draft)
            inherit(draft)
            join(draft)
            spread(draft)
            write_pairs(draft)
            integer_biases(draft)
            drop_unused(draft.graph)
        return PassResult(model, count, tuple(draft.declined))
