"""Detectors with anchors: what the raw maps of YOLOv3 and YOLOv5 share, which is all but the decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, Undecided, tensors_of
from edgesmith.converters.adapters.levels import (
    Level,
    are_activated,
    cells_of,
    classes_declined,
    describe_levels,
    levels_from_count,
    levels_from_maps,
)
from edgesmith.converters.adapters.options import HeadOptions, read_options

# Width, height in pixels: the published anchors of levels P3, P4, P5, the same for YOLOv3 and YOLOv5.
P3_TO_P5 = (
    (10.0, 13.0, 16.0, 30.0, 33.0, 23.0),
    (30.0, 61.0, 62.0, 45.0, 59.0, 119.0),
    (116.0, 90.0, 156.0, 198.0, 373.0, 326.0),
)
STRIDES = (8, 16, 32)
# How far a decode of the module's own may lie from ours: pixels and scores in float32.
SAME_PIXELS, SAME_SCORE = 0.05, 1e-3
H = TypeVar("H", bound="AnchoredHead")


class AnchoredHead(nn.Module, ABC):
    """Raw maps (N, A * (5 + C), h, w) or (N, A, h, w, 5 + C), one a level in any order.

    Channels of an anchor: x, y, w, h, objectness, classes.

    A module that returns its own decode, one (N, K, 5 + C), before the maps has that one compared with ours
    and left out. With ``decoded`` that one tensor alone will do: centre, width and height in pixels,
    objectness and classes after their sigmoid.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"anchors", "strides", "activated", "decoded"})
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
        decoded: bool = False,
    ) -> None:
        """``anchors`` are in the order of ``levels``; ``skip`` tensors stand before the maps."""
        super().__init__()
        self.levels, self.classes, self.skip = levels, classes, skip
        self.activated, self.decoded = activated, decoded
        self.count = len(anchors[0]) // 2
        cells, strides = cells_of(levels, repeat=self.count)
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)
        pairs = [
            torch.tensor(level).reshape(-1, 2).repeat_interleave(place.cells, 0)
            for level, place in zip(anchors, levels, strict=True)
        ]
        self.register_buffer("anchors", torch.cat(pairs)[None])

    @abstractmethod
    def places(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and sizes (N, K, 2) in pixels from raw values (N, K, 5 + C)."""

    @staticmethod
    @abstractmethod
    def behind_sigmoids(flat: Tensor) -> Tensor:
        """The values of (N, K, 5 + C) that go through a sigmoid."""

    @classmethod
    def from_outputs(cls: type[H], seen: Outputs) -> H | Declined:
        options = read_options(seen.options)
        anchors = options.anchors or P3_TO_P5
        count = len(anchors[0]) // 2
        if any(len(level) != 2 * count for level in anchors):
            return Declined("head_options.anchors has levels with different numbers of anchors")
        if len(seen.shapes) == 1 and len(seen.shapes[0]) == 3:
            return cls._from_joined(seen, options, anchors, count)
        if options.decoded:
            return Declined("head_options.decoded goes with one joined tensor (N, K, 5 + C), not with maps")
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
        values = [_rows(t, level, count) for t, level in zip(seen.tensors[skip:], levels, strict=True)]
        activated = are_activated([cls.behind_sigmoids(v) for v in values], options.activated)
        if isinstance(activated, Declined):
            return activated
        head = cls(levels, width - 5, matched, skip=skip, activated=activated)
        unlike = _unlike(head, seen) if skip else None
        return unlike or head

    @classmethod
    def _from_joined(
        cls: type[H], seen: Outputs, options: HeadOptions, anchors: tuple[tuple[float, ...], ...], count: int
    ) -> H | Declined:
        """The module's own decode alone, one (N, K, 5 + C)."""
        _, rows, width = seen.shapes[0]
        if rows % count:
            return Declined(f"{rows} rows do not divide by {count} anchors a cell")
        levels = levels_from_count(rows // count, seen.size, options.strides)
        if isinstance(levels, Declined):
            return levels
        wrong = classes_declined(width - 5, seen.labels, f"{width} columns less 5")
        if wrong is not None:
            return wrong
        if len(anchors) != len(levels):
            return Declined(f"{len(levels)} levels, but anchors for {len(anchors)}")
        values = seen.tensors[0]
        if not options.decoded:
            return Undecided(
                "one joined tensor holds boxes in pixels where the module decodes them itself; say "
                "head_options.decoded = true, or return the raw maps"
            )
        if not bool((values[..., 2:4] >= 0).all()):
            return Declined("head_options.decoded is true, but a width or height is below zero")
        if not bool(((values[..., 4:] >= 0) & (values[..., 4:] <= 1)).all()):
            return Declined("head_options.decoded is true, but objectness or classes are outside 0..1")
        return cls(levels, width - 5, anchors, activated=True, decoded=True)

    def describe(self) -> str:
        return f"{describe_levels(self.levels, self.classes)}, {self.count} anchors a cell"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        if self.decoded:
            flat = tensors_of(raw)[0].float()
            centre, size = flat[..., :2], flat[..., 2:4]
        else:
            maps = tensors_of(raw)[self.skip :]
            rows = [_rows(m, level, self.count) for m, level in zip(maps, self.levels, strict=True)]
            flat = torch.cat(rows, 1).float()
            centre, size = self.places(flat)
        chances = flat[..., 4:] if self.activated else flat[..., 4:].sigmoid()
        half = size * 0.5
        return torch.cat((centre - half, centre + half), 2), chances[..., :1] * chances[..., 1:]


def same_boxes(boxes: Tensor, scores: Tensor, theirs: Tensor, their_scores: Tensor) -> str | None:
    """Where our decode and the module's own differ, in words; both boxes xyxy (N, K, 4)."""
    apart = float((boxes - theirs).abs().max())
    other = float((scores - their_scores).abs().max())
    if apart <= SAME_PIXELS + 1e-4 * float(theirs.abs().max()) and other <= SAME_SCORE:
        return None
    return f"boxes differ by up to {apart:.3g} pixels and scores by up to {other:.3g}"


def corners(flat: Tensor) -> Tensor:
    """Boxes (..., 4) as centre, width, height to xyxy."""
    half = flat[..., 2:4] * 0.5
    return torch.cat((flat[..., :2] - half, flat[..., :2] + half), -1)


def _unlike(head: AnchoredHead, seen: Outputs) -> Declined | None:
    """Why the first output is not this head's decode of the maps."""
    joined = seen.tensors[0]
    rows, width = head.cells.shape[1], head.classes + 5
    if joined.shape[1:] != (rows, width):
        return Declined(
            f"the first output {seen.shapes[0]} is not a decode of the maps: (1, {rows}, {width})"
        )
    with torch.no_grad():
        boxes, scores = head(seen.raw)
    different = same_boxes(boxes, scores, corners(joined), joined[..., 4:5] * joined[..., 5:])
    if different is None:
        return None
    return Declined(
        f"the first output should be the decode of the maps, but {different}: check head_options.anchors, or "
        "return the maps alone"
    )


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
