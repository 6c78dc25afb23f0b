"""torchvision's RetinaNet (Lin et al., 2017, 1708.02002) and FCOS (Tian et al., 2019, arXiv 1904.01355).

Both look at every cell of a feature pyramid, 10^4 to 10^5 boxes. The best of each level, by their best class,
go on: as many as torchvision lets in (1,000). It counts pairs of box and class, and all of its pairs lie in
these boxes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.nms_graph import TOP_K_LIMIT
from edgesmith.converters.adapters.torchvision.base import Deltas, Setup, StaticDetector, picked, taken


class _DenseDetector(StaticDetector):
    """The best anchors of each level; ``levels`` holds (first, last, kept) of each."""

    priors: Tensor

    def __init__(self, network: nn.Module, setup: Setup) -> None:
        columns = int(network.head.classification_head.num_classes)  # type: ignore[union-attr, arg-type]
        super().__init__(network, setup, columns=columns, background=False)
        generator: Any = network.anchor_generator
        maps = list(self.probe().values())
        self.register_buffer("priors", self.anchors(generator, maps))
        most = min(int(network.topk_candidates), TOP_K_LIMIT)  # type: ignore[arg-type]
        self.levels: list[tuple[int, int, int]] = []
        first = 0
        for each, count in zip(maps, generator.num_anchors_per_location(), strict=True):
            anchors = int(each.shape[2] * each.shape[3]) * count
            self.levels.append((first, first + anchors, min(most, anchors)))
            first += anchors

    def best(self, rank: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """The best of each level by ``rank`` (N, A): anchors (N, K, 4), and their part of ``rows``."""
        chosen: list[tuple[Tensor, ...]] = []
        for first, last, kept in self.levels:
            part = tuple(row[:, first:last] for row in rows)
            index = torch.topk(rank[:, first:last], kept, 1).indices
            priors = taken(self.priors[first:last], index)
            chosen.append((priors, *(picked(row, index) for row in part)))
        return tuple(torch.cat(column, 1) for column in zip(*chosen, strict=True))


class StaticRetinaNet(_DenseDetector):
    """Class scores by sigmoid, boxes as deltas of anchors."""

    def __init__(self, network: nn.Module, setup: Setup) -> None:
        super().__init__(network, setup)
        self.coder = Deltas(network.box_coder)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.network.head(list(self.features(images).values()))
        logits = raw["cls_logits"].float()
        priors, logits, deltas = self.best(logits.amax(2), logits, raw["bbox_regression"].float())
        return self.clipped(self.coder.boxes(deltas, priors)), self.foreground(logits.sigmoid())


class StaticFcos(_DenseDetector):
    """Distances to the sides of the box, in strides; score = sqrt(sigmoid(class) * sigmoid(centerness))."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.network.head(list(self.features(images).values()))
        logits, centerness = raw["cls_logits"].float(), raw["bbox_ctrness"].float()
        rank = (logits.amax(2).sigmoid() * centerness.squeeze(2).sigmoid()).sqrt()
        priors, logits, centerness, sides = self.best(
            rank, logits, centerness, raw["bbox_regression"].float()
        )
        centre = 0.5 * (priors[..., :2] + priors[..., 2:])
        if self.network.box_coder.normalize_by_size:
            size = priors[..., 2:] - priors[..., :2]
            sides = sides * torch.cat((size, size), -1)
        boxes = torch.cat((centre - sides[..., :2], centre + sides[..., 2:]), -1)
        scores = (logits.sigmoid() * centerness.sigmoid()).sqrt()
        return self.clipped(boxes), self.foreground(scores)
