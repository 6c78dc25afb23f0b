"""What a comparison of two models holds, and the interval of what the second loses.

The interval is the percentile bootstrap over images (Efron and Tibshirani 1993, chapter 13), paired: a draw
takes the same images for both models, so what makes images hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.metrics import loss_unit_of

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
_LEVELS = (2.5, 97.5)  # percent: a 95 % interval


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """``other`` against ``exact``, figures in the unit of the metric: percent, or dB of PSNR.

    With labels ``metric`` is ``top1``, ``mAP``, ``mIoU`` or ``psnr``. Without (``labelled`` is False) it is
    ``agreement`` in percent, of which the exact model has 100 by definition.

    Attributes:
        values: every figure by name, as (exact, other).
        drop: points (dB) lost, positive when ``other`` is worse.
        interval: 95 % bootstrap interval of the drop.
        images: how many were compared.
        agreement: decisions that are the same (classifiers), mAP@[.5:.95] of ``other`` against the exact
            model's detections of score >= 0.3 (detectors; None where it has none), mean IoU with the exact
            model's class maps (segmenters), 100 less the relative error of the outputs (tensors).
        flipped: decisions that changed; None but for classifiers.
        right_to_wrong, wrong_to_right: of ``flipped``; None without labels.
        faults: a line for each picture that could not be read and was left out.
    """

    metric: str
    exact: float
    other: float
    values: dict[str, tuple[float, float]]
    drop: float
    interval: tuple[float, float]
    images: int
    labelled: bool
    agreement: float | None
    flipped: int | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    faults: tuple[str, ...] = ()

    @classmethod
    def agreeing(
        cls,
        same: float,
        interval: tuple[float, float],
        images: int,
        faults: Sequence[str],
        *,
        flipped: int | None = None,
    ) -> Paired:
        """Against the exact model's own answers: ``same`` percent of them."""
        drop = 100 * flipped / images if flipped is not None else 100.0 - same
        return cls(
            metric="agreement", exact=100.0, other=same, values={"agreement": (100.0, same)}, drop=drop,
            interval=interval, images=images, labelled=False, agreement=same, flipped=flipped,
            faults=tuple(faults),
        )  # fmt: skip

    @property
    def lost(self) -> str:
        """The loss in words, as ``0.45 points of top1``."""
        return f"{self.drop:.2f} {loss_unit_of(self.metric)} of {self.metric}"

    def within(self, budget: float) -> bool:
        """True where no more than ``budget`` points are lost: the drop itself counts, not its interval."""
        return self.drop <= budget


def drawn(images: int, draws: int, seed: int) -> Counts:
    """``(draws, images)``: how often each image was drawn; a row is as many draws as there are images."""
    random = np.random.default_rng(seed)
    return np.stack([np.bincount(random.integers(0, images, images), minlength=images) for _ in range(draws)])


def interval(drops: Floats) -> tuple[float, float]:
    """The middle 95 % of the draws' drops; draws without a number say nothing."""
    known = drops[~np.isnan(drops)]
    if not len(known):
        return 0.0, 0.0
    low, high = np.percentile(known, _LEVELS)
    return float(low), float(high)
