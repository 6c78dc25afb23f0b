"""YOLOX: one box a cell, objectness and classes by sigmoid (Ge et al., 2021, arXiv 2107.08430)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, Undecided, tensors_of
from edgesmith.converters.adapters.levels import (
    Level,
    are_activated,
    cells_of,
    classes_declined,
    describe_levels,
    joined,
    levels_from_count,
    levels_from_maps,
    maps_of,
)
from edgesmith.converters.adapters.options import read_options


class YoloxHead(nn.Module):
    """Raw maps (N, 5 + C, h, w), one a level in any order, or one tensor (N, K, 5 + C).

    Channels: dx, dy, log w, log h in cells, objectness, classes.

        x, y = (dx + column, dy + row) * stride     w, h = exp(log w, log h) * stride
        score = sigmoid(objectness) * sigmoid(class)

    The joined tensor has the levels one after another, finest first unless ``strides`` say
    otherwise. With ``activated`` the sigmoids were applied before, with ``decoded`` columns 0..3
    are centre, width and height in pixels: what the authors' own module returns in eval mode.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"strides", "activated", "decoded"})
    output_names = DETECTOR_OUTPUTS
    cells: Tensor
    strides: Tensor

    def __init__(
        self,
        levels: tuple[Level, ...],
        classes: int,
        *,
        maps: bool = True,
        activated: bool = False,
        decoded: bool = False,
    ) -> None:
        super().__init__()
        self.levels, self.classes = levels, classes
        self.maps, self.activated, self.decoded = maps, activated, decoded
        cells, strides = cells_of(levels)
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)

    @classmethod
    def from_outputs(cls, seen: Outputs) -> YoloxHead | Declined:
        options = read_options(seen.options)
        levels: tuple[Level, ...] | Declined
        joined_rows = len(seen.shapes) == 1 and len(seen.shapes[0]) == 3
        if joined_rows:
            levels = levels_from_count(seen.shapes[0][1], seen.size, options.strides)
            channels = seen.shapes[0][2]
        else:
            maps = maps_of(seen.shapes)
            if isinstance(maps, Declined):
                return maps
            levels = levels_from_maps(maps, seen.size, options.strides)
            channels = seen.shapes[0][1]
        wrong = classes_declined(channels - 5, seen.labels, f"{channels} channels less 5")
        if wrong is not None:
            return wrong
        if isinstance(levels, Declined):
            return levels
        flat = seen.tensors[0] if joined_rows else joined(seen.tensors, levels)
        activated = are_activated([flat[..., 4:]], options.activated)
        if isinstance(activated, Declined):
            return activated
        decoded = _decoded(flat, options.decoded) if joined_rows else options.decoded or False
        if isinstance(decoded, Declined):
            return decoded
        if decoded and not joined_rows:
            return Declined("head_options.decoded goes with one joined tensor (N, K, 5 + C), not with maps")
        return cls(levels, channels - 5, maps=not joined_rows, activated=activated, decoded=decoded)

    def describe(self) -> str:
        return describe_levels(self.levels, self.classes)

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        tensors = tensors_of(raw)
        flat = joined(tensors, self.levels) if self.maps else tensors[0].float()
        centre, size = flat[..., :2], flat[..., 2:4]
        objectness, classes = flat[..., 4:5], flat[..., 5:]
        if not self.decoded:
            centre, size = (centre + self.cells) * self.strides, size.exp() * self.strides
        if not self.activated:
            objectness, classes = objectness.sigmoid(), classes.sigmoid()
        half = size * 0.5
        return torch.cat((centre - half, centre + half), 2), objectness * classes


def _decoded(flat: Tensor, told: bool | None) -> bool | Declined:
    """Whether the boxes are in pixels already: a width or height below zero proves a logarithm."""
    positive = bool((flat[..., 2:4] > 0).all())
    if told is None:
        if not positive:
            return False
        return Undecided(
            "columns 2 and 3 are all above zero on the example, so they may be sizes in pixels or their "
            "logarithms; say head_options.decoded = true or false"
        )
    if told and not positive:
        return Declined("head_options.decoded is true, but a width or height is not above zero")
    return told
