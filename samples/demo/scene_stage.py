"""Where the demo's pictures are put together: places, things set into them, light and camera."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_sprites import U8, Reals, Sprite
from scene_textures import sensor_noise, surface_bank

SOLID = 70
"""Alpha (0..255) from which a pixel counts as the object's; a drone's turning rotors lie above it."""

VISIBLE = 0.75
"""The share of an object that must stay in view: nothing half hidden goes without its box."""


@dataclass
class Stage:
    """A picture in the making.

    ``image`` is BGR uint8 (H, W, 3); ``owner`` int16 (H, W) holds 1 + the index of the object
    in view at a pixel, 0 elsewhere; ``areas`` has every object's full area in square pixels.
    """

    image: U8
    owner: NDArray[np.int16]
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Pose:
    """Where a sprite goes: centre and size in pixels, angle in radians, ``aspect`` widens it."""

    x: float
    y: float
    side: float
    angle: float = 0.0
    aspect: float = 1.0
    mirror: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)


def _warp(sprite: Sprite, pose: Pose) -> tuple[U8, int, int]:
    """The posed sprite, premultiplied BGRA uint8 (h, w, 4), and its left and top in the picture."""
    scale = pose.side / max(sprite.shape)
    level = min(len(sprite.levels) - 1, max(0, math.floor(-math.log2(max(scale, 1e-3)))))
    pixels = sprite.levels[level]
    h, w = pixels.shape[:2]
    sx = scale * sprite.shape[1] / w * pose.aspect * (-1 if pose.mirror else 1)
    sy = scale * sprite.shape[0] / h / pose.aspect
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    turn = np.array(((cos * sx, -sin * sy), (sin * sx, cos * sy)))
    half = np.abs(turn) @ np.array((w / 2, h / 2)) + 1.5
    left, top = math.floor(pose.x - half[0]), math.floor(pose.y - half[1])
    out = (math.ceil(2 * half[0]) + 1, math.ceil(2 * half[1]) + 1)
    shift = np.array((pose.x - left, pose.y - top)) - turn @ np.array((w / 2, h / 2))
    matrix = np.hstack([turn, shift[:, None]])
    return cv2.warpAffine(pixels, matrix, out, flags=cv2.INTER_LINEAR).astype(np.uint8), left, top


def place(stage: Stage, sprite: Sprite, pose: Pose, label: int | None = None, shadow: float = 0.0) -> bool:
    """Draw a sprite, an object's with its ``label``; False where it would hide too much or be cut off.

    ``shadow`` (0..1) darkens the ground at its foot.
    """
    patch, left, top = _warp(sprite, pose)
    height, width = stage.owner.shape
    solid_full = patch[..., 3] > SOLID
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + patch.shape[1], width), min(top + patch.shape[0], height)
    if x1 - x0 < 4 or y1 - y0 < 4:
        return False
    patch = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    solid = patch[..., 3] > SOLID
    area, total = int(solid.sum()), int(solid_full.sum())
    if area < 20 or (label is not None and area < 0.6 * total):
        return False
    region = stage.owner[y0:y1, x0:x1]
    for index in np.unique(region[solid]):
        if index == 0:
            continue
        hidden = int((solid & (region == index)).sum())
        if int((stage.owner == index).sum()) - hidden < VISIBLE * stage.areas[index - 1]:
            return False
    if shadow > 0:
        foot = top + solid_full.shape[0] - 2 - pose.side * 0.04
        drop_shadow(stage.image, pose.x, foot, solid_full.shape[1] * 1.3, shadow)
    under = stage.image[y0:y1, x0:x1]
    lit = patch[..., :3] * np.array(pose.gain, np.float32)
    cover = 1 - patch[..., 3:].astype(np.float32) / 255
    stage.image[y0:y1, x0:x1] = np.minimum(lit + under * cover, 255).astype(np.uint8)
    region[solid] = 0
    if label is None:
        return True
    rows, cols = np.where(solid.any(1))[0], np.where(solid.any(0))[0]
    stage.boxes.append((x0 + cols[0], y0 + rows[0], x0 + cols[-1] + 1.0, y0 + rows[-1] + 1.0))
    stage.labels.append(label)
    stage.areas.append(area)
    region[solid] = len(stage.labels)
    return True


def drop_shadow(image: U8, x: float, y: float, width: float, depth: float) -> None:
    """Darken the ground around (x, y) as an object ``width`` pixels wide does, ``depth`` 0..1."""
    w, h = max(4, round(width)), max(3, round(width * 0.3))
    x0, y0 = round(x - w / 2), round(y - h / 2)
    cx0, cy0 = max(x0, 0), max(y0, 0)
    cx1, cy1 = min(x0 + w, image.shape[1]), min(y0 + h, image.shape[0])
    if cx1 <= cx0 or cy1 <= cy0:
        return
    gx = ((np.arange(cx0, cx1) - x) / (w / 2))[None, :]
    gy = ((np.arange(cy0, cy1) - y) / (h / 2))[:, None]
    keep = 1 - depth * np.clip(1 - gx * gx - gy * gy, 0, 1)
    image[cy0:cy1, cx0:cx1] = (image[cy0:cy1, cx0:cx1] * keep[..., None]).astype(np.uint8)


def _cut(rng: np.random.Generator, surface: U8, size: tuple[int, int], zoom: float) -> U8:
    """A random part of a surface that shows ``zoom`` times ``size`` (height, width), mirrored at times."""
    h = min(surface.shape[0], max(8, round(size[0] * zoom)))
    w = min(surface.shape[1], max(8, round(size[1] * zoom)))
    y = int(rng.integers(0, surface.shape[0] - h + 1))
    x = int(rng.integers(0, surface.shape[1] - w + 1))
    part = surface[y : y + h, x : x + w]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return cv2.resize(np.ascontiguousarray(part), (size[1], size[0])).astype(np.uint8)


def backdrop(rng: np.random.Generator, size: tuple[int, int]) -> tuple[U8, int]:
    """An empty place, BGR uint8 of ``size`` (height, width), and the row where its floor starts."""
    floors, walls, planes = surface_bank()
    height, width = size
    if rng.random() < 0.15:
        return _cut(rng, planes[int(rng.integers(len(planes)))], size, rng.uniform(0.8, 1.8)), 0
    horizon = round(height * rng.uniform(0.18, 0.55))
    floor = floors[int(rng.integers(len(floors)))]
    wall = walls[int(rng.integers(len(walls)))]
    image = np.empty((height, width, 3), np.uint8)
    # Walls end at their foot and floors start at their far edge: cut rows from that side only.
    high = min(wall.shape[0], round(horizon * rng.uniform(1.0, 1.7)))
    image[:horizon] = _cut(rng, wall[-high:], (horizon, width), high / horizon)
    low = round(floor.shape[0] * rng.uniform(0.6, 1.0))
    image[horizon:] = _cut(rng, floor[:low], (height - horizon, width), low / (height - horizon))
    tint = rng.uniform(0.75, 1.12, 2)[:, None] * rng.uniform(0.93, 1.07, (2, 3))
    image[:horizon] = np.clip(image[:horizon] * tint[0].astype(np.float32), 0, 255).astype(np.uint8)
    image[horizon:] = np.clip(image[horizon:] * tint[1].astype(np.float32), 0, 255).astype(np.uint8)
    cv2.line(image, (0, horizon), (width, horizon), (48, 48, 50), int(rng.integers(1, 4)))
    return image, horizon


def light_map(rng: np.random.Generator, size: tuple[int, int]) -> Reals:
    """Gain per pixel (H, W, 3): exposure, colour cast, vignette, a soft shadow and a lamp's pool."""
    small = (36, 48)
    y, x = np.mgrid[-1 : 1 : small[0] * 1j, -1 : 1 : small[1] * 1j]
    gain = float(np.exp(rng.normal(0.14, 0.28))) * (1 - rng.uniform(0, 0.4) * (x * x + y * y) / 2)
    if rng.random() < 0.4:
        angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.7)
        edge = (x * math.cos(angle) + y * math.sin(angle) - offset) * rng.uniform(4, 30)
        gain = gain * (1 - rng.uniform(0.25, 0.6) / (1 + np.exp(np.clip(edge, -30, 30))))
    if rng.random() < 0.3:
        at, wide = rng.uniform(-1, 1, 2), rng.uniform(0.2, 0.8)
        gain = gain * (1 + rng.uniform(0.2, 0.7) * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / wide))
    warm = rng.normal(0, 0.09)
    cast = np.array((1 - warm, 1 + rng.normal(0, 0.03), 1 + warm))
    field_small = (np.clip(gain, 0.3, 2.0)[..., None] * cast).astype(np.float32)
    full: Reals = cv2.resize(field_small, (size[1], size[0])).astype(np.float32)
    return full


