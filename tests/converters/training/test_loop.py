"""The training loop: rate, best epoch, going on after a stop, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgesmith.calibration.images import Images
from edgesmith.converters.recipe_training import TrainTable
from edgesmith.converters.training import checkpoint
from edgesmith.converters.training.images import TrainingImages
from edgesmith.converters.training.learner import LOSS, FromLabels, Losses
from edgesmith.converters.training.loop import Told, Trainer, rate_at
from edgesmith.sdk.errors import DataError
from edgesmith.sdk.preprocess import Preprocess

PREPROCESS = Preprocess(size=(16, 16), fit="stretch")


class Stopped(Exception):
    """Somebody pulled the plug."""


@pytest.fixture
def data(archive: Path) -> TrainingImages:
    return TrainingImages(Images.open(archive), np.load(archive)["labels"])


def trainer(
    learner: FromLabels, data: TrainingImages, folder: Path, told: Any = None, **given: Any
) -> Trainer:
    settings = TrainTable(
        **{"epochs": 4, "batch": 16, "rate": 0.05, "held_out": 0.25, "checkpoint_s": 0, **given}
    )
    return Trainer(learner, data, PREPROCESS, settings, folder=folder, key="k", seed=3, told=told)


def test_it_learns_and_tells(network: nn.Module, data: TrainingImages, tmp_path: Path) -> None:
    seen: list[Told] = []
    curves = trainer(FromLabels(network), data, tmp_path, seen.append).fit()
    assert curves.epochs[-1].loss < 0.8 * curves.epochs[0].loss
    assert curves.metric == "top-1"
    assert max(e.metric or 0.0 for e in curves.epochs) >= 80
    assert (curves.images, curves.held_out, curves.steps) == (72, 24, 4)
    assert len(seen) == 4 * 4
    assert "epoch 1/4, loss" in str(seen[0])
    assert seen[-1].seconds_left == 0
    assert not curves.resumed


def test_a_run_that_stopped_anywhere_ends_with_the_same_weights(data: TrainingImages, tmp_path: Path) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), nn.Linear(4, 3))  # fmt: skip

    whole = made()
    (tmp_path / "whole").mkdir()
    curves = trainer(FromLabels(whole), data, tmp_path / "whole").fit()
    for stop in (4, 11):  # at the end of the first epoch, in the third
        folder = tmp_path / str(stop)
        folder.mkdir()
        steps = 0

        def pull(_: Told, stop: int = stop) -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Stopped

        with pytest.raises(Stopped):
            trainer(FromLabels(made()), data, folder, pull).fit()
        resumed = made()
        again = trainer(FromLabels(resumed), data, folder).fit()
        assert again.resumed
        assert [e.loss for e in again.epochs] == [e.loss for e in curves.epochs]
        for left, right in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
            assert torch.equal(left, right)


def test_the_best_epoch_is_kept(network: nn.Module, data: TrainingImages, tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []

    class Watched(FromLabels):
        def answers(self, images: torch.Tensor) -> torch.Tensor | None:
            if not weights or not torch.equal(weights[-1], self.student[0].weight):  # type: ignore[index]
                weights.append(self.student[0].weight.detach().clone())  # type: ignore[index]
            return super().answers(images)

    curves = trainer(Watched(network), data, tmp_path, epochs=3, rate=1.0, clip=0.0).fit()
    metrics = [e.metric or 0.0 for e in curves.epochs]
    assert metrics[curves.best] == max(metrics)
    assert torch.equal(network[0].weight, weights[curves.best])  # type: ignore[index]


def test_patience_ends_it(data: TrainingImages, network: nn.Module, tmp_path: Path) -> None:
    class Still(FromLabels):
        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Losses:
            return {LOSS: 0.0 * super().forward(images, labels)[LOSS]}

    curves = trainer(Still(network, frozen_norm=True), data, tmp_path, epochs=9, patience=2, decay=0.0).fit()
    assert len(curves.epochs) == 3


def test_frozen_norms_keep_their_statistics(network: nn.Module, data: TrainingImages, tmp_path: Path) -> None:
    trainer(FromLabels(network, frozen_norm=True), data, tmp_path, epochs=1).fit()
    assert torch.equal(network[1].running_mean, torch.zeros(8))  # type: ignore[index]


def test_a_loss_that_is_no_number_is_told(network: nn.Module, data: TrainingImages, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"epoch 1, step .*lower the rate"):
        trainer(FromLabels(network), data, tmp_path, rate=1e30, clip=0.0).fit()


def test_the_rate_rises_and_falls() -> None:
    settings = TrainTable(rate=0.1, warmup=0.1)
    rates = [rate_at(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == max(rates) == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[99] < 1e-4


def test_a_checkpoint_is_read_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path, "k") is None
    checkpoint.save(path, {"key": "k", "weights": torch.ones(2)})
    found = checkpoint.load(path, "k")
    assert found is not None
    assert torch.equal(found["weights"], torch.ones(2))
    assert checkpoint.load(path, "another") is None
    torch.save({"schema": 1, "key": "k", "code": Path("x")}, path)
    with pytest.raises(DataError, match="not a sound checkpoint"):
        checkpoint.load(path, "k")
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="delete it to train from the start"):
        checkpoint.load(path, "k")
