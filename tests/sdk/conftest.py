"""A fake GPU for whatever runs on one, and a machine without compilers for kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgesmith.sdk.cuda import compile as kernels
from edgesmith.sdk.testing.fake_cuda import FakeCuda


@pytest.fixture
def without_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
