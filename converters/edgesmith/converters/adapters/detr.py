"""DETR and its kin: a set of queries, each with class logits and a box as shares of the input.

"End-to-End Object Detection with Transformers" (Carion et al., 2020, arXiv 2005.12872): softmax over the
classes and, last, "no object". "Deformable DETR" (Zhu et al., 2020, arXiv 2010.04159) and "RT-DETR" (Zhao et
al., 2023, arXiv 2304.08069): a sigmoid for each class. Nothing needs suppressing: set ``nms.iou = 1.0`` in
the recipe, and ``nms.classes = "all"`` for the sigmoid kind, whose queries may have several classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.anchored import corners
from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, Undecided, tensors_of
from edgesmith.converters.adapters.levels import are_activated
from edgesmith.converters.adapters.options import HeadOptions, read_options

LOGITS, BOXES = ("pred_logits", "logits"), ("pred_boxes",)


class DetrHead(nn.Module):
    """Logits (N, Q, C or C + 1) and boxes (N, Q, 4), or one tensor (N, Q, 4 + C) with the boxes first.

    box = (cx, cy, w, h) * (width, height, width, height)
    score = softmax(logits) without its last, or sigmoid(logits)
    """

    ONE_BOX_AN_OBJECT = True
    output_names = DETECTOR_OUTPUTS
    extent: Tensor

    def __init__(
        self,
        classes: int,
        queries: int,
        size: tuple[int, int],
        *,
        places: tuple[int, int] | None,
        softmax: bool,
        activated: bool = False,
    ) -> None:
        """``places``: which tensors hold logits and boxes; None where one holds both."""
        super().__init__()
        self.classes, self.queries, self.places = classes, queries, places
        self.softmax, self.activated = softmax, activated
        height, width = size
        self.register_buffer("extent", torch.tensor([width, height, width, height]).float())

    def describe(self) -> str:
        how = "softmax with a last no-object class" if self.softmax else "a sigmoid for each class"
        return f"{self.queries} queries of {self.classes} classes, {how}"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        tensors = tensors_of(raw)
        if self.places is None:
            boxes, logits = tensors[0][..., :4].float(), tensors[0][..., 4:].float()
        else:
            logits, boxes = (tensors[place].float() for place in self.places)
        scores = logits
        if not self.activated:
            scores = logits.softmax(2) if self.softmax else logits.sigmoid()
        return corners(boxes * self.extent), scores[..., : self.classes]


class Detr:
    """Tells logits from boxes, and the one kind of scores from the other."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"activation", "activated"})

    @classmethod
    def from_outputs(cls, seen: Outputs) -> DetrHead | Declined:
        options = read_options(seen.options)
        places = _places(seen)
        if isinstance(places, Declined):
            return places
        if places is None:
            boxes, logits = seen.tensors[0][..., :4], seen.tensors[0][..., 4:]
        else:
            logits, boxes = (seen.tensors[place] for place in places)
        if not bool(((boxes >= 0) & (boxes <= 1)).all()):
            return Declined("boxes are shares of the input, cx, cy, w, h in 0..1; these leave that range")
        activated = are_activated([logits], options.activated)
        if isinstance(activated, Declined):
            return activated
        softmax = _softmax(int(logits.shape[2]), seen.labels, options)
        if isinstance(softmax, Declined):
            return softmax
        classes = int(logits.shape[2]) - int(softmax)
        if seen.labels is not None and classes != seen.labels:
            less = " less the no-object class" if softmax else ""
            return Declined(
                f"{logits.shape[2]} logits{less} are {classes} classes, the recipe's labels are {seen.labels}"
            )
        return DetrHead(
            classes, int(boxes.shape[1]), seen.size, places=places, softmax=softmax, activated=activated
        )


def _places(seen: Outputs) -> tuple[int, int] | Declined | None:
    """Where logits and boxes stand, by name, else by shape; None for one joined tensor."""
    logits = [i for i, key in enumerate(seen.keys) if key in LOGITS]
    boxes = [i for i, key in enumerate(seen.keys) if key in BOXES]
    if len(logits) == 1 and len(boxes) == 1:
        one, other = seen.shapes[logits[0]], seen.shapes[boxes[0]]
        if len(one) != 3 or len(other) != 3 or other[2] != 4 or one[:2] != other[:2]:
            return Declined(f"logits are {one} and boxes {other}, not (N, Q, C) and (N, Q, 4)")
        return logits[0], boxes[0]
    first = seen.shapes[0]
    if len(seen.shapes) == 1 and len(first) == 3 and first[2] > 4:
        return None
    if len(seen.shapes) == 2 and all(len(shape) == 3 for shape in seen.shapes):
        second = seen.shapes[1]
        if second[2] == 4 and first[2] != 4 and first[:2] == second[:2]:
            return 0, 1
    return Declined(
        "it takes a dict with pred_logits (N, Q, C) and pred_boxes (N, Q, 4), these two in this order, or "
        "one tensor (N, Q, 4 + C)"
    )


def _softmax(width: int, labels: int | None, options: HeadOptions) -> bool | Declined:
    if options.activation is not None:
        if options.activation == "softmax" and width < 2:
            return Declined("a softmax needs a class beside no-object")
        return options.activation == "softmax"
    if labels == width:
        return False
    if labels is None or labels == width - 1:
        return Undecided(
            f"{width} logits may be {width - 1} classes and no-object under a softmax, or {width} classes "
            'with a sigmoid each; say head_options.activation = "softmax" or "sigmoid"'
        )
    return Declined(f"{width} logits are not {labels} classes, nor those and no-object")
