"""INT8's rounding in a float network, with gradients.

What is computed is what the Q/DQ graph of :mod:`~edgesmith.converters.passes.insert_qdq` computes: rounding
to even, -128..127 for activations and -127..127 for weights, one scale a tensor and one an output channel.
The rounding passes gradients on as they are (straight-through, Bengio et al. 2013); scales learn by what the
rounding leaves (LSQ, Esser et al. 2020, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgesmith.calibration.scale_table import Quantizer

LOW, HIGH = -128, 127
LEAST_SCALE = 1e-12


def rounded(value: torch.Tensor) -> torch.Tensor:
    """Round to even; the gradient is that of the value itself."""
    return value + (value.round() - value).detach()


class ActivationQuantizer(nn.Module):
    """One tensor's rounding, see :class:`~edgesmith.calibration.scale_table.Quantizer`.

    The scale is learned by its logarithm, so that one learning rate does for scales of all sizes.
    """

    base: torch.Tensor
    factor: torch.Tensor | None

    def __init__(self, quantizer: Quantizer, *, learned: bool, channel_axis: int) -> None:
        super().__init__()
        self.shift = quantizer.shift
        self.channel_axis = channel_axis
        self.register_buffer("base", torch.tensor(quantizer.scale))
        self.register_buffer("factor", None if quantizer.factor is None else torch.tensor(quantizer.factor))
        self.stretch = nn.Parameter(torch.zeros(()), requires_grad=learned)

    @property
    def scale(self) -> torch.Tensor:
        """Width of one integer step."""
        return self.base * self.stretch.exp()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The tensor as its integers stand for it."""
        scale = self.scale
        if self.factor is not None:
            shape = [1] * value.ndim
            shape[self.channel_axis] = -1
            scale = scale * self.factor.reshape(shape)
        integers = rounded(value / scale - self.shift).clamp(LOW, HIGH)
        return (integers + self.shift) * scale

    def quantizer(self) -> Quantizer:
        """What was learned."""
        factor = None if self.factor is None else tuple(self.factor.double().tolist())
        return Quantizer(scale=float(self.scale.detach()), shift=self.shift, factor=factor)


class QatLayer(nn.Module):
    """A convolution or linear layer with its rounding; BatchNorm is in its weight already.

    Args:
        weight: ``(O, I, ...)``, shared where the network shares it.
        bias: ``(O,)``.
        compute: of input, weight and bias.
        activation: rounds the input; None leaves the whole layer in float.
        learned: whether the weight's scales learn too. They only shrink: a layer's largest weight is always
            reached, so the same scales follow from the weights that are written in the end.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter,
        compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        activation: ActivationQuantizer | None,
        *,
        learned: bool,
        group: int = 1,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.activation = activation
        self.shrink = nn.Parameter(torch.zeros(len(weight)), requires_grad=learned and activation is not None)
        self._compute, self._group = compute, group

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """What the layer computes in INT8."""
        if self.activation is not None:
            value = self.activation(value)
            return self._compute(value, self.rounded_weight(), self.bias)
        return self._compute(value, self.weight, self.bias)

    def rounded_weight(self) -> torch.Tensor:
        """The weight as its integers stand for it."""
        weight, factor, scale = self._scaled()
        integers = rounded((weight / scale).clamp(-HIGH, HIGH))
        return integers * scale / factor

    def final_weight(self) -> NDArray[np.float32]:
        """The weight to write: cut at its scales, so that they are those that follow from it."""
        with torch.no_grad():
            if self.activation is None:
                return self.weight.cpu().numpy().copy()
            weight, factor, scale = self._scaled()
            limit = HIGH * scale
            return (torch.maximum(torch.minimum(weight, limit), -limit) / factor).cpu().numpy()

    def _scaled(self) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor]:
        """The weight with the input's factor in it, that factor, and the scale of each output channel."""
        weight, factor = self.weight, self._factor()
        scaled = weight * factor
        largest = scaled.detach().abs().flatten(1).amax(1)
        # Not clamp: at its limit, where this begins, it passes no gradient.
        share = torch.minimum(self.shrink, torch.zeros_like(self.shrink)).exp()
        scale = (largest * share / HIGH).clamp(min=LEAST_SCALE).reshape(-1, *[1] * (weight.ndim - 1))
        return scaled, factor, scale

    def _factor(self) -> torch.Tensor | float:
        """The input's factor along the weight's input channels."""
        assert self.activation is not None
        factor = self.activation.factor
        if factor is None:
            return 1.0
        outs, per_group, *tail = self.weight.shape
        by_group = factor.reshape(self._group, per_group)
        return by_group.repeat_interleave(outs // self._group, 0).reshape(outs, per_group, *[1] * len(tail))
