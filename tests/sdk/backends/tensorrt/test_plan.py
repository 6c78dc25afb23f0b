"""Headers of plans, keys, the library's finding, the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgesmith.sdk.backends.tensorrt.library import is_rtx, load_library, load_tensorrt, title_of, version_of
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, check_header, key_of, read_header
from edgesmith.sdk.backends.tensorrt.target import Target, detect_target, kernel_driver
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, BuildError, IncompatibleEngineError
from edgesmith.sdk.testing.fake_tensorrt import FakeTensorRT

ORIN = Target(library="tensorrt", tensorrt="10.3.0", gpu="Orin", compute_capability="8.7", l4t="36.4.3")


def plan(mark: bytes, version: tuple[int, ...], size: int = 64) -> bytes:
    return (
        mark + bytes(4) + (2).to_bytes(8, "little") + size.to_bytes(8, "little") + bytes(version) + bytes(36)
    )


def test_headers() -> None:
    assert read_header(plan(b"ftrt", (10, 3, 0, 30))) == ("tensorrt", (10, 3, 0, 30))
    assert read_header(plan(b"vtrt", (1, 7, 1, 116))) == ("tensorrt-rtx", (1, 7, 1, 116))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "none of the known marks"),
        (b"PK\x03\x04" + bytes(60), "none of the known marks"),
        ((120).to_bytes(4, "little") + b'{"batch": 1}', "begins with JSON"),
        (b"ftrt" + bytes(10), "cut off: 14 bytes"),
        (plan(b"vtrt", (1, 7, 1, 116), size=5000), "cut off: 64 of 5,000 bytes"),
    ],
)
def test_what_is_no_plan(data: bytes, said: str) -> None:
    with pytest.raises(IncompatibleEngineError, match=said):
        read_header(data)


@pytest.mark.parametrize(
    ("data", "compatible", "said"),
    [
        (plan(b"ftrt", (10, 3, 0, 30)), False, None),
        (plan(b"ftrt", (10, 13, 3, 9)), False, "built by tensorrt 10.13.3, not 10.3.0"),
        (
            plan(b"ftrt", (10, 13, 3, 9)),
            True,
            "built by tensorrt 10.13.3, not 10.3.0",
        ),  # newer than what runs
        (plan(b"ftrt", (10, 1, 0, 0)), True, None),
        (plan(b"ftrt", (8, 6, 0, 0)), True, "built by tensorrt 8.6.0"),
        (plan(b"vtrt", (1, 7, 1, 116)), False, "one of tensorrt-rtx, and tensorrt runs here"),
    ],
)
def test_what_loads_here(data: bytes, compatible: bool, said: str | None) -> None:
    if said is None:
        check_header(data, ORIN, version_compatible=compatible)
        return
    with pytest.raises(IncompatibleEngineError, match=said):
        check_header(data, ORIN, version_compatible=compatible)


def test_each_part_of_the_key_counts(trio: Bundle) -> None:
    usual = key_of(trio, "float", ORIN, BuildOptions())
    digests = {
        usual.digest,
        key_of(trio, "fp16", ORIN, BuildOptions()).digest,
        key_of(trio, "float", ORIN, BuildOptions(level=4)).digest,
        *(
            key_of(trio, "float", msgspec.structs.replace(ORIN, **change), BuildOptions()).digest
            for change in (
                {"tensorrt": "10.3.1"},
                {"gpu": "x"},
                {"compute_capability": "11.0"},
                {"l4t": "36.5"},
                {"library": "tensorrt-rtx"},
            )
        ),
    }
    assert len(digests) == 8
    driver = msgspec.structs.replace(ORIN, driver="13.0")
    assert key_of(trio, "float", driver, BuildOptions()) == usual
    again = msgspec.json.decode(msgspec.json.encode(usual), type=type(usual))
    assert again.digest == usual.digest


def test_a_key_of_the_old_road_needs_its_members(trio: Bundle) -> None:
    with pytest.raises(
        BuildError, match=r"has no model\.dla\.onnx, which the DLA of TensorRT 10\.3\.0 needs"
    ):
        key_of(trio, "float", ORIN, BuildOptions(dla=0), calibrated=True)


def test_the_library_is_found_by_its_specification() -> None:
    fake = FakeTensorRT(version="10.16", gpu="Thor & co", wrong=("int8",), latency_s={"fp16": 0.5})
    again = load_library(fake.simulated.specification)
    assert again.simulated == fake.simulated
    assert version_of(again) == (10, 16)
    assert (is_rtx(again), title_of(again)) == (False, "TensorRT 10.16")
    assert title_of(FakeTensorRT(version="1.7.1")) == "TensorRT-RTX 1.7.1"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such", "no_such does not load: ModuleNotFoundError"),
        ("edgesmith.sdk.testing.fake_tensorrt:made", "AttributeError"),
        ("edgesmith.sdk.testing.fake_tensorrt:make?colour=red", "TypeError: no such fake TensorRT"),
        ("edgesmith.sdk.testing.fake_tensorrt:make?num_DLA_cores=many", "does not load"),
        ("two words", "does not name a TensorRT"),
    ],
)
def test_a_specification_that_leads_nowhere(spec: str, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        load_library(spec)


def test_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = "edgesmith.sdk.testing.fake_tensorrt:make?version="
    found = load_tensorrt({"EDGESMITH_TENSORRT": f"{maker}10.13.3"})
    assert found.require().__version__ == "10.13.3"
    old = load_tensorrt({"EDGESMITH_TENSORRT": f"{maker}8.6.1"})
    assert old.trt is None
    assert old.reason == "TensorRT 8.6.1 is too old: 10.3 (JetPack 6) is the least"
    with pytest.raises(BackendError, match="cannot be used here: TensorRT 8"):
        old.require()
    monkeypatch.setattr("edgesmith.sdk.backends.tensorrt.library.MODULES", ("no_such_tensorrt",))
    assert "python3-libnvinfer" in (load_tensorrt({}).reason or "")


def test_the_target_of_a_fake_is_what_it_simulates() -> None:
    trt: Any = FakeTensorRT(gpu="Thor", compute_capability=(11, 0), l4t="38.4.0", driver="13.0")
    target = detect_target(trt)
    assert (target.gpu, target.compute_capability, target.l4t) == ("Thor", "11.0", "38.4.0")
    assert target.shared_memory
    assert not detect_target(FakeTensorRT(l4t="", compute_capability=(9, 0))).shared_memory


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26\n", "570.124.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "540.4.0"),
        ("something else\n", ""),
    ],
)
def test_the_kernel_driver(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "version").write_text(text)
    assert kernel_driver(tmp_path / "version") == version
    assert kernel_driver(tmp_path / "absent") == ""
