"""A generated video of the demo's world: the camera pans, objects move, the light changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from scene_props import prop_bank
from scene_sprites import CLASSES, U8, Reals, Sprite, draw_ball, object_bank
from scene_stage import Pose, Stage, backdrop, place
from scene_textures import sensor_noise

SIZE = (480, 640)
"""Height and width of a frame in pixels."""

WORLD = 1280
"""Width in pixels of the place that the camera pans over."""

SPINS = 24
"""Pictures of one turn of a rolling ball."""


SIZES = {"cone": 100, "crate": 125, "barrel": 125, "ball": 75, "drone": 120}
"""Longest side in pixels in the middle of the floor."""


@dataclass(frozen=True)
class Actor:
    """A thing on a smooth path.

    ``near`` is its mean depth, 0 (far edge of the floor) to 1; ``sway`` and ``drift`` are how far
    it goes across (pixels) and in depth; ``period`` is one round in seconds.
    """

    views: tuple[Sprite, ...]
    kind: str
    x: float
    near: float
    size: float
    sway: float
    drift: float
    period: float
    phase: float
    gain: tuple[float, float, float]

    def at(self, seconds: float, horizon: int) -> tuple[float, Sprite, Pose]:
        """Depth, sprite and pose in the world at a time."""
        turn = 2 * math.pi * seconds / self.period + self.phase
        x = self.x + self.sway * math.sin(turn)
        near = min(1.0, max(0.04, self.near + self.drift * math.sin(turn * 0.7 + 1)))
        side = self.size * (0.3 + near)
        view = self.views[0]
        angle, lift = 0.0, 0.0
        if self.kind == "ball":
            rolled = self.sway * math.sin(turn) / (math.pi * side) * SPINS
            view = self.views[round(rolled) % SPINS]
            lift = side * 0.9 * abs(math.sin(turn * 2.5)) if self.phase > math.pi else 0.0
        elif self.kind == "drone":
            lift = 110 + 70 * math.sin(turn * 1.3)
            angle = 0.24 * math.cos(turn)
        tall = side * view.shape[0] / max(view.shape)
        foot = horizon + (SIZE[0] * 0.98 - horizon) * near
        return near, view, Pose(x, foot - tall / 2 - lift, side, angle, gain=self.gain)


def _rolling_ball(seed: int) -> tuple[Sprite, ...]:
    """One ball in ``SPINS`` steps of a turn about the axis that points at the camera and up a little."""
    views = []
    for step in range(SPINS):
        angle = 2 * math.pi * step / SPINS
        cos, sin = math.cos(angle), math.sin(angle)
        spin = np.array(((cos, sin, 0), (-sin, cos, 0), (0, 0, 1)), np.float32)
        views.append(draw_ball(np.random.default_rng(seed), spin))
    return tuple(views)


def _cast(rng: np.random.Generator) -> list[Actor]:
    """The objects of a clip, spread over the world so that some are always in view."""
    bank, actors = object_bank(), []
    kinds = ["cone", "crate", "barrel", "ball", "drone"] * 3
    for index, kind in enumerate(kinds):
        variants = bank[CLASSES.index(kind)]
        views: tuple[Sprite, ...] = (variants[int(rng.integers(len(variants)))],)
        if kind == "ball":
            views = _rolling_ball(int(rng.integers(1 << 30)))
        moving = kind in ("ball", "drone")
        slide = 150 if moving else (0 if kind == "cone" else 45)
        # Fifteen places in a row; the three of a kind stand a third of the world apart.
        x = WORLD * ((index % 5 / 5 + index // 5 / 3 + rng.uniform(0.01, 0.05)) % 1.0)
        gain = rng.uniform(0.8, 1.1)
        actors.append(
            Actor(
                views,
                kind,
                x,
                float(rng.uniform(0.08, 0.95)),
                SIZES[kind] * rng.uniform(0.8, 1.2),
                slide * rng.uniform(0.6, 1.3),
                rng.uniform(0.05, 0.2) if moving else 0.0,
                rng.uniform(7, 14),
                rng.uniform(0, 2 * math.pi),
                (gain, gain, gain),
            )
        )
    return actors


def _world(rng: np.random.Generator) -> tuple[U8, int]:
    """The wide empty place with its props, BGR uint8 (H, WORLD, 3), and the row where the floor starts."""
    image, horizon = backdrop(rng, (SIZE[0], WORLD))
    while not 150 <= horizon <= 230:
        image, horizon = backdrop(rng, (SIZE[0], WORLD))
    stage, props = Stage(image, np.zeros(image.shape[:2], np.int16)), prop_bank()
    for near in sorted(rng.uniform(0, 0.6, 12)):
        side = 40 + 130 * near
        foot = horizon + (SIZE[0] - horizon) * near
        pose = Pose(rng.uniform(0, WORLD), foot - side / 2, side, rng.normal(0, 0.03))
        place(stage, props[int(rng.integers(len(props)))], pose, shadow=0.4)
    return stage.image, horizon


def _light(seconds: float) -> Reals:
    """Gain per pixel (H, W, 3) at a time: daylight that comes and goes and a passing shadow."""
    y, x = np.mgrid[-1:1:30j, -1:1:40j]
    gain = 1.32 + 0.25 * math.sin(seconds * 0.5) - 0.15 * (x * x + y * y)
    edge = np.clip((x * 0.9 + y * 0.4 - 1.6 * math.sin(seconds * 0.37)) * 9, -30, 30)
    gain = gain * (1 - 0.38 / (1 + np.exp(edge)))
    warm = 0.07 * math.sin(seconds * 0.23)
    small = (gain[..., None] * np.array((1 - warm, 1, 1 + warm))).astype(np.float32)
    full: Reals = cv2.resize(small, (SIZE[1], SIZE[0])).astype(np.float32)
    return full


def _frame(rng: np.random.Generator, world: U8, horizon: int, actors: list[Actor], seconds: float) -> U8:
    """One frame, BGR uint8 ``SIZE`` + (3,)."""
    pan = (WORLD - SIZE[1]) / 2 * (1 - math.cos(seconds * 0.42))
    bob = 4.0 * math.sin(seconds * 1.9)
    shift = np.array(((1, 0, -pan), (0, 1, bob)), np.float64)
    seen = cv2.warpAffine(world, shift, (SIZE[1], SIZE[0]), borderMode=cv2.BORDER_REPLICATE)
    stage = Stage(seen.astype(np.uint8), np.zeros(SIZE, np.int16))
    staged = [actor.at(seconds, horizon) for actor in actors]
    for actor, (_, view, pose) in sorted(zip(actors, staged, strict=True), key=lambda pair: pair[1][0]):
        moved = Pose(pose.x - pan, pose.y + bob, pose.side, pose.angle, gain=pose.gain)
        place(stage, view, moved, shadow=0.0 if actor.kind == "drone" else 0.5)
    noise = sensor_noise()
    y, x = int(rng.integers(0, noise.shape[0] - SIZE[0])), int(rng.integers(0, noise.shape[1] - SIZE[1]))
    lit = cv2.multiply(stage.image, _light(seconds), dtype=cv2.CV_32F)
    noisy = cv2.scaleAdd(noise[y : y + SIZE[0], x : x + SIZE[1]], 3.5, lit)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_clip(path: Path, seconds: float, seed: int, fps: int = 30) -> None:
    """Write an H.264 video of ``SIZE`` (480 by 640 pixels), ``seconds`` long, the same for the same seed."""
    rng = np.random.default_rng((seed, 99))
    world, horizon = _world(rng)
    actors = _cast(rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "22", "preset": "veryfast"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(max(1, round(seconds * fps))):
            image = _frame(rng, world, horizon, actors, index / fps)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
