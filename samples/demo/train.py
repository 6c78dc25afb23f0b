"""Train the demo's detector from nothing on drawn scenes.

    python samples/demo/train.py

Writes ``weights/demo_detector.safetensors`` and ``weights/training.json`` beside this file.
The defaults are the settings of the weights that come with the project.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from network import DemoDetector
from scene_sprites import U8
from scenes import draw_scene, write_dataset
from train_eval import evaluate, letterbox
from train_loss import Grid, detection_loss

HERE = Path(__file__).resolve().parent
MOST_OBJECTS = 12
"""Rows of the padded targets; scenes hold fewer objects than that."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result; sizes in pixels.

    The first ``first_share`` of the steps see the scenes at ``first_size``: a step costs half as
    much there, and most of what they teach holds at the full size too.
    """

    size: int = 256
    scenes: int = 5000
    epochs: int = 12
    first_size: int = 192
    first_share: float = 0.45
    batch: int = 16
    rate: float = 0.002
    decay: float = 0.03
    warmup: int = 200
    average: float = 0.998
    seed: int = 1
    held_out: int = 200
    held_out_seed: int = 2026


Scene = tuple[U8, NDArray[np.float32], NDArray[np.int64]]


def _draw_chunk(job: tuple[int, int, int, int]) -> tuple[U8, NDArray[np.float32], NDArray[np.int64]]:
    """Scenes ``first`` to ``last`` of a seed: squares (n, S, S, 3), boxes (n, G, 4), labels (n, G)."""
    first, last, seed, size = job
    cv2.setNumThreads(1)
    squares = np.empty((last - first, size, size, 3), np.uint8)
    targets = np.zeros((last - first, MOST_OBJECTS, 4), np.float32)
    kinds = np.zeros((last - first, MOST_OBJECTS), np.int64)
    for row, index in enumerate(range(first, last)):
        image, boxes, labels = draw_scene(np.random.default_rng((seed, index)))
        squares[row], scale, left, top = letterbox(image, size)
        targets[row, : len(boxes)] = boxes * scale + np.array((left, top, left, top), np.float32)
        kinds[row, : len(labels)] = labels
    return squares, targets, kinds


def draw_all(settings: Settings, workers: int) -> Scene:
    """All training scenes at once, as ``_draw_chunk`` gives them."""
    step = 100
    jobs = [
        (first, min(first + step, settings.scenes), settings.seed, settings.size)
        for first in range(0, settings.scenes, step)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        squares, targets, kinds = zip(*pool.map(_draw_chunk, jobs), strict=True)
    return np.concatenate(squares), np.concatenate(targets), np.concatenate(kinds)


def augment(images: Tensor, targets: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the pictures and change their brightness; images (N, 3, S, S) 0..1."""
    count, size = images.shape[0], images.shape[-1]
    flip = torch.rand(count, generator=draw) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    mirrored = torch.stack(
        [size - targets[..., 2], targets[..., 1], size - targets[..., 0], targets[..., 3]], -1
    )
    # Padded rows must stay empty.
    targets = torch.where(flip[:, None, None] & (targets[..., 2:3] > 0), mirrored, targets)
    gain = 1 + 0.15 * (torch.rand(count, 3, 1, 1, generator=draw) * 2 - 1)
    return (images * gain).clamp_(0, 1), targets


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the rate."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays weights of convolutions only."""
    heavy = [p for p in model.parameters() if p.ndim > 1]
    light = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": heavy, "weight_decay": settings.decay}, {"params": light, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.rate)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move the averaged weights a little towards the trained ones."""
    for slow, fast in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - keep)
        else:
            slow.copy_(fast)


def fit(settings: Settings, data: Scene) -> nn.Module:
    """Train on the drawn scenes and return the averaged model in evaluation mode."""
    torch.manual_seed(settings.seed)
    draw = torch.Generator().manual_seed(settings.seed)
    squares, targets, kinds = (torch.from_numpy(part) for part in data)
    model = DemoDetector().train()
    average = copy.deepcopy(model).eval()
    optimizer = _optimizer(model, settings)
    per_epoch = len(squares) // settings.batch
    steps, started, recent = per_epoch * settings.epochs, time.monotonic(), torch.zeros(3)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(squares), generator=draw)
        rows = order[(step % per_epoch) * settings.batch :][: settings.batch]
        images = squares[rows].permute(0, 3, 1, 2).float().div_(255)
        images, wanted = augment(images, targets[rows], draw)
        if step < steps * settings.first_share:
            images = functional.interpolate(images, (settings.first_size,) * 2, mode="area")
            wanted = wanted * (settings.first_size / settings.size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings)
        grid = Grid.of(images.shape[-1])
        parts = detection_loss(model(images.contiguous()), grid, wanted, kinds[rows])
        optimizer.zero_grad()
        torch.autograd.backward(parts.sum())
        nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimizer.step()
        _follow(average, model, min(settings.average, (1 + step) / (10 + step)))
        recent = recent * 0.98 + parts.detach() * 0.02
        if (step + 1) % 100 == 0:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (steps - step - 1)
            box, objectness, classes = (recent / (1 - 0.98 ** (step + 1))).tolist()
            print(
                f"step {step + 1}/{steps}  box {box:.3f}  objectness {objectness:.3f}  class {classes:.3f}"
                f"  {(step + 1) * settings.batch / spent:.0f} images/s  {left:.0f} s left",
                flush=True,
            )
    return average


def main() -> None:
    """Draw, train, evaluate, write."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Train the demo's detector on drawn scenes.")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--threads", type=int, default=1, help="torch threads and drawing processes")
    parser.add_argument("--out", type=Path, default=HERE / "weights", help="folder for the weights")
    args = vars(parser.parse_args())
    threads, out = args.pop("threads"), args.pop("out")
    settings = Settings(**args)
    torch.set_num_threads(threads)
    started = time.monotonic()
    print(f"Drawing {settings.scenes} scenes.", flush=True)
    data = draw_all(settings, threads)
    drawn = time.monotonic() - started
    print(f"Drawn in {drawn:.0f} s.", flush=True)
    model = fit(settings, data)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), settings.held_out, settings.held_out_seed)
        figures = evaluate(model, Path(folder), settings.size)
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, out / "demo_detector.safetensors")
    record = {
        "settings": asdict(settings),
        "figures": figures,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - started),
        "seconds_drawing": round(drawn),
        "threads": threads,
        "torch": str(torch.__version__),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