def _blur(rng: np.random.Generator, image: U8) -> U8:
    """Motion or focus blur for about two pictures in five."""
    draw = rng.random()
    if draw < 0.2:
        length = int(rng.integers(3, 10))
        kernel = np.zeros((length, length), np.float32)
        angle, mid = rng.uniform(0, math.pi), (length - 1) / 2
        for step in np.linspace(-mid, mid, length * 2):
            kernel[round(mid + step * math.sin(angle)), round(mid + step * math.cos(angle))] = 1
        return cv2.filter2D(image, -1, kernel / kernel.sum()).astype(np.uint8)
    if draw < 0.4:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.7)).astype(np.uint8)
    return image


def camera(rng: np.random.Generator, image: U8) -> U8:
    """What a cheap camera makes of a scene (H, W, 3): light, blur, sensor noise, JPEG."""
    size = (image.shape[0], image.shape[1])
    noise = sensor_noise()
    y, x = (int(rng.integers(0, n - s)) for n, s in zip(noise.shape[:2], size, strict=True))
    grain = noise[y : y + size[0], x : x + size[1]]
    lit = cv2.multiply(_blur(rng, image), light_map(rng, size), dtype=cv2.CV_32F)
    noisy = cv2.scaleAdd(grain, float(rng.uniform(1, 8)), lit)
    shot = np.clip(noisy, 0, 255).astype(np.uint8)
    done, data = cv2.imencode(".jpg", shot, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 96))])
    if not done:
        raise RuntimeError("OpenCV could not write a JPEG.")
    back = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if back is None:
        raise RuntimeError("OpenCV could not read its own JPEG.")
    return back.astype(np.uint8)
