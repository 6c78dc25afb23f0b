"""From measured ranges to the quantizer of each tensor, with the repairs that were asked for.

``factor`` and ``offset`` give TensorRT, which knows one symmetric scale a tensor, what a scale by channel
and a zero point would give: the arithmetic stands in front of the rounding (see
:class:`~edgesmith.converters.passes.insert_qdq.InsertQdq`). ``smooth`` moves range from a dense layer's
activations into its weights (Xiao et al. 2022, SmoothQuant, equation 4). ``fold`` alone takes a factor or
an offset only where the layer before can take it over: nothing is left to compute in front of a rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith.calibration.distribution import Window
from edgesmith.calibration.scale_table import Activation, Quantizer, ScaleTable
from edgesmith.calibration.sites import Site
from edgesmith.converters.passes.constants import limits_of
from edgesmith.converters.passes.producer import HOMOGENEOUS, LIMITERS, producer_of

# Candidate shares of a tensor's window that lie below zero, when channels are brought to one window.
BELOW_ZERO = np.linspace(0.0, 0.5, 26)
# A channel that hardly moves is not blown up to full range: its factor stays within this of the largest.
LEAST_FACTOR = 1e-4
SMOOTH_ALPHA = 0.3  # share of the activation's range that moves into the weights
SMOOTH_LIMIT = 16.0  # most that one channel is scaled by
IN_FRONT = frozenset({"factor", "offset"})


def quantizers_for(
    table: ScaleTable, sites: Sequence[Site], *, method: str, repairs: Collection[str]
) -> dict[str, Quantizer]:
    """The quantizer of each tensor that the sites read.

    Args:
        table: measured ranges.
        sites: the layers that are to be quantized.
        method: name of a calibration method, or ``auto``.
        repairs: any of ``factor``, ``offset``, ``smooth``, ``fold``; others change no quantizer. ``fold``
            without ``factor`` and ``offset`` stands for both of them, where they can be folded.

    Raises:
        CalibrationError: a tensor has no range.
    """
    readers: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        readers[site.activation].append(site)
    only_folded = "fold" in repairs and not IN_FRONT & set(repairs)
    quantizers = {}
    for tensor, layers in readers.items():
        plain = table.quantizer(tensor, method)  # refuses a tensor without a range
        activation = table.activations[tensor]
        wanted = set(repairs)
        if only_folded:
            wanted = folding(activation, layers) & (wanted | IN_FRONT)
        centred = "offset" in wanted
        if "factor" in wanted and all(site.depthwise for site in layers):
            quantizers[tensor] = by_channel(activation, centred=centred)
        elif "smooth" in wanted and all(site.node.op_type == "Conv" and site.group == 1 for site in layers):
            quantizers[tensor] = smoothed(activation, layers, centred=centred)
        else:
            quantizers[tensor] = table.quantizer(tensor, method, symmetric=False) if centred else plain
    return quantizers


def folding(activation: Activation, layers: Sequence[Site]) -> set[str]:
    """Which of ``factor``, ``smooth`` and ``offset`` the layer before a tensor can take over.

    What :class:`~edgesmith.converters.passes.fold_factor.FoldFactor` and
    :class:`~edgesmith.converters.passes.fold_offset.FoldOffset` decline is left out.
    """
    value = layers[0].node.inputs[0]
    nodes = {site.node for site in layers}
    if value is None or any(use.node not in nodes for use in value.uses()):
        return set()
    found = producer_of(value, len(value.uses()))
    if isinstance(found, str):
        return set()
    kind = found.activation.op_type if found.activation is not None else None
    limits = limits_of(found.activation) if found.activation is not None and kind in LIMITERS else None
    possible = set()
    if kind is None or kind in HOMOGENEOUS:
        possible |= {"factor", "smooth"}
    elif limits is not None and limits[0] == 0.0 and limits[1] >= activation.high:
        possible.add("factor")  # each channel's own range ends below the limit
    if (kind is None or limits is not None) and all(
        site.node.op_type != "MatMul" and not site.pads for site in layers
    ):
        possible.add("offset")
    return possible


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
