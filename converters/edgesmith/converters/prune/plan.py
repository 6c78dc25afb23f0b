"""How many channels each group keeps, so that a target is met."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from edgesmith.converters.prune.groups import Group
from edgesmith.converters.prune.importance import Worth
from edgesmith.sdk.errors import RecipeError

log = logging.getLogger(__name__)
NEAR = 0.005  # a share of the target that counts as met: channels go in steps
LOOKS = 12  # halvings of the interval
FEW = 4  # a layer keeps at least this many steps of channels before its step is halved

Gone = dict[str, list[int]]  # channels that go, by the name of the group's root


@dataclass(frozen=True)
class Plan:
    """Channels that go, the share of the target that is left, and how often it was measured."""

    gone: Gone
    left: float
    looks: int


def chosen(
    groups: Sequence[Group],
    worth: Mapping[str, Worth],
    strength: float,
    *,
    scope: Literal["global", "uniform"],
    step: int,
    most: float,
) -> Gone:
    """The channels of least worth, as many as ``strength`` (0..1) says.

    Args:
        groups: what can be cut.
        worth: of each channel, by the name of the root.
        strength: share of the channels, of each group or of all together.
        scope: ``uniform`` or ``global``.
        step: what remains is a multiple of this; of a narrow layer a half or a quarter of it.
        most: the largest share that a group may lose.
    """
    limit = -math.inf
    if scope == "global" and groups:
        every = np.sort(np.concatenate([worth[group.root] for group in groups]))
        count = round(strength * len(every))
        limit = float(every[count - 1]) if count else -math.inf
    gone: Gone = {}
    for group in groups:
        order = np.argsort(worth[group.root], kind="stable")
        if scope == "global":
            wanted = int((worth[group.root] <= limit).sum())
        else:
            wanted = round(strength * group.width)
        wanted = min(wanted, math.floor(most * group.width))
        fine = step_of(group.width, step)
        kept = min(group.width, max(fine, math.ceil((group.width - wanted) / fine) * fine))
        gone[group.root] = sorted(order[: group.width - kept].tolist())
    return gone


def step_of(width: int, step: int) -> int:
    """The step of a layer's channels: halved where it would leave a narrow layer no choice."""
    while step > 1 and width < FEW * step and step > 8:
        step //= 2
    return min(step, max(1, width // 2)) if width < 2 * step else step


def meet(
    groups: Sequence[Group],
    worth: Mapping[str, Worth],
    keep: float,
    cost: Callable[[Gone], float],
    *,
    scope: Literal["global", "uniform"],
    step: int,
    most: float,
) -> Plan:
    """The weakest cut whose cost is no more than the share ``keep`` of what it was.

    Args:
        groups, worth, scope, step, most: as of :func:`chosen`.
        keep: the share that may remain.
        cost: of a cut, as a share (0..1) of the uncut network's.

    Raises:
        RecipeError: not even the strongest cut meets it; the message says how far it gets.
    """

    def at(strength: float) -> tuple[Gone, float]:
        gone = chosen(groups, worth, strength, scope=scope, step=step, most=most)
        return gone, cost(gone)

    low, high = 0.0, 1.0
    best, left = at(high)
    looks = 1
    if left > keep + NEAR:
        raise RecipeError(
            f"recipe: prune.keep: at least {left:.3f} of the target remains where layers lose no more than "
            f"{most:g} of their channels; {keep:g} is asked: raise prune.most, "
            "lower prune.round_to, or keep more",
            key="prune.keep",
        )
    seen: dict[str, float] = {}
    while looks < LOOKS:
        middle = (low + high) / 2
        gone = chosen(groups, worth, middle, scope=scope, step=step, most=most)
        name = str(sorted((root, len(numbers)) for root, numbers in gone.items()))
        if name not in seen:
            seen[name] = cost(gone)
            looks += 1
        elif high - low < 1e-3:
            break
        if seen[name] <= keep + NEAR:
            best, left, high = gone, seen[name], middle
        else:
            low = middle
    return Plan(best, left, looks)


def widths(network: nn.Module, groups: Sequence[Group], gone: Gone) -> list[tuple[str, int, int]]:
    """Layer by layer: name, channels before and after; layers that norm alone are left out."""
    layers = dict(network.named_modules())
    told = {}
    for group in groups:
        lost = set(gone.get(group.root, ()))
        for member in group.members:
            if member.makes and isinstance(
                layers[member.name], (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
            ):
                before = len(member.channels)
                after = before - sum(root in lost for root in member.roots)
                told[member.name] = (member.name, before, after)
    order = {name: number for number, name in enumerate(layers)}
    return sorted(told.values(), key=lambda row: order[row[0]])
