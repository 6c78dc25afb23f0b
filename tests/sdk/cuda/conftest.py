"""A GPU that is not there, watched for leaks; no compiler is started unless a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.testing.fake_cuda import FakeCuda

Picture = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _without_compilers(without_compilers: None) -> None:
    """For every test of this folder."""


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
