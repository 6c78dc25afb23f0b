"""Surfaces of the demo's world: noise, floors in perspective, walls and yards, drawn once."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Reals = NDArray[np.floating[Any]]

WIDTH, FLOOR_HEIGHT, WALL_HEIGHT = 1280, 420, 420
"""Pixels of the drawn floors and walls; scenes cut their part out of them."""

PLANE = 1024


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], octaves: int, base: int = 4) -> Reals:
    """Cloud-like noise of ``shape`` (H, W), 0..1, finer with more ``octaves``."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        cells = base * 2**octave
        grid = rng.random((cells, cells), dtype=np.float32)
        total += cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    low, high = float(total.min()), float(total.max())
    return ((total - low) / (high - low)).astype(np.float32)


def wood_grain(rng: np.random.Generator, height: int, width: int) -> Reals:
    """Brightness factor (H, W) of boards that run across, about 0.75..1.15."""
    streaks = cv2.resize(rng.random((height // 2, 6), dtype=np.float32), (width, height))
    return (0.75 + 0.25 * streaks + 0.15 * fractal_noise(rng, (height, width), 3)).astype(np.float32)


def _tint(brightness: Reals, color: tuple[int, int, int]) -> U8:
    """BGR uint8 (H, W, 3) of a brightness factor (H, W) and a colour."""
    return np.clip(brightness[..., None] * np.array(color, np.float32), 0, 255).astype(np.uint8)


def _speckle(rng: np.random.Generator, strength: float) -> Reals:
    """A rough ground (PLANE, PLANE) around 1."""
    fine = rng.normal(0, strength, (PLANE, PLANE)).astype(np.float32)
    fine = cv2.GaussianBlur(fine, (0, 0), 1.2).astype(np.float32) * 2
    return (0.72 + 0.5 * fractal_noise(rng, (PLANE, PLANE), 6) + fine).astype(np.float32)


def _cracks(rng: np.random.Generator, image: U8, count: int) -> None:
    """Draw ``count`` random dark cracks into ``image``."""
    for _ in range(count):
        steps = np.cumsum(rng.normal(0, 16, (14, 2)) + rng.normal(0, 14, 2), axis=0)
        points = (steps + rng.uniform(0, PLANE, 2)).astype(np.int32)
        cv2.polylines(image, [points], False, (48, 50, 52), int(rng.integers(1, 3)), cv2.LINE_AA)


def floor_plane(rng: np.random.Generator, kind: int) -> U8:
    """A ground seen from straight above, BGR uint8 (PLANE, PLANE, 3)."""
    grey = int(rng.integers(95, 185))
    if kind == 0:
        image = _tint(_speckle(rng, 0.04), (grey, grey, grey + 4))
        _cracks(rng, image, 9)
    elif kind == 1:
        image = _tint(_speckle(rng, 0.03), (grey - 10, grey + 2, grey + 12))
        step = int(rng.choice([64, 96, 128]))
        for row in range(0, PLANE, step):
            for col in range(0, PLANE, step):
                gain = rng.uniform(0.84, 1.1) if (row + col) // step % 2 else rng.uniform(0.68, 0.95)
                cell = image[row : row + step, col : col + step]
                cell[:] = np.clip(cell * gain, 0, 255).astype(np.uint8)
            cv2.line(image, (0, row), (PLANE, row), (60, 64, 68), 4)
            cv2.line(image, (row, 0), (row, PLANE), (60, 64, 68), 4)
    elif kind == 2:
        image = _tint(_speckle(rng, 0.16), (78, 78, 80))
        _cracks(rng, image, 5)
    elif kind == 3:
        image = _tint(_speckle(rng, 0.2), (52, 118, 88))
        for _ in range(1500):
            x, y = (int(v) for v in rng.integers(0, PLANE, 2))
            tone = float(rng.uniform(0.5, 1.3))
            tip = (x + int(rng.integers(-8, 9)), y - 14)
            cv2.line(image, (x, y), tip, (40 * tone, 130 * tone, 84 * tone), 2)
    elif kind == 4:
        image = _tint(_speckle(rng, 0.14), (100, 128, 150))
        for _ in range(900):
            x, y = (int(v) for v in rng.integers(0, PLANE, 2))
            tone = float(rng.uniform(70, 190))
            paint = (tone * 0.9, tone, tone * 1.05)
            cv2.circle(image, (x, y), int(rng.integers(2, 6)), paint, -1, cv2.LINE_AA)
    else:
        image = _tint(np.vstack([wood_grain(rng, 64, PLANE) for _ in range(PLANE // 64)]), (84, 128, 170))
        for row in range(0, PLANE, 64):
            cv2.line(image, (0, row), (PLANE, row), (40, 60, 80), 4)
            cut = int(rng.integers(0, PLANE))
            cv2.line(image, (cut, row), (cut, row + 64), (40, 60, 80), 4)
    if kind in (0, 1, 2):
        _road_marks(rng, image)
    return image


def _road_marks(rng: np.random.Generator, image: U8) -> None:
    """Worn lane lines and hazard strips painted on the ground."""
    paints = ((50, 190, 225), (215, 215, 215), (60, 80, 200), (190, 130, 60))
    for _ in range(int(rng.integers(1, 4))):
        paint = paints[int(rng.integers(len(paints)))]
        at, thick = int(rng.integers(60, PLANE - 60)), int(rng.integers(12, 30))
        layer = image.copy()
        if rng.random() < 0.5:
            cv2.line(layer, (at, 0), (at + int(rng.integers(-90, 90)), PLANE), paint, thick)
        else:
            cv2.line(layer, (0, at), (PLANE, at), paint, thick)
            for x in range(0, PLANE, 80 if rng.random() < 0.4 else PLANE * 2):
                cv2.line(layer, (x, at + thick // 2), (x + 30, at - thick // 2), (40, 40, 40), 16)
        worn = (0.55 + 0.45 * fractal_noise(rng, (PLANE, PLANE), 6, 8))[..., None]
        image[:] = (image + (layer.astype(np.float32) - image) * worn).astype(np.uint8)


def _in_perspective(plane: U8) -> U8:
    """Lay a ground down as a floor (FLOOR_HEIGHT, WIDTH, 3) whose far edge is its top row."""
    tiled = np.hstack([plane, plane[:, ::-1], plane])
    width = float(tiled.shape[1])
    source = np.array(((0, 0), (width, 0), (width, PLANE), (0, PLANE)), np.float32)
    spread = WIDTH * 1.1
    target = np.array(
        ((-40, 0), (WIDTH + 40, 0), (WIDTH + spread, FLOOR_HEIGHT), (-spread, FLOOR_HEIGHT)), np.float32
    )
    matrix = cv2.getPerspectiveTransform(source, target)
    # Drawn at twice the size and halved: the far rows would shimmer with alias otherwise.
    double = np.diag([2.0, 2.0, 1.0]) @ matrix
    large = cv2.warpPerspective(tiled, double, (WIDTH * 2, FLOOR_HEIGHT * 2), flags=cv2.INTER_LINEAR)
    return cv2.resize(large, (WIDTH, FLOOR_HEIGHT), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _bricks(rng: np.random.Generator) -> U8:
    tone = (int(rng.integers(70, 120)), int(rng.integers(90, 130)), int(rng.integers(140, 180)))
    image = np.full((WALL_HEIGHT, WIDTH, 3), 150, np.uint8)
    high, wide = int(rng.integers(18, 34)), int(rng.integers(44, 90))
    for index, row in enumerate(range(0, WALL_HEIGHT, high)):
        for col in range(-wide, WIDTH, wide):
            x, gain = col + (index % 2) * wide // 2, rng.uniform(0.72, 1.12)
            paint = tuple(float(min(255.0, v * gain)) for v in tone)
            cv2.rectangle(image, (x + 2, row + 2), (x + wide - 2, row + high - 2), paint, -1)
    return image


def _panels(rng: np.random.Generator) -> U8:
    step = int(rng.integers(14, 40))
    wave = 0.86 + 0.16 * np.sin(np.arange(WIDTH, dtype=np.float32) * (2 * math.pi / step))
    grey = int(rng.integers(110, 195))
    blue, green, red = int(rng.integers(-8, 25)), int(rng.integers(-8, 12)), -int(rng.integers(0, 25))
    color = (grey + blue, grey + green, grey + red)
    image = _tint(np.broadcast_to(wave.astype(np.float32), (WALL_HEIGHT, WIDTH)), color)
    for x in range(0, WIDTH, step * 9):
        cv2.rectangle(image, (x, 0), (x + 8, WALL_HEIGHT), tuple(v * 0.55 for v in color), -1)
    return image


def _plaster(rng: np.random.Generator) -> U8:
    upper = tuple(float(v) for v in rng.uniform(160, 215) + rng.uniform(-16, 16, 3))
    lower = tuple(float(v) for v in rng.uniform(80, 160) + rng.uniform(-30, 30, 3))
    image = np.zeros((WALL_HEIGHT, WIDTH, 3), np.uint8)
    split = int(WALL_HEIGHT * rng.uniform(0.45, 0.8))
    image[:split], image[split:] = upper, lower
    cv2.line(image, (0, split), (WIDTH, split), tuple(v * 0.6 for v in lower), 6)
    for _ in range(9):
        x, y = int(rng.integers(0, WIDTH)), int(rng.integers(0, split))
        w, h = (int(v) for v in rng.integers(40, 150, 2))
        glass = tuple(float(v) for v in rng.uniform(70, 210) + rng.uniform(-35, 35, 3))
        cv2.rectangle(image, (x, y), (x + w, y + h), glass, -1)
        cv2.rectangle(image, (x, y), (x + w, y + h), (70, 72, 76), 5)
        cv2.line(image, (x + w // 2, y), (x + w // 2, y + h), (70, 72, 76), 3)
    return image


def _shelves(rng: np.random.Generator) -> U8:
    image = np.full((WALL_HEIGHT, WIDTH, 3), (52, 50, 48), np.uint8)
    level = int(rng.integers(80, 130))
    beam = ((35, 105, 225), (170, 95, 40), (90, 90, 95))[int(rng.integers(3))]
    for base in range(level, WALL_HEIGHT + level, level):
        x = int(rng.integers(0, 30))
        while x < WIDTH:
            w, h = int(rng.integers(20, 90)), int(rng.integers(level // 4, level - 14))
            cardboard = np.array((105, 150, 188)) * rng.uniform(0.5, 1.1) + rng.uniform(-25, 25, 3)
            paint = tuple(float(v) for v in np.clip(cardboard, 0, 255))
            if rng.random() < 0.78:
                cv2.rectangle(image, (x, base - h), (x + w, base), paint, -1)
                cv2.rectangle(image, (x, base - h), (x + w, base), tuple(v * 0.6 for v in paint), 2)
                cv2.line(image, (x + w // 2, base - h), (x + w // 2, base), tuple(v * 0.82 for v in paint), 5)
            x += w + int(rng.integers(2, 16))
        cv2.rectangle(image, (0, base), (WIDTH, base + 9), beam, -1)
    for x in range(int(rng.integers(40, 120)), WIDTH, int(rng.integers(190, 320))):
        cv2.rectangle(image, (x, 0), (x + 11, WALL_HEIGHT), tuple(v * 0.75 for v in beam), -1)
    return image


def _yard(rng: np.random.Generator) -> U8:
    sky = np.linspace(1.0, 0.82, WALL_HEIGHT, dtype=np.float32)[:, None] * np.ones((1, WIDTH), np.float32)
    cloud = fractal_noise(rng, (WALL_HEIGHT, WIDTH), 6, 3)
    image = _tint(sky * (0.9 + 0.25 * cloud), (230, int(rng.integers(190, 215)), int(rng.integers(160, 205))))
    for _ in range(70):
        x, y = int(rng.integers(0, WIDTH)), WALL_HEIGHT - int(rng.integers(0, 110))
        tone = float(rng.uniform(0.4, 1.1))
        leaf = (50 * tone, 105 * tone, 70 * tone)
        cv2.circle(image, (x, y), int(rng.integers(14, 52)), leaf, -1, cv2.LINE_AA)
    if rng.random() < 0.6:
        top = WALL_HEIGHT - int(rng.integers(60, 150))
        for x in range(-WALL_HEIGHT, WIDTH, 13):
            cv2.line(image, (x, top), (x + WALL_HEIGHT, top + WALL_HEIGHT), (140, 142, 145), 1, cv2.LINE_AA)
            cv2.line(image, (x + WALL_HEIGHT, top), (x, top + WALL_HEIGHT), (120, 122, 125), 1, cv2.LINE_AA)
        for x in range(30, WIDTH, 170):
            cv2.rectangle(image, (x, top - 10), (x + 7, WALL_HEIGHT), (105, 108, 110), -1)
    return image


def _weathered(rng: np.random.Generator, wall: U8) -> U8:
    """Stains and a darker foot, so that no wall is one clean fill."""
    stain = 0.74 + 0.36 * fractal_noise(rng, (WALL_HEIGHT, WIDTH), 7)
    foot = 1 - 0.3 * np.linspace(0, 1, WALL_HEIGHT, dtype=np.float32)[:, None] ** 4
    return np.clip(wall * (stain * foot)[..., None], 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def surface_bank() -> tuple[tuple[U8, ...], tuple[U8, ...], tuple[U8, ...]]:
    """Floors (FLOOR_HEIGHT, WIDTH, 3), walls (WALL_HEIGHT, WIDTH, 3), grounds (PLANE, PLANE, 3)."""
    rng = np.random.default_rng(5)
    planes = tuple(floor_plane(rng, kind % 6) for kind in range(12))
    painters = (_bricks, _panels, _plaster, _shelves, _yard)
    walls = tuple(_weathered(rng, painters[index % 5](rng)) for index in range(15))
    return tuple(_in_perspective(plane) for plane in planes), walls, planes


@lru_cache(maxsize=1)
def sensor_noise() -> Reals:
    """Unit-variance noise (1024, 1024, 3), a little correlated between pixels as after demosaicing."""
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((1024, 1024, 3), dtype=np.float32)
    soft = cv2.GaussianBlur(noise, (3, 3), 0.6)
    scaled: Reals = (soft / soft.std()).astype(np.float32)
    return scaled
