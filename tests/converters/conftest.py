"""A user's own small networks, their weights, and recipes for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import Recipe

NETWORKS = '''
import torch
from torch import nn


def block(c_in, c_out, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class Classifier(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = block(3, 8, 2)
        self.body = nn.Sequential(block(8, 8, groups=8), block(8, 16, 2))
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.classifier = nn.Linear(16, classes)

    def forward(self, x):
        x = self.stem(x)
        x = self.body(x) + self.shortcut(x)
        return self.classifier(x.mean((2, 3)))


class Detector(nn.Module):
    """Canonical outputs from one map, stride 8."""

    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(block(3, 8, 2), block(8, 8, 2), block(8, 8, 2))
        self.head = nn.Conv2d(8, 4 + classes, 1)

    def forward(self, x):
        y = self.head(self.body(x)).flatten(2).transpose(1, 2)
        centre, half = 32 + 24 * y[..., :2].tanh(), 4 + 8 * y[..., 2:4].sigmoid()
        return torch.cat((centre - half, centre + half), -1), (3 * y[..., 4:]).sigmoid()


class Mixer(nn.Module):
    """A fault: images of a batch see one another."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 5)

    def forward(self, x):
        y = self.classifier(x.mean((2, 3)))
        return y - y.mean(0, keepdim=True) + y.amax(0, keepdim=True) * 2


def classifier():
    return Classifier()


def mixer():
    return Mixer()


def detector():
    return Detector()


def not_a_module():
    return 3


def broken():
    raise KeyError("depth")


constant = 3
'''


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the module ``tinynets``, the user's own code."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tinynets.py").write_text(NETWORKS)
    return folder


@pytest.fixture(scope="session")
def tinynets(networks: Path) -> ModuleType:
    """The user's code, loaded under another name than the one that the recipe imports."""
    spec = importlib.util.spec_from_file_location("tinynets_of_the_test", networks / "tinynets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def seeded() -> Callable[[nn.Module], nn.Module]:
    """Fill a module with seeded weights; batch norms get statistics that matter."""

    def fill(module: nn.Module) -> nn.Module:
        random = torch.Generator().manual_seed(7)
        for name, value in module.state_dict().items():
            if value.dtype == torch.float32:
                noise = torch.randn(value.shape, generator=random)
                if name.endswith("running_var"):
                    value.copy_(0.5 + noise.abs())
                elif value.ndim > 1:
                    value.copy_(noise / value[0].numel() ** 0.5)
                else:
                    value.copy_(0.7 + 0.3 * noise)
        return module.eval()

    return fill


@pytest.fixture(scope="session")
def weights(
    tmp_path_factory: pytest.TempPathFactory, tinynets: ModuleType, seeded: Callable[[nn.Module], nn.Module]
) -> dict[str, Path]:
    """Files with the weights of each tiny network, by factory."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name in ("classifier", "detector", "mixer"):
        files[name] = folder / f"{name}.safetensors"
        save_file(seeded(getattr(tinynets, name)()).state_dict(), files[name])
    return files


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six pictures of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(((90, 120), (64, 64), (130, 70), (80, 200), (64, 96), (720, 960))):
        assert cv2.imwrite(str(folder / f"{number}.png"), pseudo_images(1, number, size)[0])
    return folder


@pytest.fixture
def recipe_of(networks: Path, weights: dict[str, Path], photos: Path) -> Callable[..., Recipe]:
    """A recipe for one of the tiny networks; keyword arguments replace or add tables."""

    def make(factory: str = "classifier", **tables: Any) -> Recipe:
        table: dict[str, Any] = {
            "task": "detect" if factory == "detector" else "classify",
            "model": {
                "factory": f"tinynets:{factory}", "weights": str(weights[factory]),
                "python_path": [str(networks)],
            },
            "input": {"size": [64, 64]},
            "data": {"calibration": str(photos)},
        }  # fmt: skip
        return Recipe.from_dict({**table, **tables}, base=networks)

    return make


@pytest.fixture
def tensor() -> torch.Tensor:
    """Two inputs (2, 3, 64, 64)."""
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 3, 64, 64)).astype(np.float32))
