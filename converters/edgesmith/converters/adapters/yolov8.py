"""YOLOv8 and its kin (v9, v11, v12): no anchors, no objectness, sides as distributions over distances.

The head of "Generalized Focal Loss" (Li et al., 2020, arXiv 2006.04388, equation 5) on one cell a box, as in
YOLOv8 (Jocher et al., 2023, the Ultralytics project).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.anchored import corners, same_boxes
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
from edgesmith.converters.adapters.options import HeadOptions, read_options

BINS = 16  # distances a side in all published weights
NORMALISED = 1.5  # coordinates that all lie below this are shares of the input, not pixels


class Yolov8Head(nn.Module):
    """Raw maps (N, 4 * bins + C, h, w), one a level in any order.

    Channels: ``bins`` logits each for left, top, right, bottom, then class logits.

        distance = stride * sum_i i * softmax(bins)_i       centre = (cell + 0.5) * stride
        box = centre -/+ distances       score = sigmoid(class)

    The authors' module in eval mode returns its own decode, one (N, 4 + C, K), before the maps: that one is
    compared with ours and left out.
    """

    output_names = DETECTOR_OUTPUTS
    centres: Tensor
    strides: Tensor
    steps: Tensor

    def __init__(
        self, levels: tuple[Level, ...], classes: int, bins: int, *, skip: int = 0, activated: bool = False
    ) -> None:
        """``skip`` tensors stand before the maps."""
        super().__init__()
        self.levels, self.classes, self.bins = levels, classes, bins
        self.skip, self.activated = skip, activated
        cells, strides = cells_of(levels)
        self.register_buffer("centres", (cells + 0.5) * strides)
        self.register_buffer("strides", strides)
        self.register_buffer("steps", torch.arange(bins).float())

    def describe(self) -> str:
        return f"{describe_levels(self.levels, self.classes)}, {self.bins} bins before the classes"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        maps = tensors_of(raw)[self.skip : self.skip + len(self.levels)]
        flat = joined(maps, self.levels)
        scores = flat[..., 4 * self.bins :]
        if not self.activated:
            scores = scores.sigmoid()
        chances = flat[..., : 4 * self.bins].reshape(-1, self.centres.shape[1], 4, self.bins).softmax(3)
        sides = (chances * self.steps).sum(3) * self.strides
        return torch.cat((self.centres - sides[..., :2], self.centres + sides[..., 2:]), 2), scores


class JoinedYolov8Head(nn.Module):
    """The module's own decode alone, one (N, 4 + C, K): boxes in pixels, scores after their sigmoid."""

    output_names = DETECTOR_OUTPUTS

    def __init__(self, levels: tuple[Level, ...], classes: int, *, centred: bool) -> None:
        super().__init__()
        self.levels, self.classes, self.centred = levels, classes, centred

    def describe(self) -> str:
        written = "centre and size" if self.centred else "corners"
        return f"{describe_levels(self.levels, self.classes)}, boxes as {written}"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        flat = tensors_of(raw)[0].transpose(1, 2).float()
        return corners(flat) if self.centred else flat[..., :4], flat[..., 4:]


class Yolov8:
    """Tells which of the two forms the outputs have."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"bins", "strides", "activated", "boxes"})

    @classmethod
    def from_outputs(cls, seen: Outputs) -> Yolov8Head | JoinedYolov8Head | Declined:
        options = read_options(seen.options)
        first = seen.shapes[0]
        if len(first) == 3 and not any(len(shape) == 4 for shape in seen.shapes[1:]):
            return _from_joined(seen, options)
        skip = int(len(first) == 3)
        shapes = [shape for shape in seen.shapes[skip:] if len(shape) == 4] if skip else list(seen.shapes)
        if list(seen.shapes[skip : skip + len(shapes)]) != shapes:
            return Declined("the maps do not stand together in the outputs")
        return _from_maps(seen, options, skip, len(shapes))


def _from_maps(seen: Outputs, options: HeadOptions, skip: int, count: int) -> Yolov8Head | Declined:
    tensors = seen.tensors[skip : skip + count]
    maps = maps_of([tuple(t.shape) for t in tensors])
    if isinstance(maps, Declined):
        return maps
    bins, channels = options.bins or BINS, int(tensors[0].shape[1])
    classes = channels - 4 * bins
    wrong = classes_declined(classes, seen.labels, f"{channels} channels less 4 x {bins} bins")
    if wrong is not None:
        return wrong
    levels = levels_from_maps(maps, seen.size, options.strides)
    if isinstance(levels, Declined):
        return levels
    activated = are_activated([t[:, 4 * bins :] for t in tensors], options.activated)
    if isinstance(activated, Declined):
        return activated
    head = Yolov8Head(levels, classes, bins, skip=skip, activated=activated)
    return (_unlike(head, seen) if skip else None) or head


def _unlike(head: Yolov8Head, seen: Outputs) -> Declined | None:
    """Why the first output is not this head's decode of the maps."""
    rows = sum(level.cells for level in head.levels)
    if seen.shapes[0][1:] != (head.classes + 4, rows):
        return Declined(
            f"the first output {seen.shapes[0]} is not a decode of the maps: (1, {head.classes + 4}, {rows})"
        )
    with torch.no_grad():
        boxes, scores = head(seen.raw)
    theirs = seen.tensors[0].transpose(1, 2)
    different = same_boxes(boxes, scores, corners(theirs), theirs[..., 4:])
    if different is None:
        return None
    return Declined(
        f"the first output should be the decode of the maps, but {different}: return one of them alone"
    )


def _from_joined(seen: Outputs, options: HeadOptions) -> JoinedYolov8Head | Declined:
    if len(seen.shapes) != 1:
        return Declined("it takes maps, one joined tensor (N, 4 + C, K), or that and the maps")
    if options.bins is not None:
        return Declined("head_options.bins goes with raw maps, not with one joined tensor (N, 4 + C, K)")
    _, channels, rows = seen.shapes[0]
    levels = levels_from_count(rows, seen.size, options.strides)
    wrong = classes_declined(channels - 4, seen.labels, f"{channels} channels less 4")
    if wrong is not None:
        return wrong
    if isinstance(levels, Declined):
        return levels
    values = seen.tensors[0].transpose(1, 2)
    boxes, scores = values[..., :4], values[..., 4:]
    if options.activated is False or not bool(((scores >= 0) & (scores <= 1)).all()):
        return Declined("the scores of one joined tensor must have gone through their sigmoid")
    if float(boxes.abs().max()) < NORMALISED:
        return Declined("the boxes of one joined tensor must be in pixels, these all lie within 0..1")
    centred = are_centred(boxes, options.boxes)
    if isinstance(centred, Declined):
        return centred
    return JoinedYolov8Head(levels, channels - 4, centred=centred)


def are_centred(boxes: Tensor, told: str | None) -> bool | Declined:
    """Whether boxes (N, K, 4) are centre, width, height rather than x1, y1, x2, y2.

    A third column below the first proves that it is a width. Without one only the recipe can tell.
    """
    crossed = bool((boxes[..., 2:] < boxes[..., :2]).any())
    if told is None and not crossed:
        return Undecided(
            "its boxes may be x1, y1, x2, y2 or centre, width, height: on the example nothing tells; say "
            'head_options.boxes = "xyxy" or "cxcywh"'
        )
    if told == "xyxy" and crossed:
        return Declined('head_options.boxes is "xyxy", but some boxes end before they begin')
    if told != "xyxy" and bool((boxes[..., 2:] < 0).any()):
        return Declined("some boxes have a width or height below zero")
    return told != "xyxy"
