"""RoIAlign (He et al., 2017, arXiv 1703.06870) over a feature pyramid, with static shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesmith.converters.adapters.torchvision.base import taken
from edgesmith.sdk.errors import SourceError

_EPSILON = 1e-6  # torchvision's, in the choice of the level


class RoiAlign(nn.Module):
    """torchvision's ``MultiScaleRoIAlign`` for a fixed number of regions.

    All levels lie on one canvas, the finest at the left, the others in a column beside it, each with its
    edge repeated around it; so each region is sampled once, by one GridSample, on the level that its area
    chooses (Lin et al., 2017, arXiv 1612.03144, equation 1):

        level = floor(4 + log2(sqrt(area) / 224)), limited to those there are

    A sample beyond a level's edge counts as zero: it is sent to a corner of the canvas that holds zeros.

    Args:
        pool: torchvision's module.
        shapes: (h, w) of each level that it reads, finest first.
        size: (H, W) of the image that the boxes are in.

    Raises:
        SourceError: ``sampling_ratio`` of the pool is 0: how many samples a cell has would depend on the box.
    """

    table: Tensor
    steps: Tensor
    bounds: Tensor
    unit: Tensor
    zeros: Tensor

    def __init__(self, pool: Any, shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
        super().__init__()
        self.samples, self.cells = int(pool.sampling_ratio), tuple(int(n) for n in pool.output_size)
        if self.samples < 1:
            raise SourceError(
                f"a MultiScaleRoIAlign of the model has sampling_ratio {pool.sampling_ratio}: then the "
                "number of samples depends on each box, and a graph's shapes cannot. Set it to 2 (as in "
                "torchvision's own models) and check the accuracy"
            )
        self.shapes = list(shapes)
        scales = [2.0 ** round(math.log2(rows / size[0])) for rows, _ in shapes]
        self.width, self.height, places = _canvas(shapes)
        rows = [(scale, w, h, x, y) for scale, (h, w), (x, y) in zip(scales, shapes, places, strict=True)]
        self.register_buffer("table", torch.tensor(rows, dtype=torch.float32))
        self.register_buffer("bounds", torch.tensor(_bounds(pool, scales), dtype=torch.float32))
        steps = [_steps(count, self.samples) for count in self.cells]
        if len(set(self.cells)) != 1:
            raise SourceError(f"RoIAlign to {self.cells} cells: only square outputs are known here")
        self.register_buffer("steps", steps[0])
        ends = torch.tensor([self.width - 1.0, self.height - 1.0])
        self.register_buffer("unit", 2 / ends)
        self.register_buffer("zeros", (ends - 1) * (2 / ends) - 1)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Maps (N, C, h, w) and boxes (N, P, 4) xyxy in pixels to features (N * P, C, cells, cells)."""
        canvas = self.canvas(maps)
        grid = self.grid(boxes)
        points, regions = len(self.steps), boxes.shape[1]
        found = functional.grid_sample(
            canvas, grid.reshape(-1, regions * points, points, 2), padding_mode="border", align_corners=True
        )
        found = functional.avg_pool2d(found, self.samples)
        cells = self.cells[0]
        found = found.reshape(-1, maps[0].shape[1], regions, cells, cells).transpose(1, 2)
        return found.reshape(-1, maps[0].shape[1], cells, cells)

    def canvas(self, maps: Sequence[Tensor]) -> Tensor:
        """All levels in one map (N, C, height, width), with zeros at the right and at the bottom."""
        first, *others = (functional.pad(m.float(), (1, 1, 1, 1), mode="replicate") for m in maps)
        if not others:
            rows, columns = first.shape[2:]
            return functional.pad(first, (0, self.width - columns, 0, self.height - rows))
        beside = max(m.shape[3] for m in others)
        column = torch.cat([functional.pad(m, (0, beside - m.shape[3], 0, 0)) for m in others], 2)
        left = functional.pad(first, (0, 0, 0, self.height - first.shape[2]))
        missing = self.width - first.shape[3] - column.shape[3]
        right = functional.pad(column, (0, missing, 0, self.height - column.shape[2]))
        return torch.cat((left, right), 3)

    def grid(self, boxes: Tensor) -> Tensor:
        """Sample points (N, P, S, S, 2) of boxes (N, P, 4), x and y in -1..1 of the canvas."""
        extent = boxes[..., 2:] - boxes[..., :2]
        area = extent[..., 0] * extent[..., 1]
        level = (area.unsqueeze(2) >= self.bounds).to(torch.int64).sum(2)
        place = taken(self.table, level)
        scale, sides, origin = place[..., :1], place[..., 1:3], place[..., 3:]
        start = boxes[..., :2] * scale
        extent = (boxes[..., 2:] * scale - start).clamp(min=1)
        # (N, P, S, 2), the same steps along both axes
        points = start.unsqueeze(2) + self.steps.unsqueeze(1) * extent.unsqueeze(2)
        last = sides.unsqueeze(2)
        inside = (points >= -1) & (points <= last)
        points = torch.minimum(points.clamp(min=0), last - 1) + origin.unsqueeze(2)
        points = points * self.unit - 1
        both = inside[..., 0].unsqueeze(2) & inside[..., 1].unsqueeze(3)
        x = torch.where(both, points[..., 0].unsqueeze(2), self.zeros[0])
        y = torch.where(both, points[..., 1].unsqueeze(3), self.zeros[1])
        return torch.stack((x, y), -1)


def _canvas(shapes: Sequence[tuple[int, int]]) -> tuple[int, int, list[tuple[float, float]]]:
    """Width and height of the canvas, and (x, y) of each level's first cell on it."""
    places = [(1.0, 1.0)]
    (first_rows, first_columns), *others = shapes
    top = 0
    for rows, _ in others:
        places.append((first_columns + 3.0, top + 1.0))
        top += rows + 2
    beside = max((columns + 2 for _, columns in others), default=0)
    # Three more columns and rows of zeros: between them lies a point that reads nothing else.
    return first_columns + 2 + beside + 3, max(first_rows + 2, top) + 3, places


def _bounds(pool: Any, scales: Sequence[float]) -> list[float]:
    """The area in pixels at which each level but the first begins."""
    lowest, highest = round(-math.log2(scales[0])), round(-math.log2(scales[-1]))
    canonical, level = float(pool.canonical_scale), float(pool.canonical_level)
    return [(canonical * 2.0 ** (k - level - _EPSILON)) ** 2 for k in range(lowest + 1, highest + 1)]


def _steps(cells: int, samples: int) -> Tensor:
    """Where the samples lie along a box, in shares of its length."""
    within = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    places = (torch.arange(cells, dtype=torch.float64)[:, None] + within) / cells
    return places.flatten().float()
