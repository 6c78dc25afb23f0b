"""A float graph equalized across layers, and its measured ranges with it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from msgspec.structs import replace
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Activation, ScaleTable
from edgesmith.converters.passes.equalize import Equalize

Array = NDArray[np.float64]


def equalized(exact: onnx.ModelProto, table: ScaleTable) -> tuple[onnx.ModelProto, ScaleTable]:
    """The graph after :class:`~edgesmith.converters.passes.equalize.Equalize`, and the ranges of its tensors.

    No image is read again: extremes by channel are divided by the same factors as the tensors.
    """
    equalize = Equalize()
    model = equalize(ir.serde.deserialize_model(exact)).model
    return ir.to_proto(model), rescaled(table, equalize.factors)


def rescaled(table: ScaleTable, factors: Mapping[str, Array]) -> ScaleTable:
    """The ranges of tensors whose channels were divided by factors.

    Extremes, and with them the windows of ``minmax``, are exact. The windows of methods that clip keep the
    share of the extremes that they had: how the values lie between follows from no extreme.
    """
    changed = {
        name: _divided(activation, factors[name])
        for name, activation in table.activations.items()
        if name in factors
    }
    return replace(table, activations={**table.activations, **changed})


def _divided(activation: Activation, factor: Array) -> Activation:
    low, high = (np.asarray(c) / factor for c in (activation.channel_low, activation.channel_high))
    reach = max(-float(low.min()), float(high.max()), 1e-6)
    ends = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    before = min(activation.low, 0.0), max(activation.high, 0.0)
    ratio = reach / max(-before[0], before[1], 1e-6)
    sides = [new / old if old else 1.0 for new, old in zip(ends, before, strict=True)]
    return replace(
        activation,
        low=float(low.min()),
        high=float(high.max()),
        channel_low=tuple(low.tolist()),
        channel_high=tuple(high.tolist()),
        symmetric={m: (a * ratio, b * ratio) for m, (a, b) in activation.symmetric.items()},
        asymmetric={m: (a * sides[0], b * sides[1]) for m, (a, b) in activation.asymmetric.items()},
    )
