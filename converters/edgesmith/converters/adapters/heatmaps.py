"""Detectors that mark points on heatmaps: finding the peaks, and knowing which output is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgesmith.converters.adapters.base import Declined, Outputs, Undecided

WINDOW = 3  # a peak is the largest of a window of 3 x 3 cells
CANDIDATES = 100


def peaks_only(heat: Tensor) -> Tensor:
    """Scores (N, C, h, w) with zero wherever a neighbour of the same class is larger."""
    around = functional.max_pool2d(heat, WINDOW, 1, WINDOW // 2)
    return torch.where(around > heat, 0.0, heat)


def best_cells(heat: Tensor, count: int, ones: Tensor) -> tuple[Tensor, Tensor]:
    """The ``count`` cells with the best scores: their scores (N, C, count) and numbers (N, count).

    ``ones`` is int64 (1, C, 1). The best pairs of cell and class lie in these cells: one TopK over
    the cells in place of one over all pairs.
    """
    flat = heat.flatten(2)
    _, cell = torch.topk(flat.amax(1), count, 1)
    return flat.gather(2, cell.unsqueeze(1) * ones), cell


def at_cells(values: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
    """Each channel of (N, channels, h, w) at cell numbers (N, K), as (N, K)."""
    flat = values.flatten(2)
    return tuple(flat[:, channel].gather(1, cell) for channel in range(values.shape[1]))


def roles_of(
    seen: Outputs,
    told: tuple[str, ...] | None,
    names: Mapping[str, frozenset[str]],
    patterns: Sequence[tuple[str, ...]],
) -> dict[str, int] | Declined:
    """Which tensor plays each role.

    By ``head_options.maps`` where given (``-`` passes one over), else by the outputs' keys, of which
    a stack of predictions gives the last, else by one of the ``patterns``, the order of the authors.

    Args:
        seen: the outputs.
        told: ``head_options.maps``.
        names: keys that authors give each role.
        patterns: roles in the order of outputs without keys.
    """
    if told is not None:
        unknown = sorted(set(told) - set(names) - {"-"})
        if unknown:
            return Declined(f"head_options.maps has {', '.join(unknown)}; there are {', '.join(names)} and -")
        if len(told) != len(seen.tensors):
            return Declined(f"head_options.maps names {len(told)} outputs, these are {len(seen.tensors)}")
        return {role: place for place, role in enumerate(told) if role != "-"}
    found: dict[str, int] = {}
    for place, key in enumerate(seen.keys):
        for role, known in names.items():
            if key.rpartition(".")[2] in known:
                found[role] = place
    if found:
        return found
    for pattern in patterns:
        if len(pattern) == len(seen.tensors) and all(len(shape) == 4 for shape in seen.shapes):
            return {role: place for place, role in enumerate(pattern)}
    return Declined(f"it takes maps (N, channels, h, w) for {', '.join(names)}, by these names or in order")


def ambiguous(roles: Sequence[str]) -> Undecided:
    """Doubt that only ``head_options.maps`` ends."""
    return Undecided(
        f"which output is which is not told by their shapes; say head_options.maps, as {list(roles)}"
    )
