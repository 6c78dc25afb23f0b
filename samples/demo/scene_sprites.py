"""Drawn objects of the demo's world: cones, crates, barrels, balls and drones with alpha.

Every sprite is lit from the upper left, so a scene that mirrors all of its sprites stays
consistent. Colours are premultiplied with alpha: scaling then leaves no dark fringe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_textures import fractal_noise, wood_grain

U8 = NDArray[np.uint8]
Reals = NDArray[np.floating[Any]]
Color = tuple[int, int, int]
"""Blue, green, red, each 0..255."""

CLASSES = ("cone", "crate", "barrel", "ball", "drone")
CANVAS = 400
"""Side of the drawing square in pixels; a sprite's largest level is half of it."""

LIGHT: tuple[float, float, float] = (-0.48, -0.58, 0.66)
BRIGHT: tuple[Color, ...] = (
    (40, 60, 210),
    (190, 90, 30),
    (60, 150, 50),
    (30, 190, 230),
    (30, 110, 235),
    (150, 60, 130),
    (170, 160, 40),
)


SHELLS: tuple[Color, ...] = ((225, 225, 225), (62, 60, 58), (60, 110, 230), (190, 120, 40), (60, 190, 220))


@dataclass(frozen=True)
class Sprite:
    """A drawn thing: ``levels[i]`` is premultiplied BGRA uint8 (h, w, 4), each half the one before."""

    levels: tuple[U8, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the largest level in pixels."""
        return self.levels[0].shape[0], self.levels[0].shape[1]


def make_sprite(color: Reals, alpha: Reals) -> Sprite:
    """Crop, halve and premultiply a drawing.

    Args:
        color: BGR (H, W, 3), 0..255.
        alpha: coverage (H, W), 0..1.
    """
    stack = np.dstack([np.clip(color, 0, 255) * alpha[..., None], alpha * 255.0]).astype(np.float32)
    ys, xs = np.where(alpha > 0.3)
    crop = stack[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    levels = []
    for step in (2, 4, 8, 16):
        size = (max(2, round(crop.shape[1] / step)), max(2, round(crop.shape[0] / step)))
        levels.append(cv2.resize(crop, size, interpolation=cv2.INTER_AREA).astype(np.uint8))
    return Sprite(tuple(levels))


def _grid() -> tuple[Reals, Reals]:
    """Pixel coordinates x (right) and y (down) of the canvas, each (CANVAS, CANVAS), -1..1."""
    line = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x.astype(np.float32), y.astype(np.float32)


def _edge(distance: Reals) -> Reals:
    """Soft coverage 0..1 of a signed distance in canvas units (positive is inside)."""
    cover: Reals = np.clip(distance * (CANVAS / 2) + 0.5, 0, 1).astype(np.float32)
    return cover


def _pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Reals:
    """One of the colours, a little changed, as float32 (3,)."""
    base = np.array(colors[int(rng.integers(len(colors)))], np.float32)
    return np.clip(base * rng.uniform(0.8, 1.15) + rng.uniform(-12, 12, 3), 8, 250).astype(np.float32)


def _mix(under: Reals, over: Reals, cover: Reals) -> Reals:
    """Blend ``over`` (3,) or (H, W, 3) onto ``under`` (H, W, 3) by ``cover`` (H, W)."""
    return (under + (over - under) * cover[..., None]).astype(np.float32)


def rotation_matrix(rng: np.random.Generator) -> Reals:
    """A random rotation, float32 (3, 3)."""
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    return q


def _football(p: Reals) -> Reals:
    """Cover (H, W) of the dark patches and seams at sphere points (H, W, 3)."""
    g = (1 + math.sqrt(5)) / 2
    corners = [(0.0, float(a), b * g) for a in (-1, 1) for b in (-1, 1)]
    corners += [(float(a), b * g, 0.0) for _, a, b in [(0, s, t) for s in (-1, 1) for t in (-1, 1)]]
    corners += [(b * g, 0.0, float(a)) for a in (-1, 1) for b in (-1, 1)]
    axes = np.array(corners, np.float32) / math.sqrt(1 + g * g)
    near = np.sort(p @ axes.T, axis=-1)
    patch = np.clip((near[..., -1] - 0.925) * 60, 0, 1)
    seam = np.clip(1 - (near[..., -1] - near[..., -2]) * 22, 0, 1) * 0.75
    cover: Reals = np.maximum(patch, seam).astype(np.float32)
    return cover


def draw_ball(rng: np.random.Generator, spin: Reals | None = None) -> Sprite:
    """A shaded ball with a pattern that is turned by ``spin`` (3, 3), random if None."""
    x, y = _grid()
    rr = x * x + y * y
    z = np.sqrt(np.clip(1 - rr, 0, 1))
    normal = np.dstack([x, y, z]).astype(np.float32)
    turn = rotation_matrix(rng)
    p = (normal @ (turn if spin is None else spin @ turn)).astype(np.float32)
    kind = int(rng.integers(4))
    first, second = _pick(rng, BRIGHT), _pick(rng, BRIGHT)
    base = np.broadcast_to(first, (*x.shape, 3)).astype(np.float32)
    white = np.full(3, 235, np.float32)
    if kind == 0:
        sector = np.floor((np.arctan2(p[..., 1], p[..., 0]) + math.pi) / (math.pi / 3)).astype(np.int64) % 6
        base = np.stack([white, first, white, second, white, _pick(rng, BRIGHT)])[sector]
        base = _mix(base, white, np.clip((np.abs(p[..., 2]) - 0.93) * 80, 0, 1))
    elif kind == 1:
        base = _mix(np.broadcast_to(white, base.shape), np.full(3, 28, np.float32), _football(p))
    elif kind == 2:
        lines = np.minimum(np.abs(p[..., 0]), np.abs(p[..., 1]))
        lines = np.minimum(lines, np.abs(np.hypot(p[..., 0], p[..., 2] * 0.6) - 0.62))
        leather = np.array((45, 105, 205), np.float32) * rng.uniform(0.8, 1.1)
        base = np.broadcast_to(leather.astype(np.float32), base.shape)
        base = _mix(base, np.full(3, 25, np.float32), np.clip(1.6 - lines * 42, 0, 1))
    else:
        base = _mix(base, white, np.clip((0.3 - np.abs(p[..., 2])) * 60, 0, 1))
        base = _mix(base, second, np.clip((np.abs(p[..., 2]) - 0.8) * 60, 0, 1))
    lit = normal @ np.array(LIGHT, np.float32)
    shade = 0.38 + 0.72 * np.clip(lit, 0, 1) + 0.1 * (1 - y) / 2
    gloss = 150 * np.clip(lit, 0, 1) ** 28
    return make_sprite(base * shade[..., None] + gloss[..., None], _edge(1 - np.sqrt(rr) - 0.01))


def _wood_or_paint(rng: np.random.Generator, theta: Reals, wooden: bool) -> Reals:
    """A barrel's side before its hoops, BGR (H, W, 3), for angles ``theta`` (H, W) in radians."""
    if not wooden:
        paint = (*BRIGHT, (60, 60, 65), (200, 205, 210))
        return np.broadcast_to(_pick(rng, paint), (*theta.shape, 3)).astype(np.float32)
    stave = theta / (math.pi / 9)
    tone = rng.uniform(0.82, 1.1, 32)[np.floor(stave + 9).astype(np.int64) % 32]
    gap = np.clip(1.4 - np.abs(stave - np.round(stave)) * 16, 0, 1)
    wood = np.array((62, 104, 158), np.float32) * rng.uniform(0.75, 1.1)
    side: Reals = (wood * (tone * (1 - 0.55 * gap))[..., None]).astype(np.float32)
    return side


def draw_barrel(rng: np.random.Generator) -> Sprite:
    """A steel drum, a striped plastic barrel or a wooden cask, seen from a little above."""
    x, y = _grid()
    kind = int(rng.integers(3))
    half, flat = rng.uniform(0.56, 0.7), rng.uniform(0.2, 0.34)
    ry = half * flat
    top, bottom = -0.97 + ry, 0.97 - ry
    level = np.clip((y - top) / (bottom - top), 0, 1)
    width = half + (0.13 * (1 - (2 * level - 1) ** 2) if kind == 2 else 0.0)
    across = np.clip(x / width, -1, 1)
    bow = np.sqrt(1 - across * across)
    down = (y - top - ry * bow) / (bottom - top)
    side = np.minimum(_edge(width - np.abs(x)), np.minimum(_edge(y - top), _edge(bottom + ry * bow - y)))
    theta = np.arcsin(across).astype(np.float32)
    base = _wood_or_paint(rng, theta, kind == 2)
    if kind == 1:
        white = np.full(3, 225, np.float32)
        base = _mix(base, white, _edge(0.5 * np.sin(down * 14 + rng.uniform(0, 3))))
    rib = np.zeros_like(x)
    for at in (0.04, 0.34, 0.66, 0.95) if kind != 2 else (0.1, 0.28, 0.72, 0.9):
        rib = np.maximum(rib, np.clip(1.5 - np.abs(down - at) * (34 if kind == 2 else 60), 0, 1))
    if kind == 2:
        base = _mix(base, np.full(3, 62, np.float32), rib)
    else:
        base = base * (1 - 0.35 * rib + 0.25 * np.roll(rib, -5, axis=0))[..., None]
        turn = rng.uniform(-0.5, 0.5)
        diamond = 0.26 - np.abs(theta - turn) * 0.5 - np.abs(down - 0.5)
        base = _mix(base, np.array((235, 235, 235), np.float32), _edge(diamond * (kind == 0) - 0.02))
        base = _mix(base, _pick(rng, BRIGHT), _edge(diamond * (kind == 0) - 0.09))
    shade = 0.34 + 0.74 * np.clip(across * LIGHT[0] * 1.3 + bow * 0.72, 0, 1)
    wear = 0.82 + 0.32 * fractal_noise(rng, (CANVAS, CANVAS), 5)
    color = base * (shade * wear)[..., None]
    lid = np.sqrt((x / half) ** 2 + ((y - top) / ry) ** 2)
    lid_base = np.array((70, 110, 160), np.float32) if kind == 2 else base[CANVAS // 2, CANVAS // 2] * 1.1
    lid_color = lid_base * (1.0 - 0.25 * _edge(0.9 - lid) + 0.12 * x)[..., None]
    bung = np.hypot((x - 0.5 * half) / half, (y - top) / ry)
    lid_color = _mix(lid_color, np.full(3, 45, np.float32), _edge(0.13 - bung) * (kind != 2))
    on_lid = _edge((1 - lid) * ry)
    return make_sprite(_mix(color.astype(np.float32), lid_color, on_lid), np.maximum(side, on_lid))


def draw_cone(rng: np.random.Generator) -> Sprite:
    """A traffic cone with reflective bands on a foot plate."""
    x, y = _grid()
    wide, flat = rng.uniform(0.42, 0.58), rng.uniform(0.16, 0.34)
    tip = rng.uniform(0.06, 0.11)
    top, base_y = -0.93, 0.72
    level = np.clip((y - top) / (base_y - top), 0, 1.2)
    width = tip + (wide - tip) * level
    across = np.clip(x / width, -1, 1)
    bow = np.sqrt(1 - across * across)
    down = (y - width * flat * bow - top) / (base_y - top)
    foot_line = _edge(base_y - y + width * flat * bow)
    body = np.minimum(_edge(width - np.abs(x)), np.minimum(_edge(y - top), foot_line))
    hues: tuple[Color, ...] = ((25, 95, 240), (30, 70, 225), (40, 190, 235), (60, 215, 165), (180, 90, 40))
    paint = _pick(rng, hues if rng.random() < 0.35 else hues[:2])
    base = np.broadcast_to(paint, (*x.shape, 3)).astype(np.float32)
    bands = ((0.38, 0.17),) if rng.random() < 0.4 else ((0.22, 0.12), (0.56, 0.14))
    for at, thick in bands:
        base = _mix(base, np.full(3, 232, np.float32), _edge((thick / 2 - np.abs(down - at)) * 0.8))
    shade = 0.42 + 0.7 * np.clip(across * LIGHT[0] * 1.3 + bow * 0.7, 0, 1)
    wear = 0.86 + 0.26 * fractal_noise(rng, (CANVAS, CANVAS), 5)
    hole = np.hypot(x / tip, (y - top) / (tip * flat * 1.6))
    color = _mix((base * (shade * wear)[..., None]).astype(np.float32), paint * 0.3, _edge((1 - hole) * tip))
    foot = np.full(3, 52, np.float32) if rng.random() < 0.4 else paint * 0.72
    turn = rng.uniform(0, math.pi / 2)
    corners = [turn + k * math.pi / 2 for k in range(4)]
    ring = np.array([(math.cos(a) * 0.94, math.sin(a) * 0.94 * flat + 0.74) for a in corners])
    plate, edge = np.zeros((CANVAS, CANVAS), np.uint8), np.zeros((CANVAS, CANVAS), np.uint8)
    for mask, lift in ((edge, 0.06), (plate, 0.0)):
        both = (np.vstack([ring, ring + np.array((0, lift))]) + 1) * CANVAS / 2
        cv2.fillConvexPoly(mask, cv2.convexHull(both.astype(np.int32)), 255)
    cover = plate.astype(np.float32) / 255
    under = _mix(np.broadcast_to(foot * 0.6, base.shape).astype(np.float32), foot, cover)
    dim = 1 - 0.45 * np.exp(-(((x - 0.12) / 0.6) ** 2) - ((y - 0.75) / (0.75 * flat)) ** 2)
    under = (under * dim[..., None]).astype(np.float32)
    return make_sprite(_mix(under, color, body), np.maximum(body, edge.astype(np.float32) / 255))


def _crate_face(rng: np.random.Generator, kind: int, paint: Reals) -> U8:
    """One side of a crate, BGR uint8 (128, 128, 3)."""
    grain = wood_grain(rng, 128, 128) if kind == 0 else np.ones((128, 128), np.float32)
    face: U8 = np.clip(grain[..., None] * paint, 0, 255).astype(np.uint8)
    dark = tuple(float(v) for v in paint * 0.3)
    light = tuple(float(v) for v in paint * 1.16)
    if kind == 0:
        for row in range(1, 5):
            cv2.line(face, (0, row * 128 // 5), (127, row * 128 // 5), dark, 2)
        brace = rng.integers(3)
        if brace < 2:
            ends = ((14, 112), (112, 14)) if brace else ((14, 14), (112, 112))
            cv2.line(face, *ends, dark, 24)
            cv2.line(face, *ends, light, 18)
        cv2.rectangle(face, (8, 8), (119, 119), dark, 20)
        cv2.rectangle(face, (8, 8), (119, 119), light, 15)
        for at in ((9, 9), (118, 9), (9, 118), (118, 118)):
            cv2.circle(face, at, 3, dark, -1)
        return face
    rows, cols = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    for r in range(rows):
        for c in range(cols):
            x0, y0 = 12 + c * 104 // cols, 16 + r * 100 // rows
            x1, y1 = x0 + 104 // cols - 7, y0 + 100 // rows - 8
            cv2.rectangle(face, (x0, y0), (x1, y1), dark, -1)
    cv2.rectangle(face, (0, 0), (127, 9), light, -1)
    cv2.rectangle(face, (2, 2), (125, 125), tuple(float(v) for v in paint * 0.7), 4)
    return face


def draw_crate(rng: np.random.Generator) -> Sprite:
    """A wooden or slotted plastic crate as a box in perspective, three sides in view."""
    kind = int(rng.integers(2))
    woods: tuple[Color, ...] = ((95, 145, 190), (70, 120, 170), (120, 165, 200), (60, 90, 130))
    paint = _pick(rng, woods if kind == 0 else BRIGHT)
    yaw, pitch = rng.uniform(0.12, 1.45), rng.uniform(0.12, 0.62)
    dims = np.array((1.0, rng.uniform(0.6, 1.05), rng.uniform(0.75, 1.3)))
    corners = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64) * dims
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    px = cy * corners[:, 0] + sy * corners[:, 2]
    pz = -sy * corners[:, 0] + cy * corners[:, 2]
    py = cp * corners[:, 1] + sp * pz
    depth = 7.0 - (cp * pz - sp * corners[:, 1])
    flat = np.stack([px / depth, py / depth], 1)
    flat -= (flat.max(0) + flat.min(0)) / 2
    points = (flat / np.abs(flat).max() * 0.97 + 1) * CANVAS / 2
    # Corner index bits: 4 = right (x), 2 = low (y), 1 = near (z).
    sides = (((1, 5, 7, 3), 0.92 - 0.3 * sy), ((0, 1, 3, 2), 0.66 + 0.3 * cy), ((0, 4, 5, 1), 1.12))
    color = np.zeros((CANVAS, CANVAS, 3), np.float32)
    alpha = np.zeros((CANVAS, CANVAS), np.float32)
    source = np.array(((0, 0), (128, 0), (128, 128), (0, 128)), np.float32)
    for index, (order, gain) in enumerate(sides):
        face = _crate_face(rng, kind, paint)
        if index == 2 and kind == 1:
            cv2.rectangle(face, (10, 10), (117, 117), tuple(float(v) for v in paint * 0.22), -1)
        matrix = cv2.getPerspectiveTransform(source, points[list(order)].astype(np.float32))
        warped = cv2.warpPerspective(face, matrix, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR)
        mask = np.zeros((CANVAS, CANVAS), np.uint8)
        cv2.fillConvexPoly(mask, points[list(order)].astype(np.int32), 255)
        cover = (mask > 0).astype(np.float32)
        color = _mix(color, warped.astype(np.float32) * np.float32(gain), cover)
        alpha = np.maximum(alpha, cover)
    wear = 0.86 + 0.24 * fractal_noise(rng, (CANVAS, CANVAS), 5)
    return make_sprite((color * wear[..., None]).astype(np.float32), alpha)


def _drone_rotors(frame: U8, rng: np.random.Generator, tilt: float, shell: Color) -> Reals:
    """Draw arms and motors onto ``frame`` (BGRA) and return the rotor discs' coverage (S, S), 0..1."""
    mid = CANVAS // 2
    arms = 6 if rng.random() < 0.25 else 4
    reach, disc = (0.62, 0.26) if arms == 6 else (0.6, 0.36)
    yaw = rng.uniform(0, math.pi)
    spin = np.zeros((CANVAS, CANVAS), np.uint8)
    axes = (round(disc * mid), max(5, round(disc * mid * tilt)))
    rise = round(0.13 * mid * (1 - tilt * 0.5))
    for angle in sorted((yaw + k * 2 * math.pi / arms for k in range(arms)), key=math.sin):
        tip_x = round(mid + reach * mid * math.cos(angle))
        tip_y = round(mid + reach * mid * math.sin(angle) * tilt)
        cv2.line(frame, (mid, mid), (tip_x, tip_y), _solid(shell, 0.4), 22)
        cv2.line(frame, (mid, mid - 4), (tip_x, tip_y - 4), _solid(shell), 13)
        cv2.line(frame, (tip_x, tip_y + 8), (tip_x, tip_y - rise), (48, 45, 45, 255), 20)
        hub = (tip_x, tip_y - rise)
        cv2.ellipse(spin, hub, axes, 0, 0, 360, 84, -1)
        cv2.ellipse(spin, hub, axes, 0, 0, 360, 150, 4)
        blade = rng.uniform(0, math.pi)
        dx, dy = round(axes[0] * math.cos(blade)), round(axes[1] * math.sin(blade))
        cv2.line(spin, (hub[0] - dx, hub[1] - dy), (hub[0] + dx, hub[1] + dy), 215, 9)
    return spin.astype(np.float32) / 255


def _solid(color: Color, gain: float = 1.0, lift: float = 0.0) -> tuple[float, float, float, float]:
    """An opaque BGRA colour for OpenCV."""
    b, g, r = (min(255.0, v * gain + lift) for v in color)
    return b, g, r, 255.0


def draw_drone(rng: np.random.Generator) -> Sprite:
    """A multicopter in flight with half-clear turning rotors."""
    mid = CANVAS // 2
    frame = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    shell = SHELLS[int(rng.integers(len(SHELLS)))]
    tilt = math.sin(rng.uniform(0.16, 0.95))
    drop = round(0.34 * mid * (1 - tilt * 0.5))
    for side in (-1, 1):
        foot = [(mid + side * mid // 5, mid + drop + round(0.22 * mid * s * tilt)) for s in (-1, 1)]
        cv2.line(frame, foot[0], foot[1], (52, 50, 50, 255), 9)
        for end in foot:
            cv2.line(frame, (mid + side * mid // 8, mid), end, (62, 60, 60, 255), 8)
    spin = _drone_rotors(frame, rng, tilt, shell)
    wide, tall = round(0.25 * mid), max(24, round(0.25 * mid * (0.35 + 0.65 * tilt)))
    cv2.ellipse(frame, (mid, mid + 5), (wide, tall), 0, 0, 360, _solid(shell, 0.45), -1)
    cv2.ellipse(frame, (mid, mid - 7), (wide, tall), 0, 0, 360, _solid(shell), -1)
    cv2.ellipse(frame, (mid, mid - 16), (wide * 6 // 10, tall // 2), 0, 0, 360, _solid(shell, 1.15, 18), -1)
    eye = (mid, mid + tall // 2 + 12)
    cv2.circle(frame, eye, 21, (40, 40, 40, 255), -1)
    cv2.circle(frame, eye, 11, (160, 120, 80, 255), -1)
    cv2.circle(frame, (mid - wide * 8 // 10, mid), 9, (60, 60, 250, 255), -1)
    cv2.circle(frame, (mid + wide * 8 // 10, mid), 9, (90, 240, 90, 255), -1)
    x, y = _grid()
    solid = frame[..., 3].astype(np.float32) / 255
    color = frame[..., :3].astype(np.float32) * (0.95 - 0.16 * x - 0.2 * y)[..., None]
    blur = np.full((CANVAS, CANVAS, 3), 48, np.float32)
    return make_sprite(_mix(blur, color.astype(np.float32), solid), np.maximum(solid, spin))


DRAW = {"cone": draw_cone, "crate": draw_crate, "barrel": draw_barrel, "ball": draw_ball, "drone": draw_drone}


@lru_cache(maxsize=2)
def object_bank(variants: int = 16, seed: int = 11) -> tuple[tuple[Sprite, ...], ...]:
    """The sprites of every class, ``bank[label][variant]``; the same for the same arguments."""
    bank = []
    for label, name in enumerate(CLASSES):
        rng = np.random.default_rng((seed, label))
        bank.append(tuple(DRAW[name](rng) for _ in range(variants)))
    return tuple(bank)
