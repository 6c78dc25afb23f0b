"""A GPU that is not there, watched for leaks; no compiler is started unless a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cuda import compile as kernels
from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.testing.fake_cuda import FakeCuda

Picture = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _no_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The assembly of the package serves, and nothing is written into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "find_nvcc", lambda: None)
    monkeypatch.setattr(kernels, "find_nvrtc", lambda: None)


@pytest.fixture(params=["discrete", "integrated"])
def cuda(request: pytest.FixtureRequest) -> Iterator[FakeCuda]:
    """A fake GPU, with memory of its own and with shared memory; nothing may be left on it."""
    device = FakeCuda(integrated=request.param == "integrated")
    yield device
    assert device.leaks() == {}


@pytest.fixture
def gpu(cuda: FakeCuda) -> Iterator[Gpu]:
    """Its primary context."""
    opened = Gpu(driver=cuda.driver)
    yield opened
    opened.close()


@pytest.fixture
def picture() -> Callable[..., Picture]:
    """``picture(height, width)``: noise, other noise for another ``seed``."""

    def make(height: int, width: int, seed: int = 0) -> Picture:
        return np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)

    return make
