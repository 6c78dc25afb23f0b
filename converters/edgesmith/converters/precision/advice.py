"""Layers in which INT8 may be slower than FP16 on a board: named with the reason, never left out unasked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgesmith.calibration.sites import Site

FEW = 16  # channels: a tensor core's tile is not filled by fewer
STEP = 8  # channels that one kernel takes at a time


@dataclass(frozen=True)
class Advice:
    """A layer that could be listed in ``precision.keep_float`` for speed, and why."""

    node: str
    module: str | None
    why: str


def few_channels(sites: Sequence[Site]) -> list[Advice]:
    """Convolutions whose few channels INT8 kernels cannot fill.

    The rule is the one that NVIDIA's Model Optimizer leaves layers out by. A dense convolution with fewer
    than 16 channels on a side is kept if a side is a multiple of 8, its kernel is square, and it is the
    first layer or has 16 channels on the other side; a grouped one if its outputs are a multiple of 8 and
    no side of its kernel is below 3. It says nothing on accuracy, and what it costs or gains depends on the
    board: so it is advice, to be tried with ``precision.keep_float`` and timed.
    """
    found = []
    for number, site in enumerate(sites):
        if site.node.op_type != "Conv":
            continue
        kernel = site.weight.shape[2:]
        outputs, inputs = site.weight.shape[0], site.weight.shape[1] * site.group
        if site.group == 1:
            if min(inputs, outputs) >= FEW:
                continue
            fits = inputs % STEP == 0 or outputs % STEP == 0
            square = len(set(kernel)) == 1
            if fits and square and (number == 0 or max(inputs, outputs) >= FEW):
                continue
            why = f"{inputs} channels in and {outputs} out leave an INT8 kernel's tiles half empty"
        else:
            if outputs % STEP == 0 and min(kernel) >= 3:
                continue
            why = (
                f"{site.group} groups, {outputs} channels out, kernel {' x '.join(map(str, kernel))}: INT8 "
                f"kernels of grouped layers want outputs in steps of {STEP} and kernels of 3 x 3 or more"
            )
        found.append(Advice(site.name, site.module, why))
    return found
