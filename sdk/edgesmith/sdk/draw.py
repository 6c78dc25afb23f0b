"""Boxes and text onto pixels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def color_of(label: int) -> tuple[int, int, int]:
    """A BGR colour that belongs to a class index; neighbours differ clearly."""
    # Steps of the golden angle go round the hue circle without meeting themselves early.
    hue = int(label * 137.508 + 20) % 360 // 2
    pixel = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def draw_boxes(
    image: Image, boxes: NDArray[np.float32], texts: Sequence[str], colors: Sequence[int]
) -> Image:
    """A copy of the image, BGR uint8 ``(H, W, 3)``, with tagged boxes.

    ``boxes`` is ``(n, 4)`` xyxy in image pixels; ``colors`` are numbers for :func:`color_of`. The first box
    lies on top.
    """
    canvas = image.copy()
    scale, thickness = _text_size(image)
    for box, text, number in reversed(list(zip(boxes.tolist(), texts, colors, strict=True))):
        color = color_of(number)
        x1, y1, x2, y2 = (round(v) for v in box)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 2 * thickness, cv2.LINE_AA)
        _tag(canvas, text, (x1, y1), color, scale, thickness)
    return canvas


def draw_lines(image: Image, texts: Sequence[str], colors: Sequence[int]) -> Image:
    """A copy of the image, BGR uint8 ``(H, W, 3)``, with lines of text in its upper left corner."""
    canvas = image.copy()
    scale, thickness = _text_size(image)
    y = 4
    for text, number in zip(texts, colors, strict=True):
        y = _tag(canvas, text, (4, y), color_of(number), scale, thickness, below=True) + 4
    return canvas


def _text_size(image: Image) -> tuple[float, int]:
    shorter = min(image.shape[:2])
    return max(0.4, shorter / 900), max(1, round(shorter / 700))


def _tag(
    canvas: Image,
    text: str,
    corner: tuple[int, int],
    color: tuple[int, int, int],
    scale: float,
    thickness: int,
    *,
    below: bool = False,
) -> int:
    """A filled label at ``corner``, kept inside the picture; returns its lower edge in pixels."""
    (width, height), base = cv2.getTextSize(text, _FONT, scale, thickness)
    tall = height + base + 2
    x = max(0, min(corner[0], canvas.shape[1] - width - 4))
    y = corner[1] if below or corner[1] - tall < 0 else corner[1] - tall
    y = max(0, min(y, canvas.shape[0] - tall))
    cv2.rectangle(canvas, (x, y), (x + width + 4, y + tall), color, cv2.FILLED)
    # Dark text on light tags, light on dark: weights of ITU-R BT.601 luma.
    bright = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 130
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, text, (x + 2, y + height + 1), _FONT, scale, ink, thickness, cv2.LINE_AA)
    return int(y + tall)
