"""The demo's own preprocess, decoding and average precision, for its training alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesmith.sdk.cameras import read_image
from scene_sprites import U8
from train_loss import Grid, decode_boxes, flatten, overlaps

SCORE, OVERLAP, MOST = 0.001, 0.65, 100
"""Score threshold, IoU of the class-aware suppression, detections kept per picture."""

PAD = 114

Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def letterbox(image: U8, size: int) -> tuple[U8, float, int, int]:
    """Fit a BGR picture (H, W, 3) into an RGB square (size, size, 3).

    Returns:
        The square, the scale r, and the left and top offsets in pixels.
    """
    h, w = image.shape[:2]
    scale = min(size / h, size / w)
    new_w, new_h = round(w * scale), round(h * scale)
    left, top = (size - new_w) // 2, (size - new_h) // 2
    square = np.full((size, size, 3), PAD, np.uint8)
    resized = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    square[top : top + new_h, left : left + new_w] = resized[..., ::-1]
    return square, scale, left, top


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Class-aware suppression of (n, 4) boxes; the kept indices, best first, at most ``MOST``."""
    order = scores.argsort(descending=True)[:1000]
    shifted = boxes[order] + labels[order, None] * 1e4
    iou = overlaps(shifted[:, None], shifted[None])[0].numpy() > OVERLAP
    alive = np.ones(len(order), np.bool_)
    kept: list[int] = []
    for index in range(len(order)):
        if alive[index] and len(kept) < MOST:
            kept.append(index)
            alive &= ~iou[index]
    return order[kept]


@torch.no_grad()
def detect(model: nn.Module, image: U8, size: int) -> Found:
    """Boxes (n, 4) in the picture's pixels, scores (n,), labels (n,) of a BGR picture (H, W, 3)."""
    square, scale, left, top = letterbox(image, size)
    batch = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
    raw = flatten(model(batch))
    boxes = decode_boxes(raw, Grid.of(size))[0]
    scores, labels = (raw[0, :, 4:5].sigmoid() * raw[0, :, 5:].sigmoid()).max(-1)
    found = scores > SCORE
    boxes, scores, labels = boxes[found], scores[found], labels[found]
    keep = suppress(boxes, scores, labels)
    boxes = (boxes[keep] - torch.tensor([left, top, left, top])) / scale
    limit = torch.tensor([image.shape[1], image.shape[0]] * 2)
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    return boxes.numpy(), scores[keep].numpy(), labels[keep].numpy()


def evaluate(model: nn.Module, folder: Path, size: int) -> dict[str, float]:
    """COCO average precision on a folder that ``write_dataset`` wrote; every figure 0..1."""
    truth = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for entry in truth["images"]:
        image = read_image(folder / entry["file_name"])
        for box, score, label in zip(*detect(model, image, size), strict=True):
            x0, y0, x1, y1 = (float(v) for v in box)
            row = {"image_id": entry["id"], "category_id": int(label) + 1, "score": float(score)}
            rows.append({**row, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    if not rows:
        return {"map": 0.0, "map50": 0.0, "map75": 0.0}
    known = COCO(truth)
    judge = COCOeval_faster(known, known.loadRes(rows), iouType="bbox", print_function=lambda *_: None)
    judge.run()
    figures = {"map": 0, "map50": 1, "map75": 2, "map_small": 3, "map_medium": 4, "map_large": 5}
    return {name: round(float(judge.stats[index]), 4) for name, index in figures.items()}
