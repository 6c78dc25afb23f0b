"""Detectors that choose their boxes themselves, so that nothing needs suppressing (YOLOv10 and its kin).

"YOLOv10: Real-Time End-to-End Object Detection" (Wang et al., 2024, arXiv 2405.14458) and any other module
whose outputs are the detections: set ``nms.iou = 1.0`` in the recipe, and no box suppresses another.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.anchored import corners
from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, Undecided, tensors_of
from edgesmith.converters.adapters.options import read_options
from edgesmith.converters.adapters.yolov8 import NORMALISED

BOXES, SCORES, LABELS = 0, 1, 2


class EndToEndHead(nn.Module):
    """One tensor (N, M, 6): x1, y1, x2, y2 in pixels, score, class number; or boxes (N, M, 4), scores and
    class numbers (N, M), in any order.

    Each row's score goes to its class; the others get zero. The best number of rows is what the module chose.
    """

    ONE_BOX_AN_OBJECT = True
    output_names = DETECTOR_OUTPUTS
    numbers: Tensor

    def __init__(
        self, classes: int, rows: int, *, places: tuple[int, int, int] | None = None, centred: bool = False
    ) -> None:
        """``places``: which tensors hold boxes, scores and class numbers; None where one holds all."""
        super().__init__()
        self.classes, self.rows, self.places, self.centred = classes, rows, places, centred
        self.register_buffer("numbers", torch.arange(classes, dtype=torch.float32)[None, None])

    def describe(self) -> str:
        return f"{self.rows} detections of {self.classes} class{'' if self.classes == 1 else 'es'}"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        tensors = tensors_of(raw)
        if self.places is None:
            flat = tensors[0].float()
            boxes, score, number = flat[..., :4], flat[..., 4:5], flat[..., 5:6]
        else:
            boxes = tensors[self.places[BOXES]].float()
            score = tensors[self.places[SCORES]].float().unsqueeze(2)
            number = tensors[self.places[LABELS]].float().unsqueeze(2)
        return corners(boxes) if self.centred else boxes, torch.where(number == self.numbers, score, 0.0)


class EndToEnd:
    """Knows the detections by their values: class numbers are whole, scores lie in 0..1."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"classes", "boxes"})

    @classmethod
    def from_outputs(cls, seen: Outputs) -> EndToEndHead | Declined:
        options = read_options(seen.options)
        first = seen.shapes[0]
        if len(first) == 3 and first[2] == 6:
            places = None
            joined = seen.tensors[0]
            boxes, score, number = joined[..., :4], joined[..., 4], joined[..., 5]
        else:
            found = _places(seen)
            if isinstance(found, Declined):
                return found
            places = found
            boxes, score, number = (seen.tensors[place] for place in found)
        number, score = number.float(), score.float()
        if bool((number != number.round()).any()) or bool((number < 0).any()):
            return Declined("class numbers are whole and not below zero, these are not")
        if bool(((score < 0) | (score > 1)).any()):
            return Declined("scores lie in 0..1, these do not")
        centred = options.boxes == "cxcywh"
        if not centred and bool((boxes[..., 2:] < boxes[..., :2] - 1e-3).any()):
            return Declined(
                'some boxes end before they begin; centres and sizes: head_options.boxes = "cxcywh"'
            )
        if float(boxes.abs().max()) < NORMALISED and bool((boxes != 0).any()):
            return Declined("the boxes must be in pixels, these all lie within 0..1")
        classes = options.classes or seen.labels
        if classes is None:
            return Undecided(
                "the number of classes follows from the labels: give labels or head_options.classes"
            )
        if seen.labels is not None and classes != seen.labels:
            return Declined(f"head_options.classes is {classes}, the recipe's labels are {seen.labels}")
        if int(number.max()) >= classes:
            return Declined(f"class number {int(number.max())} is not one of {classes} classes")
        return EndToEndHead(classes, int(boxes.shape[1]), places=places, centred=centred)


def _places(seen: Outputs) -> tuple[int, int, int] | Declined:
    """Where boxes, scores and class numbers stand among three tensors; by type and shape, or by name."""
    no = Declined("it takes one tensor (N, M, 6), or boxes (N, M, 4), scores (N, M) and class numbers (N, M)")
    boxes = [i for i, shape in enumerate(seen.shapes) if len(shape) == 3 and shape[2] == 4]
    if len(seen.shapes) != 3 or len(boxes) != 1:
        return no
    rows = seen.shapes[boxes[0]][:2]
    others = [i for i in range(3) if i != boxes[0]]
    if any(seen.shapes[i] != rows for i in others):
        return no
    named = {seen.keys[i].rpartition(".")[2]: i for i in others}
    whole = [i for i in others if not seen.tensors[i].is_floating_point()]
    if {"scores", "labels"} == set(named):
        return boxes[0], named["scores"], named["labels"]
    if len(whole) == 1:
        return boxes[0], next(i for i in others if i != whole[0]), whole[0]
    return Undecided("which of two tensors (N, M) holds the scores is not told; name them scores and labels")
