"""Which repairs, which method, which layers: few trials, each compared with the float model without labels.

First whole ways of quantizing are tried and the nearest to the float model is taken. Layers are given back
to float only when the verdict on labelled images asks for it, the one that hurts most for its cost first
(:func:`rank_sensitivity`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgesmith.calibration.sites import Site
from edgesmith.converters.precision.trial import Trial, Way, Workbench

log = logging.getLogger(__name__)
# What each does stands at trial.Way; precision.repairs takes all but the last.
REPAIRS = ("factor", "offset", "bias", "smooth", "fold", "equalize", "adaround", "residual")
# Not among the ways: on the search images of the trained models these are no better, or cost more than they
# bring. With each against without, in % the same as float (detectors) or dB:
#   smooth    FastestDet 83.7 / 86.3, NanoDet 92.9 / 93.5
#   equalize  FastestDet 64.0 / 73.3, NanoDet 87.5 / 89.8 (bias alone beside it); MobileNet: none, all ReLU6
#   adaround  MobileNet 24.5 / 23.0 dB, ResNet-20 35.1 / 34.8 dB, NanoDet 94.7 / 93.5, FastestDet 84.9 / 86.3;
#             a way takes two to five times as long
# The order is that of the trials: on the models this was developed on, the first is best or close to it.
WAYS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"factor", "offset", "bias"}), "mse"),
    (frozenset({"factor", "offset", "bias"}), "minmax"),
    (frozenset({"factor", "bias"}), "mse"),
    (frozenset(), "mse"),
)
# A later way must be this much nearer (dB, or points of agreement) to be taken for it.
MARGIN = 0.1


@dataclass(frozen=True)
class Sensitivity:
    """One layer: ``loss`` is what its quantization costs, in dB (detectors: points of agreement)."""

    node: str
    module: str | None
    loss: float
    macs: int


def first_way(*, method: str, repairs: str | Collection[str]) -> Way:
    """The way that is tried first: the recipe's repairs and method where it names them."""
    names, chosen = WAYS[0]
    return Way(
        names if isinstance(repairs, str) else frozenset(repairs), chosen if method == "auto" else method
    )


def plain_way(*, method: str = "auto") -> Way:
    """A way with no Mul, Add or Pad in front of any rounding, for the variant ``int8-plain``.

    Factors and offsets go into the layers before the roundings, or are left out; then bias correction. The
    layer before can so write INT8 straight from its own kernel. (``fold`` in
    :class:`~edgesmith.converters.precision.trial.Way`.)
    """
    return Way(frozenset({"fold", "bias"}), WAYS[0][1] if method == "auto" else method)


def best_way(
    bench: Workbench,
    *,
    method: str,
    repairs: str | Collection[str],
    told: Callable[[Trial], None] | None = None,
) -> tuple[Trial, list[Trial]]:
    """The trial nearest to the float model, and all trials.

    Args:
        bench: graph, ranges and images.
        method: a calibration method, or ``auto``: then each way has its own.
        repairs: ``auto``, or the names of those that are wanted: then there is one way.
        told: called with each trial.
    """
    ways = [Way(names, chosen if method == "auto" else method) for names, chosen in WAYS]
    if not isinstance(repairs, str):
        ways = [first_way(method=method, repairs=repairs)]
    tried: list[Trial] = []
    for way in dict.fromkeys(ways):
        trial = bench.try_way(way)
        log.info("%s: %.2f %% the same, %.2f dB", way, trial.agreement.same, trial.agreement.decibels)
        tried.append(trial)
        if told is not None:
            told(trial)
    best = tried[0]
    for trial in tried[1:]:
        if bench.nearness(trial.agreement) > bench.nearness(best.agreement) + MARGIN:
            best = trial
    return best, tried


def rank_sensitivity(
    bench: Workbench,
    trial: Trial,
    *,
    most: int | None = None,
    told: Callable[[int, int], None] | None = None,
) -> list[Sensitivity]:
    """Layers by what giving each back to float brings nearer, most first.

    Measured on the search images with everything else as in ``trial``: what a layer costs depends on the
    layers around it, so it is taken out of the whole, not tried alone.

    Args:
        bench: graph, ranges and images.
        trial: the quantized model to start from.
        most: measure only so many layers, those at which the signal-to-noise ratio falls furthest.
        told: called with layers done and layers in all.
    """
    sites = [site for site in bench.sites() if site.name in trial.layer_db]
    if most is not None and most < len(sites):
        falls = _falls(trial, sites)
        worst = set(sorted(falls, key=lambda name: falls[name], reverse=True)[:most])
        sites = [site for site in sites if site.name in worst]
    base = bench.nearness(trial.agreement)
    found = []
    for number, site in enumerate(sites, 1):
        gain = bench.nearness(bench.compare(bench.without(trial, {site.name}))) - base
        found.append(Sensitivity(site.name, site.module, gain, site.macs))
        if told is not None:
            told(number, len(sites))
    return sorted(found, key=lambda s: s.loss, reverse=True)


def _falls(trial: Trial, sites: Sequence[Site]) -> dict[str, float]:
    """How much noise (as a share of the signal) each layer adds to what the worst layer before it had."""
    falls, before = {}, 0.0
    for site in sites:
        noise = 10 ** (-trial.layer_db[site.name] / 10)
        falls[site.name] = noise - before
        before = max(before, noise)
    return falls
