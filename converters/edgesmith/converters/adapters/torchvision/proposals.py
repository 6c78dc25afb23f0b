"""The region proposal network's choice (Ren et al., 2015, arXiv 1506.01497), of a fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesmith.converters.adapters.nms_graph import TOP_K_LIMIT, overlapping, rows_of, settled
from edgesmith.converters.adapters.torchvision.base import Deltas, flat_rows, picked, roomy, taken

# Neighbouring anchors overlap in long rows, so chains of suppression are longer than among detections.
STEPS = 32


class Proposals(nn.Module):
    """Objectness and deltas of each level to the P best regions of an image.

    As torchvision does: the best of each level by objectness, decoded and clipped, those without width or
    height left out, suppressed level by level, and the best of what is left over all levels. Fewer than P are
    filled up with empty boxes. A chain of suppressions longer than :data:`STEPS` may leave a region too
    many or too few at its end.

    Args:
        rpn: torchvision's ``RegionProposalNetwork``.
        anchors: (A, 4) of all levels, one after the other.
        counts: anchors of each level.
        limits: (4,) width, height, width, height of the image.
    """

    anchors: Tensor
    limits: Tensor
    before: Tensor

    def __init__(self, rpn: Any, anchors: Tensor, counts: Sequence[int], limits: Tensor) -> None:
        super().__init__()
        self.coder = Deltas(rpn.box_coder)
        self.iou, self.score, self.least = float(rpn.nms_thresh), float(rpn.score_thresh), float(rpn.min_size)
        most = min(int(rpn._pre_nms_top_n["testing"]), TOP_K_LIMIT)
        self.kept = [min(most, count) for count in counts]
        self.counts = list(counts)
        self.rows = max(self.kept)
        self.regions = min(int(rpn._post_nms_top_n["testing"]), sum(self.kept), TOP_K_LIMIT)
        self.register_buffer("anchors", anchors)
        self.register_buffer("limits", limits)
        place = torch.arange(self.rows)
        self.register_buffer("before", place[None, :] < place[:, None])

    def forward(self, objectness: Sequence[Tensor], deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The heads' maps (N, A, h, w) and (N, 4 A, h, w) of each level to regions.

        Returns:
            boxes (N, P, 4) xyxy, and whether each is a region, bool (N, P).
        """
        found = [
            self.best(number, logits, shifts)
            for number, (logits, shifts) in enumerate(zip(objectness, deltas, strict=True))
        ]
        boxes, scores = (torch.cat(part, 1) for part in zip(*found, strict=True))
        levels = boxes.reshape(-1, self.rows, 4)
        valid = scores.reshape(-1, self.rows) > 0
        keep, _ = settled(overlapping(levels, self.iou) & self.before, valid, STEPS)
        scores = scores * keep.reshape(-1, len(found) * self.rows)
        best, index = torch.topk(scores, self.regions, 1)
        live = best > 0
        return torch.where(live.unsqueeze(2), rows_of(boxes, index), 0.0), live

    def best(self, number: int, objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """The best boxes (N, rows, 4) of a level and their scores (N, rows), zero where there is none."""
        first = sum(self.counts[:number])
        anchors = self.anchors[first : first + self.counts[number]]
        logits = flat_rows(objectness.float(), 1).squeeze(2)
        value, index = torch.topk(logits, self.kept[number], 1)
        boxes = self.coder.boxes(picked(flat_rows(deltas.float(), 4), index), taken(anchors, index))
        boxes = torch.minimum(boxes.clamp(min=0), self.limits)
        score = value.sigmoid()
        fits = roomy(boxes, self.least) & (score >= self.score)
        score = torch.where(fits, score, 0.0)
        missing = self.rows - self.kept[number]
        if missing:
            boxes, score = functional.pad(boxes, (0, 0, 0, missing)), functional.pad(score, (0, missing))
        return boxes, score
