"""The demo's training targets: SimOTA assignment, box, objectness and class losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from network import STRIDES

CANDIDATES = 10
"""How many of the best overlaps decide how many cells an object gets."""

RADIUS = 2.5
"""Cells around an object's centre that may take it."""

BOX_WEIGHT = 5.0


@dataclass(frozen=True)
class Grid:
    """All cells in one row: ``corners`` and ``centers`` (A, 2) and ``strides`` (A,), in pixels."""

    corners: Tensor
    centers: Tensor
    strides: Tensor

    @staticmethod
    def of(size: int) -> Grid:
        """The cells of a square input of ``size`` pixels."""
        corners, strides = [], []
        for stride in STRIDES:
            line = torch.arange(size // stride, dtype=torch.float32)
            y, x = torch.meshgrid(line, line, indexing="ij")
            corners.append(torch.stack([x, y], -1).reshape(-1, 2) * stride)
            strides.append(torch.full((len(line) ** 2,), float(stride)))
        corner, step = torch.cat(corners), torch.cat(strides)
        return Grid(corner, corner + step[:, None] / 2, step)


def flatten(outputs: tuple[Tensor, ...]) -> Tensor:
    """Raw outputs (N, 5 + C, h, w) of all strides as one tensor (N, A, 5 + C)."""
    return torch.cat([out.flatten(2) for out in outputs], 2).transpose(1, 2)


def decode_boxes(raw: Tensor, grid: Grid) -> Tensor:
    """Raw rows (N, A, 5 + C) as boxes (N, A, 4): left, top, right, bottom in input pixels."""
    center = grid.corners + raw[..., :2] * grid.strides[:, None]
    half = raw[..., 2:4].clamp(max=6.0).exp() * grid.strides[:, None] / 2
    return torch.cat([center - half, center + half], -1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes (..., 4) whose leading shapes broadcast."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = inner.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    iou = shared / union.clamp(min=1e-6)
    hull = outer.prod(-1).clamp(min=1e-6)
    return iou, iou - (hull - union) / hull


@torch.no_grad()
def assign(raw: Tensor, boxes: Tensor, grid: Grid, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the cells that shall predict each object.

    Args:
        raw: (N, A, 5 + C) raw rows, and ``boxes`` (N, A, 4) decoded from them, in pixels.
        targets: (N, G, 4) true boxes in pixels, padded with boxes of zero size.
        labels: int64 (N, G).

    Returns:
        Which object a cell takes, int64 (N, A), and whether it takes one, bool (N, A).
    """
    present = (targets[..., 2] > targets[..., 0])[..., None]
    centers, reach = grid.centers, (grid.strides * RADIUS)[None, None]
    inside = (centers > targets[:, :, None, :2]).all(-1) & (centers < targets[:, :, None, 2:]).all(-1)
    middle = (targets[..., :2] + targets[..., 2:]) / 2
    close = (centers - middle[:, :, None]).abs().amax(-1) < reach
    allowed = (inside | close) & present
    iou, _ = overlaps(targets[:, :, None], boxes[:, None])
    log_yes = functional.logsigmoid(raw[..., 5:]) + functional.logsigmoid(raw[..., 4:5])
    log_yes = log_yes / 2
    log_no = torch.log1p(-log_yes.exp().clamp(max=1 - 1e-6))
    pick = labels[..., None].expand(-1, -1, raw.shape[1])
    yes, no = log_yes.transpose(1, 2).gather(1, pick), log_no.transpose(1, 2).gather(1, pick)
    cost = -yes - (log_no.sum(-1)[:, None] - no) - 3.0 * (iou + 1e-6).log()
    cost = cost + 1e4 * ~(inside & close) + 1e8 * ~allowed
    share = (iou * allowed).topk(CANDIDATES, -1).values.sum(-1).clamp(min=1).long()
    best, index = cost.topk(CANDIDATES, -1, largest=False)
    taken = (torch.arange(CANDIDATES) < share[..., None]) & (best < 1e7)
    matched = torch.zeros_like(allowed).scatter(2, index, taken)
    return torch.where(matched, cost, torch.inf).argmin(1), matched.any(1)


def detection_loss(outputs: tuple[Tensor, ...], grid: Grid, targets: Tensor, labels: Tensor) -> Tensor:
    """Box, objectness and class losses per assigned cell, as a vector (3,)."""
    raw = flatten(outputs)
    boxes = decode_boxes(raw, grid)
    owner, positive = assign(raw.detach(), boxes.detach(), grid, targets, labels)
    total = positive.sum().clamp(min=1)
    wanted = targets.gather(1, owner[..., None].expand(-1, -1, 4))[positive]
    iou, general = overlaps(boxes[positive], wanted)
    kinds = functional.one_hot(labels.gather(1, owner)[positive], raw.shape[-1] - 5)
    # The class target is the overlap, so that a score says how well its box fits.
    soft = kinds * iou.detach()[:, None]
    box = (1 - general).sum() * BOX_WEIGHT
    objectness = functional.binary_cross_entropy_with_logits(raw[..., 4], positive.float(), reduction="sum")
    classes = functional.binary_cross_entropy_with_logits(raw[..., 5:][positive], soft, reduction="sum")
    return torch.stack([box, objectness, classes]) / total
