"""From measured ranges to the quantizer of each tensor, with the repairs that were asked for.

``factor`` and ``offset`` give TensorRT, which knows one symmetric scale a tensor, what a scale by channel
and a zero point would give: the arithmetic stands in front of the rounding (see
:class:`~edgesmith.converters.passes.insert_qdq.InsertQdq`). ``smooth`` moves range from a dense layer's
activations into its weights (Xiao et al. 2022, SmoothQuant, equation 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith.calibration.distribution import Window
from edgesmith.calibration.scale_table import Activation, Quantizer, ScaleTable
from edgesmith.calibration.sites import Site

# Candidate shares of a tensor's window that lie below zero, when channels are brought to one window.
BELOW_ZERO = np.linspace(0.0, 0.5, 26)
# A channel that hardly moves is not blown up to full range: its factor stays within this of the largest.
LEAST_FACTOR = 1e-4
SMOOTH_ALPHA = 0.3  # share of the activation's range that moves into the weights
SMOOTH_LIMIT = 16.0  # most that one channel is scaled by


def quantizers_for(
    table: ScaleTable, sites: Sequence[Site], *, method: str, repairs: Collection[str]
) -> dict[str, Quantizer]:
    """The quantizer of each tensor that the sites read.

    Args:
        table: measured ranges.
        sites: the layers that are to be quantized.
        method: name of a calibration method, or ``auto``.
        repairs: any of ``factor``, ``offset``, ``smooth``.

    Raises:
        CalibrationError: a tensor has no range.
    """
    readers: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        readers[site.activation].append(site)
    quantizers = {}
    for tensor, layers in readers.items():
        plain = table.quantizer(tensor, method, symmetric="offset" not in repairs)
        activation = table.activations[tensor]
        if "factor" in repairs and all(site.depthwise for site in layers):
            quantizers[tensor] = by_channel(activation, centred="offset" in repairs)
        elif "smooth" in repairs and all(site.node.op_type == "Conv" and site.group == 1 for site in layers):
            quantizers[tensor] = smoothed(activation, layers, centred="offset" in repairs)
        else:
            quantizers[tensor] = plain
    return quantizers


def by_channel(activation: Activation, *, centred: bool) -> Quantizer:
    """Each channel's full range onto one window; ``centred`` uses all 256 integers of it.

    With a share r of the window below zero, channel c needs f_c = max(high_c / (1 - r), -low_c / r);
    the r with the least sum of log f_c wastes the fewest integers.
    """
    low = np.minimum(np.asarray(activation.channel_low), 0.0)
    high = np.maximum(np.asarray(activation.channel_high), 0.0)
    if not centred:
        return Quantizer.of(Window(-1.0, 1.0), _bounded(np.maximum(high, -low)))
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for share in BELOW_ZERO:
        if share == 0.0 and low.any():
            continue
        needed = high / (1 - share) if share == 0.0 else np.maximum(high / (1 - share), -low / share)
        factor = _bounded(needed)
        waste = float(np.log(factor).sum())
        if best is None or waste < best[0]:
            best = (waste, float(share), factor)
    assert best is not None
    return Quantizer.of(Window(-best[1], 1 - best[1]), best[2])


def smoothed(activation: Activation, layers: Sequence[Site], *, centred: bool) -> Quantizer:
    """A factor by channel that shares range between activations and weights: a^alpha / w^(1 - alpha)."""
    low = np.minimum(np.asarray(activation.channel_low), 0.0)
    high = np.maximum(np.asarray(activation.channel_high), 0.0)
    reach = np.maximum(high, -low)
    weights = np.max([np.abs(site.weight).max(axis=(0, 2, 3)) for site in layers], axis=0)
    factor = np.maximum(reach, 1e-12) ** SMOOTH_ALPHA / np.maximum(weights, 1e-12) ** (1 - SMOOTH_ALPHA)
    middle = float(np.exp(np.log(factor).mean()))
    factor = np.clip(factor / middle, 1 / SMOOTH_LIMIT, SMOOTH_LIMIT)
    least, most = float((low / factor).min()), float((high / factor).max())
    if not centred or least == -most:
        limit = max(-least, most, 1e-6)
        return Quantizer.of(Window(-limit, limit), factor)
    return Quantizer.of(Window(least, most), factor)


def _bounded(factor: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = float(factor.max())
    if largest == 0.0:
        return np.ones_like(factor)
    return np.maximum(factor, largest * LEAST_FACTOR)
