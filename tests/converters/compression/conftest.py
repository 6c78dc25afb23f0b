"""A recipe with pictures that its tiny classifier can learn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.converters import Recipe


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``train.npz`` (48) and ``val.npz`` (12), five classes."""
    folder = tmp_path_factory.mktemp("compression")
    random = np.random.default_rng(5)
    for name, count in (("train", 48), ("val", 12)):
        labels = random.integers(0, 5, count)
        images = random.integers(0, 120, (count, 64, 64, 3))
        images[np.arange(count), :, :, labels % 3] += 60
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


@pytest.fixture
def chain_recipe(recipe_of: Callable[..., Recipe], pictures: Path) -> Callable[..., Recipe]:
    """The recipe of the classifier; keyword arguments add tables."""

    def make(**tables: Any) -> Recipe:
        train, val = str(pictures / "train.npz"), str(pictures / "val.npz")
        data = {"training": train, "calibration": train, "evaluation": {"images": val}}
        return recipe_of(**{"data": data, **tables})

    return make
