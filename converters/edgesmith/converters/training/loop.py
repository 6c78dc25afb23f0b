"""The training loop on Lightning Fabric: one process here, or many by its launcher, unchanged.

    torchrun --nproc-per-node 2 -m edgesmith.sdk.cli distill recipe.toml

A run that was killed goes on from its last checkpoint and ends with the same weights as one that was not:
samples depend on seed, epoch and number only, the rate on the step only, and everything else that has a
state (weights, optimizer, loss scaling, random numbers, the best epoch, the curves) is in the checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric

from edgesmith.converters.recipe_training import TrainTable
from edgesmith.converters.training import checkpoint
from edgesmith.converters.training.curves import Curves, Epoch
from edgesmith.converters.training.images import (
    UNLABELLED,
    EpochBatches,
    Samples,
    TrainingImages,
    in_order,
    loader,
    steps_of,
)
from edgesmith.converters.training.learner import LOSS, Learner
from edgesmith.sdk.errors import DataError
from edgesmith.sdk.preprocess import Preprocess

log = logging.getLogger(__name__)
STATE = "checkpoint.pt"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Where the training stands; ``seconds_left`` is an estimate."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    metric: float | None
    metric_name: str
    seconds_left: float

    def __str__(self) -> str:
        metric = "" if self.metric is None else f", {self.metric_name} {self.metric:.2f}"
        left = (
            f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 90 else f"{self.seconds_left:.0f} s"
        )
        return f"epoch {self.epoch + 1}/{self.epochs}, loss {self.loss:.4f}{metric}, {left} left"


def open_fabric(settings: TrainTable) -> Fabric:
    """Fabric for this process; under a launcher (``WORLD_SIZE``) one of several."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    nodes = max(1, int(os.environ.get("WORLD_SIZE", "1")) // processes)
    fabric = Fabric(
        accelerator="auto",
        devices=processes,
        num_nodes=nodes,
        strategy="ddp" if processes * nodes > 1 else "auto",
        precision=settings.numbers,
    )
    fabric.launch()
    return fabric


def leave() -> None:
    """The end of a process that trained with others: they part before any of them is gone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def rate_at(step: int, steps: int, settings: TrainTable) -> float:
    """The learning rate of a step: a straight rise, then half a cosine down to 0."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.rate * (step + 1) / warm
    gone = (step - warm) / max(1, steps - warm)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * gone))


