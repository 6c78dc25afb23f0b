"""Every attribute of TensorRT's that the code names, in every version; the fake against the real thing."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgesmith.sdk.testing import fake_builder
from edgesmith.sdk.testing.fake_tensorrt import FakeTensorRT

HERE = Path(__file__).resolve().parent
TABLE: dict[str, Any] = json.loads((HERE / "api_members.json").read_text())
VERSIONS = ("10.3.0", "10.13.3", "10.16", "11.0", "11.4", "rtx-1.7")
RTX = "rtx-1.7"
# Reached in some versions alone, behind the question whether the version has it; by (class, member).
ONLY_IN: dict[tuple[str, str], tuple[str, ...]] = {
    # DLA by calibrator, dla.py: TensorRT <= 10.7
    ("BuilderFlag", "FP16"): ("10.3.0",),
    ("BuilderFlag", "INT8"): ("10.3.0",),
    ("", "IInt8EntropyCalibrator2"): ("10.3.0",),
    ("IInt8EntropyCalibrator2", "__init__"): ("10.3.0",),
    ("IBuilderConfig", "int8_calibrator"): ("10.3.0",),
    # TensorRT-RTX names the GPU that it builds for: worker.py, _choose_gpu
    ("", "ComputeCapability"): (RTX,),
    ("IBuilderConfig", "num_compute_capabilities"): (RTX,),
    ("IBuilderConfig", "set_compute_capability"): (RTX,),
}
# The fake's own; and our Engine, which run.py takes under TensorRT's name for the like.
NOT_TENSORRTS = {
    ("", "simulated"), ("", "cuda"), ("cuda", "driver"), ("cuda", "libcuda"), ("ICudaEngine", "plan"),
    ("ICudaEngine", "record"),
}  # fmt: skip


def script() -> ModuleType:
    """The script that made the table."""
    spec = importlib.util.spec_from_file_location("make_api_members", HERE / "make_api_members.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = script()
USES = sorted(
    {
        (file, owner, member)
        for file, variables in MADE.FILES.items()
        if (MADE.CODE / file).is_file()
        for owner, member, _ in MADE.touched(MADE.CODE / file, variables)
    }
    - {(file, *name) for name in NOT_TENSORRTS for file in MADE.FILES}
)


def test_the_table_is_up_to_date() -> None:
    missing = {
        f"{owner}.{name}"
        for owner, names in MADE.wanted().items()
        for name in names - set(TABLE["touched"].get(owner, ()))
    }
    assert not missing, "run make_api_members.py again: the code touches names that the table does not have"


def test_it_finds_what_the_code_uses() -> None:
    # Else the test below would pass for want of anything to look at.
    assert len(USES) > 40
    assert ("worker.py", "IBuilderConfig", "set_memory_pool_limit") in USES
    assert ("worker.py", "BuilderFlag", "VERSION_COMPATIBLE") in USES
    assert ("dla.py", "IBuilderConfig", "can_run_on_DLA") in USES


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_what_the_code_uses(version: str) -> None:
    have = TABLE[version]["classes"]
    absent = []
    for file, owner, member in USES:
        if version not in ONLY_IN.get((owner, member), VERSIONS) or member == "__init__":
            continue
        if member not in have.get(owner, ()):
            absent.append(f"{file}: {owner or 'trt'}.{member}")
    assert absent == []


def test_no_enum_is_taken_by_number() -> None:
    enums = set(TABLE["10.16"]["enums"])
    for file in MADE.FILES:
        path = MADE.CODE / file
        for node in ast.walk(ast.parse(path.read_text())) if path.is_file() else ():
            if isinstance(node, ast.Call | ast.Subscript):
                called = node.func if isinstance(node, ast.Call) else node.value
                assert not (isinstance(called, ast.Attribute) and called.attr in enums), (
                    f"{file}:{node.lineno}"
                )


def fake_of(version: str) -> FakeTensorRT:
    return FakeTensorRT(version="1.7.1" if version == RTX else version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fakes_enums_are_the_real_ones(version: str) -> None:
    trt: Any = fake_of(version)
    for name, real in TABLE[version]["enums"].items():
        fake = trt.ILogger.Severity if name == "Severity" else getattr(trt, name)
        assert {m.name: int(m) for m in fake}.items() <= real.items(), name
    for name in ("CalibrationAlgoType", "ComputeCapability"):
        assert hasattr(trt, name) == (name in TABLE[version]["enums"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_has_nothing_that_the_real_one_lacks(version: str) -> None:
    trt: Any = fake_of(version)
    config = type(trt.Builder(trt.Logger()).create_builder_config())
    for kind, real in MADE.FAKES.items():
        if real == "IBuilderConfig" and kind is not config:
            continue
        extra = MADE.public(kind) - set(TABLE[version]["classes"][real])
        assert not extra, f"{real}: {extra}"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_has_what_the_code_uses(version: str) -> None:
    trt: Any = fake_of(version)
    fakes: dict[str, set[str]] = {}
    for kind, real in MADE.FAKES.items():
        fakes.setdefault(real, set()).update(MADE.public(kind))
    absent = [
        f"{file}: {owner}.{member}"
        for file, owner, member in USES
        if owner in fakes and member not in fakes[owner]
    ]
    assert absent == []
    for _, owner, member in USES:
        if version not in ONLY_IN.get((owner, member), VERSIONS):
            continue
        if owner == "":
            assert hasattr(trt, member)
        elif owner in TABLE[version]["enums"]:
            assert hasattr(getattr(trt, owner), member)


def test_what_a_version_lacks_the_fakes_configuration_lacks() -> None:
    for version, has in (("10.3.0", True), ("10.16", True), ("11.4", False), (RTX, False)):
        trt: Any = fake_of(version)
        assert hasattr(trt.Builder(trt.Logger()).create_builder_config(), "int8_calibrator") is has
    assert issubclass(fake_builder.RtxConfig, fake_builder.Config)
