"""Faster R-CNN, Mask R-CNN and Fast R-CNN of torchvision, from the image to class-wise candidates and masks.

Ren et al., 2015, arXiv 1506.01497; He et al., 2017, arXiv 1703.06870; Girshick, 2015, arXiv 1504.08083.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.nms_graph import NMS_OUTPUTS, STEPS, TOP_K_LIMIT, GraphNms, rows_of
from edgesmith.converters.adapters.torchvision.base import Deltas, Setup, StaticDetector, roomy
from edgesmith.converters.adapters.torchvision.proposals import Proposals
from edgesmith.converters.adapters.torchvision.roi_align import RoiAlign
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Nms

log = logging.getLogger(__name__)
LEAST_SIDE = 1e-2  # pixels; torchvision drops detections that are thinner
MASKED_STEPS = 64  # masks belong to the graph's own boxes, so its suppression should always settle


class StaticRcnn(StaticDetector):
    """The best K pairs of region and class, K = ``nms.candidates``: boxes (N, K, 4), scores (N, K, C).

    Each region has a box of its own for each class, so a row holds one class: C scores, one of them above
    zero. With the suppression in the graph, Mask R-CNN adds ``masks`` (N, M, h, w): probabilities 0..1 over
    each detection's box, zeros where there is no detection.

    With ``setup.proposals`` this is Fast R-CNN on fixed regions; :class:`FastRcnn` takes them as an input.

    Raises:
        RecipeError: masks are wanted, but the suppression is on the host.
        SourceError: a part of the network is not as torchvision makes it.
    """

    given: Tensor
    numbers: Tensor

    def __init__(self, network: nn.Module, setup: Setup) -> None:
        heads: Any = network.roi_heads
        columns = int(_predictor_columns(heads))
        super().__init__(network, setup, columns=columns, background=True)
        self.columns = columns
        self.coder = Deltas(heads.box_coder)
        self.one_class = setup.nms is not None and setup.nms.classes == "best"
        self.masked = bool(heads.has_mask()) and setup.masks
        if heads.has_keypoint():
            log.warning("%s: keypoints are left out, boxes are converted", type(network).__name__)
        if self.masked and setup.nms is not None and setup.nms.where == "host":
            raise RecipeError(
                "recipe: nms.where: the masks of Mask R-CNN are made for the boxes that stay, so the "
                'suppression goes into the graph: set nms.where = "graph" (and nms.classes = "all"), or '
                "model.head_options.masks = false for boxes alone",
                key="nms.where",
            )
        maps = self.probe()
        self.pool = self._pool(heads.box_roi_pool, maps)
        self.mask_pool = self._pool(heads.mask_roi_pool, maps) if self.masked else None
        self.proposals: Proposals | None = None
        if setup.proposals is not None:
            self.register_buffer("given", torch.tensor(setup.proposals, dtype=torch.float32)[None])
            regions = len(setup.proposals)
        else:
            self.proposals = self._proposals(network.rpn, maps)
            regions = self.proposals.regions
        candidates = setup.nms.candidates if setup.nms is not None else TOP_K_LIMIT
        pairs = regions if self.one_class else regions * (columns - 1)
        self.candidates = min(candidates, pairs, TOP_K_LIMIT)
        # The network's classes without the background are 0 .. columns - 2; the labels may count it.
        self.offset = 1 - self.skip
        self.register_buffer("numbers", torch.arange(self.classes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(images)
        return self.canonical(*self.classified(maps, *self.regions(maps)))

    def regions(self, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Regions (N, P, 4) xyxy, and which of them are real, bool (N, P)."""
        if self.proposals is None:
            boxes = self.given.expand(next(iter(maps.values())).shape[0], -1, -1)
            return boxes, roomy(boxes, LEAST_SIDE)
        objectness, deltas = self.network.rpn.head(list(maps.values()))
        found: tuple[Tensor, Tensor] = self.proposals(objectness, deltas)
        return found

    def classified(self, maps: dict[str, Tensor], regions: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """A box (N, P, C', 4) and a score (N, P, C') for each class but the background, C' = columns - 1."""
        heads = self.network.roi_heads
        read = [value for name, value in maps.items() if name in heads.box_roi_pool.featmap_names]
        logits, deltas = heads.box_predictor(heads.box_head(self.pool(read, regions)))
        count = regions.shape[1]
        scores = torch.softmax(logits.float(), -1).reshape(-1, count, self.columns)[..., 1:]
        deltas = deltas.float().reshape(-1, count, self.columns, 4)[:, :, 1:]
        boxes = self.clipped(self.coder.boxes(deltas, regions.unsqueeze(2)))
        real = roomy(boxes, LEAST_SIDE) & live.unsqueeze(2)
        return boxes, torch.where(real, scores, 0.0)

    def pairs(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The best K pairs by scores (N, P, C'): scores (N, K), numbers (N, K) = region * C' + class."""
        if not self.one_class:
            best, pair = torch.topk(scores.flatten(1), self.candidates, 1)
            return best, pair
        value, label = scores.max(2)
        found, region = torch.topk(value, self.candidates, 1)
        return found, region * scores.shape[2] + label.gather(1, region)

    def chosen(self, boxes: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, K, 4) and labels (N, K) int64 of pairs, from boxes (N, P, C', 4)."""
        return rows_of(boxes.flatten(1, 2), pair), pair % boxes.shape[2] + self.offset

    def canonical(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`classified` gives, as boxes (N, K, 4) and scores (N, K, C)."""
        found, pair = self.pairs(scores)
        near, labels = self.chosen(boxes, pair)
        return near, torch.where(labels.unsqueeze(2) == self.numbers, found.unsqueeze(2), 0.0)

    def with_nms(self, nms: Nms, rows: int) -> tuple[nn.Module, tuple[str, ...]]:
        names = (*NMS_OUTPUTS, "masks") if self.masked else NMS_OUTPUTS
        return RcnnWithNms(self, nms), names

    def masks(self, maps: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (N, M, h, w) of the class of each box (N, M, 4)."""
        heads = self.network.roi_heads
        assert self.mask_pool is not None  # only asked where there are masks
        read = [value for name, value in maps.items() if name in heads.mask_roi_pool.featmap_names]
        logits = heads.mask_predictor(heads.mask_head(self.mask_pool(read, boxes))).float()
        height, width = logits.shape[2:]
        flat = logits.reshape(-1, self.columns, height * width)
        number = (labels.long() + 1 - self.offset).reshape(-1, 1, 1)
        ones = torch.ones(1, 1, height * width, dtype=torch.int64)
        chances: Tensor = flat.gather(1, number * ones).sigmoid()
        return chances.reshape(-1, boxes.shape[1], height, width)

    def _pool(self, pool: Any, maps: dict[str, Tensor]) -> RoiAlign:
        shapes = [(int(m.shape[2]), int(m.shape[3])) for n, m in maps.items() if n in pool.featmap_names]
        if not shapes:
            raise SourceError(
                f"RoIAlign reads the maps {', '.join(map(str, pool.featmap_names))}, but the backbone gives "
                f"{', '.join(maps)}"
            )
        return RoiAlign(pool, shapes, self.size)

    def _proposals(self, rpn: Any, maps: dict[str, Tensor]) -> Proposals:
        values = list(maps.values())
        per_cell = rpn.anchor_generator.num_anchors_per_location()
        counts = [int(m.shape[2] * m.shape[3]) * n for m, n in zip(values, per_cell, strict=True)]
        return Proposals(rpn, self.anchors(rpn.anchor_generator, values), counts, self.limits)


class RcnnWithNms(nn.Module):
    """A two-stage detector with the class-wise suppression behind it, and masks of what stays."""

    def __init__(self, detector: StaticRcnn, nms: Nms) -> None:
        super().__init__()
        self.detector = detector
        steps = MASKED_STEPS if detector.masked else STEPS
        self.nms = GraphNms(nms, rows=detector.candidates, classes=1, steps=steps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        maps = detector.features(images)
        boxes, scores = detector.classified(maps, *detector.regions(maps))
        found, pair = self.nms.ordered(*detector.pairs(torch.where(scores > self.nms.score, scores, 0.0)))
        real = found > 0
        near, labels = detector.chosen(boxes, pair)
        near, labels = torch.where(real.unsqueeze(2), near, 0.0), torch.where(real, labels, 0)
        result = self.nms.detections(near, found, labels)
        if not detector.masked:
            return result
        kept, score, label = result[:3]
        shown = (score > 0).float().unsqueeze(2).unsqueeze(3)
        return (*result, detector.masks(maps, kept, label) * shown)


class FastRcnn(nn.Module):
    """Fast R-CNN: images (N, 3, H, W) and regions (N, P, 4) xyxy in input pixels to boxes and scores.

    For proposals that come from elsewhere (selective search, a depth camera, a tracker); empty regions
    (zeros) are passed over. Outputs as those of :class:`StaticRcnn`.
    """

    def __init__(self, detector: StaticRcnn) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.detector.features(images)
        live = roomy(proposals, LEAST_SIDE)
        return self.detector.canonical(*self.detector.classified(maps, proposals, live))


def _predictor_columns(heads: Any) -> int:
    """The number of classes, the background among them.

    Raises:
        SourceError: the box predictor is not one that gives four deltas a class.
    """
    predictor = heads.box_predictor
    score, deltas = getattr(predictor, "cls_score", None), getattr(predictor, "bbox_pred", None)
    if score is None or deltas is None or deltas.out_features != 4 * score.out_features:
        raise SourceError(
            f"the box predictor {type(predictor).__name__} is not known: it needs the layers cls_score "
            "(classes) and bbox_pred (4 x classes), as torchvision's FastRCNNPredictor has them"
        )
    return int(score.out_features)
