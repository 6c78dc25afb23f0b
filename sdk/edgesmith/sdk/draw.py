"""Boxes, masks, class maps and text onto pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_FONT = cv2.FONT_HERSHEY_SIMPLEX
COVER = 0.45  # how much of a pixel's colour a mask takes


def color_of(label: int) -> tuple[int, int, int]:
    """A BGR colour that belongs to a class index; neighbours differ clearly."""
    # Steps of the golden angle go round the hue circle without meeting themselves early.
    hue = int(label * 137.508 + 20) % 360 // 2
    pixel = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def draw_boxes(
    image: Image,
    boxes: NDArray[np.float32],
    texts: Sequence[str],
    colors: Sequence[int],
    masks: Iterable[NDArray[np.bool_]] | None = None,
) -> Image:
    """A copy of the image, BGR uint8 ``(H, W, 3)``, with tagged boxes, and what lies in their masks tinted.

    ``boxes`` is ``(n, 4)`` xyxy in image pixels; ``colors`` are numbers for :func:`color_of`; ``masks`` are
    bool ``(H, W)``. The first box lies on top.
    """
    canvas = image.copy()
    scale, thickness = _text_size(image)
    for mask, number in zip(masks, colors, strict=True) if masks is not None else ():
        _tint(canvas, mask, color_of(number))
    for box, text, number in reversed(list(zip(boxes.tolist(), texts, colors, strict=True))):
        color = color_of(number)
        x1, y1, x2, y2 = (round(v) for v in box)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 2 * thickness, cv2.LINE_AA)
        _tag(canvas, text, (x1, y1), color, scale, thickness)
    return canvas


def draw_classes(image: Image, class_map: NDArray[np.integer], shown: Iterable[int]) -> Image:
    """A copy of the image, BGR uint8 ``(H, W, 3)``, tinted where the map ``(h, w)`` has a class of ``shown``.

    A map of another size is enlarged or shrunk without new values.
    """
    canvas = image.copy()
    if class_map.shape != image.shape[:2]:
        size = image.shape[1], image.shape[0]
        class_map = np.asarray(cv2.resize(class_map, size, interpolation=cv2.INTER_NEAREST))
    for label in shown:
        _tint(canvas, class_map == label, color_of(label))
    return canvas


def draw_lines(image: Image, texts: Sequence[str], colors: Sequence[int]) -> Image:
    """A copy of the image, BGR uint8 ``(H, W, 3)``, with lines of text in its upper left corner."""
    canvas = image.copy()
    scale, thickness = _text_size(image)
    y = 4
    for text, number in zip(texts, colors, strict=True):
        y = _tag(canvas, text, (4, y), color_of(number), scale, thickness, below=True) + 4
    return canvas


def _tint(canvas: Image, where: NDArray[np.bool_], color: tuple[int, int, int]) -> None:
    """Mix a colour into the pixels of a mask ``(H, W)``, in place."""
    pixels = canvas[where]
    canvas[where] = np.rint((1 - COVER) * pixels + COVER * np.array(color, np.float32)).astype(np.uint8)


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
