"""Synthetic scenes of a warehouse and its yard, with boxes: the demo's data from nothing but a seed.

python samples/demo/scenes.py --images 200 --seed 2026 --out samples/demo/data/validation
python samples/demo/scenes.py --clip clip.mp4 --seconds 20 --seed 7
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_clip import write_clip
from scene_props import prop_bank
from scene_sprites import CLASSES, U8, object_bank
from scene_stage import Pose, Stage, backdrop, camera, place

__all__ = ["draw_scene", "write_clip", "write_dataset"]

Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]

SIZE = (360, 480)
"""Height and width of a scene in pixels."""

SMALLEST, LARGEST = 16.0, 200.0
"""Longest side of an object in pixels."""

BALL, DRONE = CLASSES.index("ball"), CLASSES.index("drone")


def _ground_pose(
    rng: np.random.Generator, side: float, horizon: int, size: tuple[int, ...]
) -> tuple[float, float]:
    """A point on the floor where something ``side`` pixels tall may stand: near is large."""
    near = min(1.0, max(0.02, side / 170 + rng.normal(0, 0.12)))
    return rng.uniform(-0.02, 1.02) * size[1], horizon + (size[0] * 1.04 - horizon) * near


def _add_prop(rng: np.random.Generator, stage: Stage, horizon: int, mirror: bool) -> None:
    props = prop_bank()
    side = float(np.exp(rng.uniform(math.log(14), math.log(190))))
    x, foot = _ground_pose(rng, side, horizon, stage.owner.shape)
    on_ground = rng.random() < 0.75
    if not on_ground:
        foot = rng.uniform(0.1, 1.0) * stage.owner.shape[0]
    angle = rng.normal(0, 0.06) if rng.random() < 0.8 else rng.uniform(-math.pi, math.pi)
    gain = rng.uniform(0.7, 1.2)
    pose = Pose(x, foot - side / 2, side, angle, rng.uniform(0.8, 1.25), mirror, (gain, gain, gain))
    place(stage, props[int(rng.integers(len(props)))], pose, shadow=0.45 if on_ground else 0.0)


def _add_object(rng: np.random.Generator, stage: Stage, horizon: int, mirror: bool) -> None:
    label = int(rng.integers(len(CLASSES)))
    variants = object_bank()[label]
    sprite = variants[int(rng.integers(len(variants)))]
    # Evenly spread in log size but for fewer of the smallest, which say little about a detector.
    side = (SMALLEST + 1) * (LARGEST / (SMALLEST + 1)) ** (rng.random() ** 0.5)
    size = stage.owner.shape
    x, foot = _ground_pose(rng, side, horizon, size)
    tall = side * sprite.shape[0] / max(sprite.shape)
    flying = label == DRONE or rng.random() < 0.12
    y = rng.uniform(0.08, 0.92) * size[0] if flying else foot - tall / 2
    lying = rng.random() < 0.15 and label != DRONE
    angle = rng.uniform(-math.pi, math.pi) if lying else rng.normal(0, 0.09)
    aspect = 1.0 if label == BALL else float(np.exp(rng.normal(0, 0.09)))
    level = rng.uniform(0.62, 1.15)
    gain = tuple(float(v) for v in level * rng.uniform(0.88, 1.1, 3))
    pose = Pose(x, y, side, angle, aspect, mirror, (gain[0], gain[1], gain[2]))
    shadow = rng.uniform(0.35, 0.75)
    place(stage, sprite, pose, label, 0.0 if flying else shadow)


def draw_scene(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[U8, Boxes, Labels]:
    """Draw one scene.

    Args:
        rng: decides everything; the same state draws the same scene.
        size: (height, width) in pixels, at most (1000, 1000).

    Returns:
        BGR uint8 (H, W, 3); boxes float32 (n, 4), left, top, right, bottom in pixels, clipped to
        the picture; labels int64 (n,), indices into ``CLASSES``. n may be 0.
    """
    image, horizon = backdrop(rng, size)
    stage = Stage(image, np.zeros(size, np.int16))
    mirror = bool(rng.random() < 0.5)
    for _ in range(int(rng.integers(2, 9))):
        _add_prop(rng, stage, horizon, mirror)
    for _ in range(int(rng.integers(2, 12)) if rng.random() > 0.03 else 0):
        _add_object(rng, stage, horizon, mirror)
        if rng.random() < 0.25:
            _add_prop(rng, stage, horizon, mirror)
    boxes = np.array(stage.boxes, np.float32).reshape(-1, 4)
    return camera(rng, stage.image), boxes, np.array(stage.labels, np.int64)


def write_dataset(folder: Path, count: int, seed: int, size: tuple[int, int] = SIZE) -> None:
    """Write ``count`` JPEG scenes and ``instances.json`` (COCO: x, y, width, height in pixels)."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        image, boxes, labels = draw_scene(np.random.default_rng((seed, index)), size)
        name = f"{index:05d}.jpg"
        if not cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"Could not write {folder / name}.")
        images.append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            box, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
            entry = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1}
            annotations.append({**entry, "bbox": box, "area": area, "iscrowd": 0})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def main() -> None:
    """Write a data set, a clip, or both."""
    parser = argparse.ArgumentParser(description="Draw the demo's scenes.")
    parser.add_argument("--images", type=int, default=0, help="how many pictures to draw into --out")
    parser.add_argument("--out", type=Path, help="folder of the pictures and their instances.json")
    parser.add_argument("--clip", type=Path, help="write a generated video to this path")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the clip")
    parser.add_argument("--fps", type=int, default=30, help="frames per second of the clip")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.images > 0) != (args.out is not None) or not (args.images or args.clip):
        parser.error("give --images N with --out DIR, or --clip PATH, or both")
    if args.images:
        write_dataset(args.out, args.images, args.seed)
    if args.clip:
        write_clip(args.clip, args.seconds, args.seed, args.fps)


if __name__ == "__main__":
    main()
