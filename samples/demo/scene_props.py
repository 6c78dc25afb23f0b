"""Things in the demo's world that are not objects of any class: signs, tyres, bushes, poles and more.

They share colours, outlines and shading with the real classes, so that neither alone decides.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from scene_sprites import BRIGHT, CANVAS, Reals, Sprite, make_sprite
from scene_textures import U8, fractal_noise, wood_grain

Paint = tuple[float, float, float, float]


def _paint(rng: np.random.Generator) -> Paint:
    """A random opaque BGRA colour for OpenCV."""
    base = BRIGHT[int(rng.integers(len(BRIGHT)))]
    b, g, r = (float(np.clip(v * rng.uniform(0.6, 1.1), 10, 245)) for v in base)
    return b, g, r, 255.0


def _darker(paint: Paint, gain: float) -> Paint:
    return paint[0] * gain, paint[1] * gain, paint[2] * gain, 255.0


def _round_sign(image: U8, rng: np.random.Generator) -> None:
    cv2.rectangle(image, (193, 200), (207, 390), (120, 122, 124, 255), -1)
    cv2.circle(image, (200, 130), 118, _paint(rng), -1)
    cv2.circle(image, (200, 130), 88, (232, 232, 232, 255), -1)
    mark = _paint(rng) if rng.random() < 0.5 else (40.0, 40.0, 40.0, 255.0)
    if rng.random() < 0.5:
        cv2.rectangle(image, (140, 116), (260, 144), mark, -1)
    else:
        cv2.line(image, (150, 180), (250, 80), mark, 22)


def _warning_sign(image: U8, rng: np.random.Generator) -> None:
    frame = ((40.0, 40.0, 200.0, 255.0), (50.0, 190.0, 230.0, 255.0), (40.0, 100.0, 230.0, 255.0))
    outer = frame[int(rng.integers(3))]
    cv2.fillConvexPoly(image, np.array(((200, 20), (385, 340), (15, 340))), outer)
    cv2.fillConvexPoly(image, np.array(((200, 80), (330, 310), (70, 310))), (225, 230, 232, 255))
    cv2.line(image, (200, 150), (200, 240), (35, 35, 35, 255), 24)
    cv2.circle(image, (200, 280), 15, (35, 35, 35, 255), -1)


def _tyre(image: U8, rng: np.random.Generator) -> None:
    squeeze = int(rng.integers(120, 190))
    cv2.ellipse(image, (200, 200), (190, squeeze), 0, 0, 360, (44, 42, 42, 255), -1)
    cv2.ellipse(image, (200, 200), (175, squeeze - 12), 0, 0, 360, (66, 64, 64, 255), 7)
    rim = _paint(rng) if rng.random() < 0.3 else (150.0, 152.0, 155.0, 255.0)
    cv2.ellipse(image, (200, 200), (105, squeeze * 105 // 190), 0, 0, 360, rim, -1)
    for k in range(5):
        angle = k * 2 * math.pi / 5
        at = (round(200 + 62 * math.cos(angle)), round(200 + 62 * math.sin(angle) * squeeze / 190))
        cv2.circle(image, at, 17, (60, 60, 62, 255), -1)


def _bush(image: U8, rng: np.random.Generator) -> None:
    cv2.fillConvexPoly(image, np.array(((120, 270), (280, 270), (255, 390), (145, 390))), _paint(rng))
    for _ in range(90):
        x, y = (int(v) for v in rng.normal((200, 150), (70, 55)))
        tone = float(rng.uniform(0.45, 1.2))
        leaf = (55 * tone, 130 * tone, 75 * tone, 255)
        cv2.ellipse(image, (x, y), (30, 13), float(rng.uniform(0, 180)), 0, 360, leaf, -1)


def _poster(image: U8, rng: np.random.Generator) -> None:
    paint = _paint(rng)
    cv2.rectangle(image, (60, 20), (340, 380), paint, -1)
    cv2.rectangle(image, (60, 20), (340, 380), _darker(paint, 0.5), 10)
    cv2.rectangle(image, (90, 55), (310, 200), _paint(rng), -1)
    if rng.random() < 0.5:
        cv2.circle(image, (200, 128), 55, _paint(rng), -1)
    for row in range(235, 350, 28):
        cv2.line(image, (95, row), (int(rng.integers(180, 310)), row), (235, 235, 235, 255), 10)


def _striped_pole(image: U8, rng: np.random.Generator) -> None:
    paint = _paint(rng)
    wide = int(rng.integers(14, 40))
    for k, row in enumerate(range(10, 380, 46)):
        color = paint if k % 2 else (230.0, 230.0, 230.0, 255.0)
        cv2.rectangle(image, (200 - wide, row), (200 + wide, row + 46), color, -1)


def _barrier(image: U8, rng: np.random.Generator) -> None:
    paint = _paint(rng)
    for x in (50, 340):
        cv2.rectangle(image, (x, 120), (x + 16, 330), (90, 92, 96, 255), -1)
    for row in (120, 210):
        cv2.rectangle(image, (10, row), (390, row + 56), (232, 232, 232, 255), -1)
        for x in range(20, 350, 80):
            bar = np.array(((x, row + 56), (x + 36, row + 56), (x + 66, row), (x + 30, row)))
            cv2.fillConvexPoly(image, bar, paint)


def _extinguisher(image: U8, rng: np.random.Generator) -> None:
    paint = (35.0, 35.0, 200.0, 255.0) if rng.random() < 0.7 else _paint(rng)
    cv2.ellipse(image, (200, 130), (62, 50), 0, 0, 360, paint, -1)
    cv2.rectangle(image, (138, 130), (262, 385), paint, -1)
    cv2.rectangle(image, (150, 190), (250, 280), (225, 225, 225, 255), -1)
    cv2.rectangle(image, (182, 45), (218, 90), (50, 50, 52, 255), -1)
    cv2.ellipse(image, (250, 120), (52, 80), 0, 180, 400, (40, 40, 42, 255), 12)


def _pallet(image: U8, rng: np.random.Generator) -> None:
    tone = float(rng.uniform(0.7, 1.1))
    wood = (90 * tone, 138 * tone, 178 * tone, 255.0)
    for row in (130, 240):
        cv2.rectangle(image, (10, row), (390, row + 26), wood, -1)
        for x in (10, 165, 320):
            cv2.rectangle(image, (x, row + 26), (x + 70, row + 70), _darker(wood, 0.62), -1)
        cv2.rectangle(image, (10, row + 70), (390, row + 90), _darker(wood, 0.85), -1)


def _carton(image: U8, rng: np.random.Generator) -> None:
    tone = float(rng.uniform(0.7, 1.15))
    board = (112 * tone, 158 * tone, 196 * tone, 255.0)
    top = int(rng.integers(60, 160))
    cv2.rectangle(image, (20, top), (380, 385), board, -1)
    cv2.rectangle(image, (180, top), (220, 385), _darker(board, 1.16), -1)
    cv2.rectangle(image, (250, 300), (350, 360), (235, 235, 235, 255), -1)
    for row in range(312, 356, 12):
        cv2.line(image, (258, row), (int(rng.integers(290, 344)), row), (60, 60, 60, 255), 4)


def _fan(image: U8, rng: np.random.Generator) -> None:
    cv2.rectangle(image, (190, 200), (210, 380), (110, 112, 116, 255), -1)
    cv2.ellipse(image, (200, 380), (80, 16), 0, 0, 360, (80, 82, 84, 255), -1)
    turn = float(rng.uniform(0, 90))
    paint = _paint(rng)
    for k in range(4):
        angle = math.radians(turn + k * 90)
        at = (round(200 + 78 * math.cos(angle)), round(150 + 78 * math.sin(angle)))
        cv2.ellipse(image, at, (70, 28), turn + k * 90, 0, 360, paint, -1)
    cv2.circle(image, (200, 150), 30, (60, 62, 64, 255), -1)
    cv2.circle(image, (200, 150), 145, (70, 72, 74, 255), 6)


PAINTERS = (
    _round_sign,
    _warning_sign,
    _tyre,
    _bush,
    _poster,
    _striped_pole,
    _barrier,
    _extinguisher,
    _pallet,
    _carton,
    _fan,
)


def draw_prop(rng: np.random.Generator, kind: int) -> Sprite:
    """One drawn prop with light from the left and some wear."""
    image = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    PAINTERS[kind](image, rng)
    across = np.linspace(1.12, 0.72, CANVAS, dtype=np.float32)[None, :]
    wear: Reals = 0.82 + 0.3 * fractal_noise(rng, (CANVAS, CANVAS), 6)
    if PAINTERS[kind] in (_pallet, _carton):
        wear = wear * wood_grain(rng, CANVAS, CANVAS)
    color = image[..., :3].astype(np.float32) * (wear * across)[..., None]
    return make_sprite(color, image[..., 3].astype(np.float32) / 255)


@lru_cache(maxsize=1)
def prop_bank(variants: int = 5) -> tuple[Sprite, ...]:
    """All props, ``variants`` of each kind, the same every time."""
    rng = np.random.default_rng(17)
    return tuple(draw_prop(rng, kind) for kind in range(len(PAINTERS)) for _ in range(variants))
