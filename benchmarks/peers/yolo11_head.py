"""The decode of yolo11n's output, for a recipe's ``model.head = "yolo11_head:decode"``."""

from __future__ import annotations

import torch
from torch import Tensor


def decode(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (N, K, 4) xyxy and scores (N, K, C) of (N, 4 + C, K): centre, size, a score a class."""
    rows = outputs.transpose(1, 2)
    centre, size, scores = rows[..., :2], rows[..., 2:4], rows[..., 4:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=2), scores
