"""NanoDet: each side of a box as a distribution over distances.

The head of "Generalized Focal Loss" (Li et al., 2020, arXiv 2006.04388, equation 5): the distance
is the expectation of a softmax over ``bins`` whole numbers of cells.
"""

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
    levels_from_maps,
    maps_of,
)
from edgesmith.converters.adapters.options import read_options


class NanoDetHead(nn.Module):
    """Raw maps (N, C + 4 * bins, h, w), one a level in any order.

    Channels: class logits, then ``bins`` logits each for left, top, right, bottom.

        distance = stride * sum_i i * softmax(bins)_i       centre = (cell + 0.5) * stride
        box = centre -/+ distances, cut at the input's border       score = sigmoid(class)
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"bins", "strides", "activated"})
    output_names = DETECTOR_OUTPUTS
    centres: Tensor
    strides: Tensor
    steps: Tensor
    border: Tensor

    def __init__(
        self,
        levels: tuple[Level, ...],
        classes: int,
        bins: int,
        size: tuple[int, int],
        *,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.levels, self.classes, self.bins, self.activated = levels, classes, bins, activated
        cells, strides = cells_of(levels)
        self.register_buffer("centres", (cells + 0.5) * strides)
        self.register_buffer("strides", strides)
        self.register_buffer("steps", torch.arange(bins).float())
        height, width = size
        self.register_buffer("border", torch.tensor([width, height, width, height]).float())

    @classmethod
    def from_outputs(cls, seen: Outputs) -> NanoDetHead | Declined:
        options = read_options(seen.options)
        maps = maps_of(seen.shapes)
        if isinstance(maps, Declined):
            return maps
        channels = seen.shapes[0][1]
        bins = _bins(channels, seen.labels, options.bins)
        if isinstance(bins, Declined):
            return bins
        classes = channels - 4 * bins
        wrong = classes_declined(classes, seen.labels, f"{channels} channels less 4 x {bins} bins")
        if wrong is not None:
            return wrong
        levels = levels_from_maps(maps, seen.size, options.strides)
        if isinstance(levels, Declined):
            return levels
        activated = are_activated([t[:, :classes] for t in seen.tensors], options.activated)
        if isinstance(activated, Declined):
            return activated
        return cls(levels, classes, bins, seen.size, activated=activated)

    def describe(self) -> str:
        return f"{describe_levels(self.levels, self.classes)}, {self.bins} bins"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        flat = joined(tensors_of(raw), self.levels)
        scores = flat[..., : self.classes]
        if not self.activated:
            scores = scores.sigmoid()
        rows = self.centres.shape[1]
        chances = flat[..., self.classes :].reshape(-1, rows, 4, self.bins).softmax(3)
        sides = (chances * self.steps).sum(3) * self.strides
        boxes = torch.cat((self.centres - sides[..., :2], self.centres + sides[..., 2:]), 2)
        return torch.minimum(boxes.clamp(min=0), self.border), scores


def _bins(channels: int, labels: int | None, told: int | None) -> int | Declined:
    if told is not None:
        return told
    if labels is None:
        if channels < 9:
            return Declined(f"{channels} channels are not a class and 4 sides of two or more bins")
        return Undecided("the number of bins follows from the labels: give labels or head_options.bins")
    rest = channels - labels
    if rest < 8 or rest % 4:
        return Declined(f"{channels} channels less {labels} classes are not 4 sides of two or more bins")
    return rest // 4
