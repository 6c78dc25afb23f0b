"""A fake GPU for whatever runs on one, a machine without compilers for kernels, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def browser(component: Any) -> Iterator[Any]:
    """Chromium without a screen; one for all tests of a file, as it takes seconds to come up."""
    component("chromium")
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=service.Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()
