"""FastestDet: one map, one box a cell (Ma, 2022, the FastestDet project)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, tensors_of
from edgesmith.converters.adapters.levels import (
    Level,
    cells_of,
    classes_declined,
    describe_levels,
    joined,
    levels_from_maps,
    maps_of,
)
from edgesmith.converters.adapters.options import read_options

# Exponents of objectness and class probability in the score, as the author evaluates.
OBJECTNESS_POWER, CLASS_POWER = 0.6, 0.4


class FastestDetHead(nn.Module):
    """One map (N, 5 + C, h, w): objectness, box, classes.

        x, y = (tanh + (column, row)) * stride      w, h = sigmoid * (input width, height)
        score = sigmoid(objectness)^0.6 * softmax(classes)^0.4

    The author's own module applies sigmoid and softmax itself; class values that sum to one in
    every cell, with an objectness in 0..1, prove that, and they are then taken as they are.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"strides"})
    output_names = DETECTOR_OUTPUTS
    cells: Tensor
    half_extent: Tensor

    def __init__(self, level: Level, classes: int, *, activated: bool = False) -> None:
        super().__init__()
        self.levels, self.classes, self.activated = (level,), classes, activated
        cells, _ = cells_of(self.levels)
        self.register_buffer("cells", cells)
        extent = torch.tensor([level.columns, level.rows]).float() * level.stride
        self.register_buffer("half_extent", extent * 0.5)

    @classmethod
    def from_outputs(cls, seen: Outputs) -> FastestDetHead | Declined:
        options = read_options(seen.options)
        maps = maps_of(seen.shapes)
        if isinstance(maps, Declined):
            return maps
        if len(maps) != 1:
            return Declined(f"it takes one map, these are {len(maps)}")
        channels = seen.shapes[0][1]
        wrong = classes_declined(channels - 5, seen.labels, f"{channels} channels less 5")
        if wrong is not None:
            return wrong
        levels = levels_from_maps(maps, seen.size, options.strides)
        if isinstance(levels, Declined):
            return levels
        flat = joined(seen.tensors, levels)
        inside = bool(((flat[..., 0] >= 0) & (flat[..., 0] <= 1) & (flat[..., 5:] >= 0).all(2)).all())
        sums = flat[..., 5:].sum(2)
        return cls(levels[0], channels - 5, activated=inside and bool(((sums - 1).abs() < 1e-3).all()))

    def describe(self) -> str:
        return describe_levels(self.levels, self.classes)

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        flat = joined(tensors_of(raw), self.levels)
        centre = (flat[..., 1:3].tanh() + self.cells) * float(self.levels[0].stride)
        half = flat[..., 3:5].sigmoid() * self.half_extent
        objectness, classes = flat[..., :1], flat[..., 5:]
        if not self.activated:
            objectness, classes = objectness.sigmoid(), classes.softmax(2)
        scores = objectness.pow(OBJECTNESS_POWER) * classes.pow(CLASS_POWER)
        return torch.cat((centre - half, centre + half), 2), scores
