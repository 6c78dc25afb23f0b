"""A module that gives boxes and scores already, and the check that they are what they must be."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, flatten
from edgesmith.sdk.errors import SourceError


class CanonicalHead(nn.Module):
    """Boxes float (N, K, 4) xyxy in input pixels and scores (N, K, C) in 0..1, passed through.

    A tuple gives the boxes first; of a dict the keys ``boxes`` and ``scores`` are taken.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset()
    output_names = DETECTOR_OUTPUTS

    def __init__(self, keys: tuple[str, str], classes: int) -> None:
        super().__init__()
        self.keys, self.classes = keys, classes

    @classmethod
    def from_outputs(cls, seen: Outputs) -> CanonicalHead | Declined:
        if set(DETECTOR_OUTPUTS) <= set(seen.keys):
            boxes_key, scores_key = DETECTOR_OUTPUTS
        elif seen.keys == ("0", "1"):
            boxes_key, scores_key = seen.keys
        else:
            return Declined(
                "it takes a pair, boxes (N, K, 4) and scores (N, K, C), or a dict with these names"
            )
        found = dict(zip(seen.keys, seen.tensors, strict=True))
        boxes, scores = found[boxes_key], found[scores_key]
        reason = shape_fault(boxes, scores, seen.labels)
        if reason is not None:
            return Declined(reason)
        return cls((boxes_key, scores_key), int(scores.shape[2]))

    def describe(self) -> str:
        return f"boxes and scores with {self.classes} classes"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        found = dict(flatten(raw))
        return found[self.keys[0]].float(), found[self.keys[1]].float()


def shape_fault(boxes: Tensor, scores: Tensor, labels: int | None) -> str | None:
    """What is wrong with the shapes of one image's boxes (1, K, 4) and scores (1, K, C)."""
    if boxes.dim() != 3 or boxes.shape[0] != 1 or boxes.shape[2] != 4:
        return f"boxes are {tuple(boxes.shape)}, not (N, K, 4)"
    if scores.dim() != 3 or scores.shape[:2] != boxes.shape[:2] or scores.shape[2] < 1:
        return f"scores are {tuple(scores.shape)}, not (N, K, C) with the K = {boxes.shape[1]} of the boxes"
    if not (boxes.is_floating_point() and scores.is_floating_point()):
        return f"boxes are {boxes.dtype} and scores {scores.dtype}, not floating point"
    if labels is not None and scores.shape[2] != labels:
        return f"scores have {scores.shape[2]} classes, the recipe's labels are {labels}"
    return None


def check_values(boxes: Tensor, scores: Tensor, head: str) -> None:
    """Refuse values that boxes (1, K, 4) xyxy in pixels and scores in 0..1 cannot have.

    Raises:
        SourceError: with what the values look like instead.
    """
    start = f'the boxes and scores of head "{head}" are not canonical:'
    if not bool(torch.isfinite(boxes).all()) or not bool(torch.isfinite(scores).all()):
        raise SourceError(f"{start} they hold values that are not finite")
    low, high = float(scores.min()), float(scores.max())
    if low < 0 or high > 1 + 1e-5:
        raise SourceError(
            f"{start} scores run from {low:.3g} to {high:.3g}, not within 0..1; "
            "if these are logits, apply the sigmoid or softmax, and multiply the objectness in"
        )
    if bool((boxes[..., 2:] < boxes[..., :2] - 1e-3).any()):
        raise SourceError(
            f"{start} some boxes end before they begin (x2 < x1 or y2 < y1); "
            "boxes must be x1, y1, x2, y2, not centre and size"
        )
    if bool((boxes != 0).any()) and float(boxes.abs().max()) <= 1.001:
        raise SourceError(
            f"{start} all coordinates lie within 0..1; boxes must be in pixels of the model's input: "
            "multiply them by its width and height"
        )
