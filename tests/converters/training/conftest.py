"""A tiny classifier, pictures that it can learn from, and a script that trains it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SCRIPT = """
import json
import sys
from pathlib import Path

import torch
from torch import nn

from edgesmith.calibration.images import Images
from edgesmith.converters.recipe_training import TrainTable
from edgesmith.converters.training.images import TrainingImages
from edgesmith.converters.training.learner import FromLabels
from edgesmith.converters.training.loop import Trainer, leave
from edgesmith.sdk.preprocess import Preprocess
import numpy as np

torch.set_num_threads(1)
archive, folder, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
)
data = TrainingImages(Images.open(archive), np.load(archive)["labels"])
settings = TrainTable(epochs=epochs, batch=16, rate=0.05, held_out=0.25, checkpoint_s=0)
trainer = Trainer(
    FromLabels(network), data, Preprocess(size=(16, 16), fit="stretch"), settings,
    folder=folder, key="test", seed=3,
)
curves = trainer.fit()
if trainer.fabric.global_rank == 0:
    torch.save(network.state_dict(), folder / "final.pt")
    course = [(e.metric, e.loss) for e in curves.epochs]
    (folder / "told.json").write_text(json.dumps({"resumed": curves.resumed, "course": course}))
leave()
"""


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures of 16 x 16 whose class is the brightest colour channel."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 96)
    images = random.integers(0, 120, (96, 16, 16, 3))
    images[np.arange(96), :, :, labels] += 60
    path = tmp_path_factory.mktemp("training") / "train.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains: ``script ARCHIVE FOLDER EPOCHS``."""
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def network() -> nn.Module:
    """Three classes from pictures of any size."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
