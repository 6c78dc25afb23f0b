from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.sdk.cuda import compile as kernels
from edgesmith.sdk.errors import BuildError

# Found before any fixture takes them away.
NVCC, NVRTC = kernels.find_nvcc(), kernels.find_nvrtc()
Component = Callable[[str], None]


def nvcc_of(component: Component) -> Path:
    component("nvcc")
    assert NVCC is not None
    return NVCC


def test_nvcc_compiles_for_every_board(component: Component) -> None:
    image = kernels.compile_nvcc(nvcc_of(component), *kernels.ARCHITECTURES, portable="87")
    for name in kernels.KERNELS.values():
        assert image.count(name.encode()) >= len(kernels.ARCHITECTURES)


def test_nvcc_says_what_it_refuses(component: Component) -> None:
    with pytest.raises(BuildError, match=r"nvcc refuses prepare\.cu: .*compute_10'"):
        kernels.compile_nvcc(nvcc_of(component), "10")


def test_the_shipped_assembly_is_that_of_the_source() -> None:
    first, _, rest = kernels.PORTABLE.read_text().partition("\n")
    assert first == f"// prepare.cu {kernels.source_hash()}", "run python -m edgesmith.sdk.cuda.compile"
    assert ".version 7.4\n.target sm_75" in rest
    assert all(f".entry {name}(" in rest for name in kernels.KERNELS.values())


def test_the_shipped_assembly_assembles_for_every_board(component: Component) -> None:
    nvcc = nvcc_of(component)
    assembler = next(
        (p for p in (nvcc.with_name("ptxas"), Path("/usr/local/cuda/bin/ptxas")) if p.is_file()), None
    )
    assert assembler is not None
    for architecture in ("75", *kernels.ARCHITECTURES):
        command = [str(assembler), f"-arch=sm_{architecture}", "-o", "/dev/null", str(kernels.PORTABLE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_nvrtc_compiles_too() -> None:
    if NVRTC is None:
        pytest.skip("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    image = kernels.compile_nvrtc(NVRTC, "87")
    assert image[:4] == b"\x7fELF"
    with pytest.raises(BuildError, match=r"NVRTC refuses prepare\.cu for sm_1: .*arch"):
        kernels.compile_nvrtc(NVRTC, "1")


def test_without_a_compiler_the_assembly_serves() -> None:
    assert kernels.kernel_image("8.7") == kernels.PORTABLE.read_bytes()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A compiler that answers with the architecture; what it was asked for."""
    asked: list[str] = []

    def compiled(path: Path, architecture: str) -> bytes:
        asked.append(architecture)
        return f"code for {architecture}".encode()

    monkeypatch.setattr(kernels, "find_nvcc", lambda: Path("/opt/nvcc"))
    monkeypatch.setitem(kernels.COMPILERS, "nvcc", compiled)
    return asked


def test_it_compiles_once_for_each_gpu(compiler: list[str], tmp_path: Path) -> None:
    for capability in ("8.7", "8.7", "11.0", "8.7"):
        image = kernels.kernel_image(capability, folder=tmp_path)
        assert image == f"code for {capability.replace('.', '')}".encode()
    assert compiler == ["87", "110"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_damaged_cache_is_compiled_anew(
    compiler: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernels.kernel_image("8.7", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert kernels.kernel_image("8.7", folder=tmp_path) == b"code for 87"
    assert compiler == ["87", "87"]
    assert "is damaged: the kernel is compiled anew" in caplog.text


def test_a_cache_that_cannot_be_written_costs_time_only(
    compiler: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert kernels.kernel_image("8.7", folder=tmp_path / "file" / "below") == b"code for 87"
    assert "cannot be kept" in caplog.text


def test_a_compiler_that_refuses_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(path: Path, architecture: str) -> bytes:
        raise BuildError("nvcc refuses prepare.cu: no host compiler")

    monkeypatch.setattr(kernels, "find_nvcc", lambda: Path("/opt/nvcc"))
    monkeypatch.setitem(kernels.COMPILERS, "nvcc", refusing)
    assert kernels.kernel_image("8.7", folder=tmp_path) == kernels.PORTABLE.read_bytes()
    assert "no host compiler; trying another way" in caplog.text
