"""YOLOv5: anchors, objectness and classes by sigmoid (Jocher, 2020, doi 10.5281/zenodo.3908559)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, tensors_of
from edgesmith.converters.adapters.levels import (
    Level,
    are_activated,
    cells_of,
    classes_declined,
    describe_levels,
    levels_from_maps,
)
from edgesmith.converters.adapters.options import read_options

# Width, height in pixels of a 640 x 640 input: the published anchors of levels P3, P4, P5.
P3_TO_P5 = (
    (10.0, 13.0, 16.0, 30.0, 33.0, 23.0),
    (30.0, 61.0, 62.0, 45.0, 59.0, 119.0),
    (116.0, 90.0, 156.0, 198.0, 373.0, 326.0),
)
STRIDES = (8, 16, 32)


class Yolov5Head(nn.Module):
    """Raw maps (N, A * (5 + C), h, w) or (N, A, h, w, 5 + C), one a level in any order.

    Channels of an anchor: x, y, w, h, objectness, classes. With s = sigmoid:

        x, y = (2 s - 0.5 + (column, row)) * stride     w, h = (2 s)^2 * anchor
        score = s(objectness) * s(class)

    The authors' module in eval mode returns its own decode, one (N, K, 5 + C), before the maps:
    that one is left out and the maps are read.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"anchors", "strides", "activated"})
    output_names = DETECTOR_OUTPUTS
    cells: Tensor
    strides: Tensor
    anchors: Tensor

    def __init__(
        self,
        levels: tuple[Level, ...],
        classes: int,
        anchors: tuple[tuple[float, ...], ...],
        *,
        skip: int = 0,
        activated: bool = False,
    ) -> None:
        """``anchors`` are in the order of ``levels``; ``skip`` tensors stand before the maps."""
        super().__init__()
        self.levels, self.classes, self.skip, self.activated = levels, classes, skip, activated
        self.count = len(anchors[0]) // 2
        cells, strides = cells_of(levels, repeat=self.count)
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)
        pairs = [
            torch.tensor(level).reshape(-1, 2).repeat_interleave(place.cells, 0)
            for level, place in zip(anchors, levels, strict=True)
        ]
        self.register_buffer("anchors", torch.cat(pairs)[None])

    @classmethod
    def from_outputs(cls, seen: Outputs) -> Yolov5Head | Declined:
        options = read_options(seen.options)
        anchors = options.anchors or P3_TO_P5
        count = len(anchors[0]) // 2
        if any(len(level) != 2 * count for level in anchors):
            return Declined("head_options.anchors has levels with different numbers of anchors")
        skip = int(len(seen.shapes) > 1 and len(seen.shapes[0]) == 3)
        maps = _maps(seen.shapes[skip:], count)
        if isinstance(maps, Declined):
            return maps
        places, width = maps
        wrong = classes_declined(width - 5, seen.labels, f"{width} values an anchor less 5")
        if wrong is not None:
            return wrong
        levels = levels_from_maps(places, seen.size, options.strides)
        if isinstance(levels, Declined):
            return levels
        matched = _matched(levels, anchors, options.strides, default=options.anchors is None)
        if isinstance(matched, Declined):
            return matched
        rows = count * sum(level.cells for level in levels)
        if skip and seen.shapes[0][1:] != (rows, width):
            return Declined(
                f"the first output {seen.shapes[0]} is not a decode of the maps: (1, {rows}, {width})"
            )
        values = [_rows(t, level, count) for t, level in zip(seen.tensors[skip:], levels, strict=True)]
        activated = are_activated(values, options.activated)
        if isinstance(activated, Declined):
            return activated
        return cls(levels, width - 5, matched, skip=skip, activated=activated)

    def describe(self) -> str:
        return f"{describe_levels(self.levels, self.classes)}, {self.count} anchors a cell"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        maps = tensors_of(raw)[self.skip :]
        rows = [_rows(m, level, self.count) for m, level in zip(maps, self.levels, strict=True)]
        flat = torch.cat(rows, 1).float()
        values = flat if self.activated else flat.sigmoid()
        centre = (values[..., :2] * 2 - 0.5 + self.cells) * self.strides
        double = values[..., 2:4] * 2
        half = double * double * (self.anchors * 0.5)
        return torch.cat((centre - half, centre + half), 2), values[..., 4:5] * values[..., 5:]


def _rows(tensor: Tensor, level: Level, count: int) -> Tensor:
    """One level to (N, A * cells, 5 + C), anchor after anchor."""
    if tensor.dim() == 5:
        return tensor.reshape(-1, count * level.cells, tensor.shape[4])
    width = tensor.shape[1] // count
    split = tensor.reshape(-1, count, width, level.cells).transpose(2, 3)
    return split.reshape(-1, count * level.cells, width)


def _maps(shapes: tuple[tuple[int, ...], ...], count: int) -> tuple[list[tuple[int, int]], int] | Declined:
    """``(rows, columns)`` of each map and the values an anchor (5 + C)."""
    if all(len(shape) == 5 for shape in shapes):
        if any(shape[1] != count for shape in shapes):
            return Declined(f"axis 1 of the maps is {shapes[0][1]}, with {count} anchors a cell")
        widths = {shape[4] for shape in shapes}
        places = [(shape[2], shape[3]) for shape in shapes]
    elif all(len(shape) == 4 for shape in shapes):
        if any(shape[1] % count for shape in shapes):
            return Declined(f"{shapes[0][1]} channels do not divide by {count} anchors a cell")
        widths = {shape[1] // count for shape in shapes}
        places = [(shape[2], shape[3]) for shape in shapes]
    else:
        return Declined("it takes maps (N, A * (5 + C), rows, columns) or (N, A, rows, columns, 5 + C)")
    if len(widths) != 1:
        return Declined(f"the maps have different widths: {sorted(widths)}")
    return places, widths.pop()


def _matched(
    levels: tuple[Level, ...],
    anchors: tuple[tuple[float, ...], ...],
    strides: tuple[int, ...] | None,
    *,
    default: bool,
) -> tuple[tuple[float, ...], ...] | Declined:
    """The anchors of each level, in the order of ``levels``."""
    if len(anchors) != len(levels):
        return Declined(f"{len(levels)} maps, but anchors for {len(anchors)} levels")
    found = tuple(level.stride for level in levels)
    if default and tuple(sorted(found)) != STRIDES:
        return Declined(
            f"the default anchors are for strides 8, 16, 32, these are {list(found)}; give anchors"
        )
    if strides is not None and not default:
        return anchors
    order = sorted(range(len(levels)), key=lambda index: found[index])
    by_level = dict(zip(order, anchors, strict=True))
    return tuple(by_level[index] for index in range(len(levels)))
