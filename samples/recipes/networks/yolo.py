"""Detectors with the raw outputs of YOLOv3, YOLOv5, YOLOX, YOLOv8 and YOLOv10, small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Pyramid, output

CLASSES = 4
ANCHORS = 3
BINS = 16
RARE = -3.5  # the logit of an object's chance where nothing is seen


class Anchors(nn.Module):
    """Three maps of anchors: x, y, w, h, objectness, classes. YOLOv3 and YOLOv5 read them differently."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.body = Pyramid()
        self.heads = nn.ModuleList(output(32, ANCHORS * (5 + CLASSES), gain=gain) for _ in range(3))
        with torch.no_grad():
            for head in self.heads:
                head.bias.reshape(ANCHORS, -1)[:, 4] = RARE / 2  # type: ignore[operator]

    def forward(self, images: Tensor) -> list[Tensor]:
        return [head(level) for head, level in zip(self.heads, self.body(images), strict=True)]


class Decoupled(nn.Module):
    """A branch for boxes and one for classes, on one cell a box: YOLOX and YOLOv8."""

    def __init__(self, sides: int, scores: int) -> None:
        super().__init__()
        self.body = Pyramid()
        self.sides = nn.ModuleList(output(32, sides, gain=sides / (4 * BINS) + 0.5) for _ in range(3))
        self.scores = nn.ModuleList(output(32, scores, bias=RARE, gain=2.0) for _ in range(3))

    def forward(self, images: Tensor) -> Any:
        levels = self.body(images)
        return [
            torch.cat((sides(level), scores(level)), 1)
            for sides, scores, level in zip(self.sides, self.scores, levels, strict=True)
        ]


class EndToEnd(Decoupled):
    """YOLOv8's maps, decoded, and the best of all pairs of box and class: (N, 50, 6)."""

    centres: Tensor
    strides: Tensor
    steps: Tensor

    def __init__(self, size: int, most: int = 50) -> None:
        super().__init__(4 * BINS, CLASSES)
        self.most = most
        centres, strides = [], []
        for stride in (8, 16, 32):
            at = (torch.arange(size // stride) + 0.5) * stride
            y, x = torch.meshgrid(at, at, indexing="ij")
            centres.append(torch.stack((x, y), -1).reshape(-1, 2))
            strides.append(torch.full((len(centres[-1]), 1), float(stride)))
        self.register_buffer("centres", torch.cat(centres), persistent=False)
        self.register_buffer("strides", torch.cat(strides), persistent=False)
        self.register_buffer("steps", torch.arange(BINS).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        flat = torch.cat([m.flatten(2) for m in super().forward(images)], 2).transpose(1, 2)
        chances = flat[..., : 4 * BINS].reshape(-1, len(self.centres), 4, BINS).softmax(3)
        sides = (chances * self.steps).sum(3) * self.strides
        boxes = torch.cat((self.centres - sides[..., :2], self.centres + sides[..., 2:]), 2)
        score, pair = flat[..., 4 * BINS :].sigmoid().flatten(1).topk(self.most, 1)
        row, label = (pair // CLASSES).unsqueeze(2), (pair % CLASSES).unsqueeze(2)
        return torch.cat((boxes.gather(1, row.expand(-1, -1, 4)), score.unsqueeze(2), label.float()), 2)


def yolov3() -> nn.Module:
    return Anchors(gain=1.0)


def yolov5() -> nn.Module:
    return Anchors(gain=1.5)


def yolox() -> nn.Module:
    return Decoupled(4, 1 + CLASSES)


def yolov8() -> nn.Module:
    return Decoupled(4 * BINS, CLASSES)


def end_to_end() -> nn.Module:
    return EndToEnd(256)
