"""The fakes have nothing that the real ones lack: held against the members of pycuda and the CUDA header."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesmith.sdk.cuda.graph import _PROTOTYPES
from edgesmith.sdk.testing import fake_driver
from edgesmith.sdk.testing.fake_libcuda import FakeLibcuda

# Written by asking pycuda 2026.1 itself.
REAL: dict[str, Any] = json.loads(Path(__file__).with_name("pycuda_members.json").read_text())
STANDS_FOR = {
    "driver": fake_driver.Driver,
    "Device": fake_driver._Device,
    "Context": fake_driver.Context,
    "Function": fake_driver._Function,
    "Module": fake_driver._Module,
    "DeviceAllocation": fake_driver._Allocation,
    "PagelockedHostAllocation": fake_driver._HostAllocation,
    "device_attribute": fake_driver.Driver.device_attribute,
    "host_alloc_flags": fake_driver.Driver.host_alloc_flags,
}


def members(value: Any) -> set[str]:
    names = vars(value) if isinstance(value, SimpleNamespace) else dir(value)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", STANDS_FOR)
def test_the_fake_has_nothing_of_its_own(name: str) -> None:
    assert members(STANDS_FOR[name]) <= set(REAL[name])


def test_a_stream_too() -> None:
    ours = {"handle", "synchronize", "is_done"}
    assert ours <= set(REAL["Stream"])
    assert {"synchronize", "is_done"} <= members(fake_driver.FakeStream)


def test_the_calls_of_libcuda_are_those_of_the_header() -> None:
    assert {name for name in members(FakeLibcuda) if name.startswith("cu")} == set(_PROTOTYPES)
    header = Path("/usr/local/cuda/include/cuda.h")
    if not header.is_file():
        pytest.skip("the CUDA header is missing: install the CUDA toolkit")
    text = header.read_text(errors="replace")
    for name in _PROTOTYPES:
        assert re.search(rf"\b{name}\b", text), name


def test_the_real_driver_has_what_is_asked_of_it() -> None:
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is missing: pip install 'edgesmith[gpu]'")
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        pytest.skip(f"pycuda does not load: {error}")
    assert members(fake_driver.Driver) <= members(driver)