class Trainer:
    """Trains a learner, and leaves it with the weights of its best epoch.

    Args:
        learner: network and loss; it is changed.
        data: the images; a share is held out by ``settings.held_out``.
        preprocess: of the network's input.
        settings: the stage's ``train`` table.
        folder: where checkpoints lie.
        key: names this run; a checkpoint of another key is left alone.
        seed: of order, augmentation and random numbers.
        told: called after steps, with where the training stands.
        fabric: Lightning Fabric, else one for this process.
    """

    def __init__(
        self,
        learner: Learner,
        data: TrainingImages,
        preprocess: Preprocess,
        settings: TrainTable,
        *,
        folder: Path,
        key: str,
        seed: int,
        told: Callable[[Told], None] | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.settings, self.seed, self.key = settings, seed, key
        self.path = folder / STATE
        self.told = told
        self.fabric = fabric or open_fabric(settings)
        training, held = data.divided(settings.held_out, seed)
        if not len(training):
            raise DataError(f"{data.images.source}: no image is left to train on; lower held_out")
        self.training = Samples(training, preprocess, settings.augment, seed)
        self.held = Samples(held, preprocess, (), seed)
        self.labelled = data.labels is not None
        self.steps = steps_of(len(training), settings.batch)
        torch.manual_seed(seed + self.fabric.global_rank)
        learner.place(self.fabric.device)
        self.optimizer: Any
        self.learner: Any
        self.plain = learner
        self.learner, self.optimizer = self.fabric.setup(learner, self._optimizer(learner))
        self._epochs: list[Epoch] = []
        self._best = 0
        self._best_state: dict[str, torch.Tensor] | None = None
        self._sums: dict[str, float] = {}
        self._saved_ns = time.monotonic_ns()
        self._spent_s = 0.0

    def _optimizer(self, learner: Learner) -> torch.optim.Optimizer:
        s = self.settings
        groups = learner.parameter_groups(s.rate, s.decay)
        for group in groups:
            group["share"] = group["lr"] / s.rate  # the schedule keeps the groups' ratios
        if s.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=s.rate, momentum=s.momentum, nesterov=s.momentum > 0)
        return torch.optim.AdamW(groups, lr=s.rate)

    def fit(self) -> Curves:
        """Train to the end, from the checkpoint where there is one."""
        epoch, step, resumed = self._resume()
        began_ns = time.monotonic_ns()
        before_s = self._spent_s
        self._first = (epoch, step)
        while epoch < self.settings.epochs and not self._ended():
            started_ns = time.monotonic_ns()
            self.plain.train()
            batches = EpochBatches(
                len(self.training),
                self.settings.batch,
                epoch=epoch,
                seed=self.seed,
                begin=step,
                rank=self.fabric.global_rank,
                world=self.fabric.world_size,
            )
            for images, labels in loader(self.training, batches, self.settings.workers):
                self._step(images, labels, epoch, step)
                step += 1
                self._spent_s = before_s + (time.monotonic_ns() - began_ns) / 1e9
                self._tell(epoch, step)
                if step < self.steps:
                    self._save(epoch, step)
            self._close(epoch, (time.monotonic_ns() - started_ns) / 1e9)
            epoch, step = epoch + 1, 0
            self._save(epoch, step, last=epoch == self.settings.epochs)
        if self._best_state is not None:
            self.plain.load_state_dict(self._best_state)
        self.plain.after_step()  # what holds after a step holds at the end
        self.plain.close()
        return Curves(
            epochs=tuple(self._epochs),
            best=self._best,
            metric=self.metric_name,
            images=len(self.training),
            held_out=len(self.held),
            steps=self.steps,
            seconds=before_s + (time.monotonic_ns() - began_ns) / 1e9,
            resumed=resumed,
        )

    @property
    def metric_name(self) -> str:
        """What is measured on the held-out images."""
        return "top-1" if self.labelled else "negative loss"

    def _step(self, images: torch.Tensor, labels: torch.Tensor, epoch: int, step: int) -> None:
        rate = rate_at(epoch * self.steps + step, self.steps * self.settings.epochs, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        images, labels = self.fabric.to_device((images, labels))
        losses = self.learner(images, labels)
        self.optimizer.zero_grad()
        self.fabric.backward(losses[LOSS])
        if self.settings.clip:
            self.fabric.clip_gradients(
                self.learner, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.plain.after_step()
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._sums["steps"] = self._sums.get("steps", 0.0) + 1
        if not math.isfinite(self._sums[LOSS]):
            raise DataError(
                f"training lost its numbers in epoch {epoch + 1}, step {step + 1} (the loss is not finite): "
                f"lower the rate ({self.settings.rate:g}), or clip gradients"
            )

    def _close(self, epoch: int, seconds: float) -> None:
        """The epoch's figures; its weights where it is the best so far."""
        count = self._sums.pop("steps")
        means = {name: total / count for name, total in self._sums.items()}
        self._sums = {}
        metric = self._metric()
        rate = rate_at((epoch + 1) * self.steps - 1, self.steps * self.settings.epochs, self.settings)
        self._epochs.append(
            Epoch(loss=means.pop(LOSS), parts=means, rate=rate, metric=metric, seconds=seconds)
        )
        best = self._epochs[self._best].metric
        if metric is None or best is None or metric > best or epoch == 0:
            self._best = epoch
            self._best_state = {k: v.detach().cpu().clone() for k, v in self.plain.state_dict().items()}

    def _ended(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self._epochs) > self._best + patience

    @torch.no_grad()
    def _metric(self) -> float | None:
        """Top-1 in percent on the held-out images, without labels the mean loss below zero."""
        if not len(self.held):
            return None
        self.plain.eval()
        world, rank = self.fabric.world_size, self.fabric.global_rank
        sums = torch.zeros(2, dtype=torch.float64, device=self.fabric.device)
        for images, labels in loader(
            self.held, in_order(len(self.held), self.settings.batch, rank, world), self.settings.workers
        ):
            images, labels = self.fabric.to_device((images, labels))
            if self.labelled:
                with self.fabric.autocast():
                    logits = self.plain.answers(images)
                assert logits is not None  # only classifiers have labelled images
                sums[0] += 100.0 * (logits.argmax(1) == labels)[labels != UNLABELLED].sum()
            else:
                with self.fabric.autocast():
                    sums[0] -= self.plain(images, labels)[LOSS].double() * len(images)
            sums[1] += len(images)
        total = self.fabric.all_reduce(sums, reduce_op="sum")
        self.plain.train()
        assert isinstance(total, torch.Tensor)
        return float(total[0] / total[1])

    def _tell(self, epoch: int, step: int) -> None:
        if self.told is None or self.fabric.global_rank:
            return
        done = (epoch - self._first[0]) * self.steps + step - self._first[1]
        here_s = self._spent_s - self._before_s
        left = (self.settings.epochs - epoch) * self.steps - step
        metrics = [e.metric for e in self._epochs]
        self.told(
            Told(
                epoch=epoch,
                epochs=self.settings.epochs,
                step=step,
                steps=self.steps,
                loss=self._sums[LOSS] / self._sums["steps"],
                metric=metrics[-1] if metrics else None,
                metric_name=self.metric_name,
                seconds_left=here_s / max(done, 1) * left,
            )
        )

    def _save(self, epoch: int, step: int, *, last: bool = False) -> None:
        """Write a checkpoint where the last one is old enough; all processes decide alike."""
        due = last or (time.monotonic_ns() - self._saved_ns) / 1e9 >= self.settings.checkpoint_s
        if not self.fabric.broadcast(due):
            return
        randoms = self._gathered(torch.get_rng_state())
        cuda = (
            self._gathered(torch.cuda.get_rng_state(self.fabric.device))
            if self.fabric.device.type == "cuda"
            else None
        )
        if self.fabric.global_rank == 0:
            checkpoint.save(
                self.path,
                {
                    "key": self.key,
                    "world": self.fabric.world_size,
                    "epoch": epoch,
                    "step": step,
                    "learner": {k: v.cpu() for k, v in self.plain.state_dict().items()},
                    "optimizer": self.optimizer.state_dict(),
                    "scaling": self.fabric.strategy.precision.state_dict(),
                    "random": randoms,
                    "cuda": cuda,
                    "epochs": msgspec.to_builtins(self._epochs),
                    "best": self._best,
                    "best_state": self._best_state,
                    "sums": self._sums,
                    "seconds": self._spent_s,
                },
            )
        self.fabric.barrier()
        self._saved_ns = time.monotonic_ns()

    def _gathered(self, state: torch.Tensor) -> torch.Tensor:
        """The random state of every process, ``(world, n)`` uint8."""
        if self.fabric.world_size == 1:
            return state[None]
        here = state.to(self.fabric.device)
        parts = [torch.empty_like(here) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(parts, here)
        return torch.stack(parts).cpu()

    def _resume(self) -> tuple[int, int, bool]:
        state = checkpoint.load(self.path, self.key)
        self._before_s = 0.0
        if state is None:
            return 0, 0, False
        if state["world"] != self.fabric.world_size:
            raise DataError(
                f"{self.path}: was written by {state['world']} processes, here are {self.fabric.world_size}: "
                "go on with as many, or delete it to train from the start"
            )
        self.plain.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaling"])
        torch.set_rng_state(state["random"][self.fabric.global_rank])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"][self.fabric.global_rank], self.fabric.device)
        self._epochs = msgspec.convert(state["epochs"], list[Epoch])
        self._best, self._best_state = state["best"], state["best_state"]
        self._sums, self._spent_s = state["sums"], state["seconds"]
        self._before_s = self._spent_s
        return state["epoch"], state["step"], True
