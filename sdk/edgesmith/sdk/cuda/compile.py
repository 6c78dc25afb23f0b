"""The preprocess kernel as code for the GPU: from the cache, a compiler of this machine, or the package.

1. A compiler that is here (nvcc, else NVRTC, which onnxruntime-gpu and JetPack bring) compiles it once
   for this GPU; the code is kept in the user's cache folder, its hash before it.
2. Without one the package's own ``prepare.ptx`` serves: portable assembly that any driver since CUDA
   11.4 compiles for GPUs of compute capability 7.5 and later, in some tens of milliseconds at each load.

Why assembly ships and not a fat binary: it is a third of the size, can be read, and does not tie a
board to the CUDA version of the machine that made it (code of nvcc 13 does not load under JetPack 6).
``python -m edgesmith.sdk.cuda.compile`` writes it anew; a test holds it against the source.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import logging
import os
import re
import secrets
import shutil
import site
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgesmith.sdk.board.facts import cache_folder
from edgesmith.sdk.errors import BuildError

log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parent / "kernels"
SOURCE = FOLDER / "prepare.cu"
PORTABLE = FOLDER / "prepare.ptx"
KERNELS = {1: "prepare_u8", 2: "prepare_u16", 4: "prepare_u32"}  # by the bytes of an input's element
ARCHITECTURES = ("87", "90", "110", "120")  # Orin, H100, Thor, RTX 50
_PORTABLE_ARCHITECTURE, _PORTABLE_VERSION = "75", "7.4"
_OPTIONS = ("-O3",)
_TIMEOUT_S = 120.0
_HASH_BYTES = 32


def kernel_image(capability: str, *, folder: Path | None = None) -> bytes:
    """Code that the driver loads on a GPU of compute capability ``8.7``; there is always some."""
    architecture = capability.replace(".", "")
    source = SOURCE.read_bytes()
    for name, find in (("nvcc", find_nvcc), ("nvrtc", find_nvrtc)):
        compiler = find()
        if compiler is None:
            continue
        title = hashlib.sha256(source + f"{name} {compiler} {architecture}".encode()).hexdigest()[:24]
        path = (folder or cache_folder() / "kernels") / f"prepare-{architecture}-{title}.bin"
        cached = _cached(path)
        if cached is not None:
            return cached
        try:
            image = COMPILERS[name](compiler, architecture)
        except BuildError as error:
            log.warning("%s; trying another way", error)
            continue
        _keep(path, image)
        return image
    return PORTABLE.read_bytes()


def compile_nvcc(nvcc: Path, *architectures: str, portable: str | None = None) -> bytes:
    """A fat binary with code for each architecture (``87``), and assembly of one where that is named.

    Raises:
        BuildError: the compiler refuses, or takes longer than two minutes.
    """
    targets = []
    for number in architectures:
        targets += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    if portable:
        targets += ["-gencode", f"arch=compute_{portable},code=compute_{portable}"]
    return _run_nvcc(nvcc, ["-fatbin", *targets])


def compile_nvrtc(library: Path, architecture: str) -> bytes:
    """The kernel's code for one architecture (``87``) by NVRTC.

    Raises:
        BuildError: NVRTC refuses.
    """
    try:
        # It looks for its built-ins by name alone, so those beside it have to be there already.
        for builtins in sorted(library.parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        nvrtc = ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{library.name} does not load: {error}") from error
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture=sm_{architecture}".encode())
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), SOURCE.read_bytes(), SOURCE.name.encode(), 0, None, None
    )
    if status:
        raise BuildError(f"NVRTC cannot start: {_nvrtc_text(nvrtc, status)}")
    try:
        status = nvrtc.nvrtcCompileProgram(program, 1, options)
        if status:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            text = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, text)
            said = text.value.decode(errors="replace").strip()[-500:]
            raise BuildError(f"NVRTC refuses {SOURCE.name} for sm_{architecture}: {said}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, image)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image.raw


def portable_assembly(nvcc: Path) -> bytes:
    """What ``prepare.ptx`` holds: assembly marked with the oldest version that has all it uses.

    nvcc marks its assembly with its own version, which older drivers refuse whatever is in it.
    """
    text = _run_nvcc(nvcc, ["-ptx", f"-arch=compute_{_PORTABLE_ARCHITECTURE}"]).decode()
    text, count = re.subn(r"(?m)^\.version \d+\.\d+$", f".version {_PORTABLE_VERSION}", text)
    if count != 1:
        raise BuildError("the assembly of nvcc has no version where one was expected")
    return f"// {SOURCE.name} {source_hash()}\n{text}".encode()


def source_hash() -> str:
    """SHA-256 of the kernel's source."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def find_nvcc() -> Path | None:
    """nvcc on the path, else where CUDA is usually installed."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def find_nvrtc() -> Path | None:
    """NVRTC of the system, else of the nvidia wheels beside this Python."""
    for folder in ("/usr/local/cuda/lib64", *(f"{path}/nvidia" for path in site.getsitepackages())):
        for path in sorted(Path(folder).rglob("libnvrtc.so*"), reverse=True):
            if "builtins" not in path.name and "alt" not in path.name:
                return path
    named = ctypes.util.find_library("nvrtc")
    return Path(named) if named else None


COMPILERS: dict[str, Callable[[Path, str], bytes]] = {"nvcc": compile_nvcc, "nvrtc": compile_nvrtc}


def _run_nvcc(nvcc: Path, arguments: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [str(nvcc), *_OPTIONS, *arguments, "-o", str(out), str(SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"nvcc could not compile {SOURCE.name}: {error}") from error
        if done.returncode or not out.is_file():
            raise BuildError(f"nvcc refuses {SOURCE.name}: {(done.stderr or done.stdout).strip()[-500:]}")
        return out.read_bytes()


def _nvrtc_text(nvrtc: Any, status: int) -> str:
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return str(nvrtc.nvrtcGetErrorString(status).decode())


def _cached(path: Path) -> bytes | None:
    """The code of a cache file, None where there is none or its hash does not fit."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[_HASH_BYTES:]).digest() == content[:_HASH_BYTES]:
        return content[_HASH_BYTES:]
    log.warning("%s is damaged: the kernel is compiled anew", path.name)
    return None


def _keep(path: Path, image: bytes) -> None:
    """Write beside the target and rename: a reader sees all of it or nothing."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(image).digest() + image)
        part.replace(path)
    except OSError as error:
        log.warning("the compiled kernel cannot be kept, the next start compiles it again: %s", error)


if __name__ == "__main__":
    compiler = find_nvcc()
    if compiler is None:
        raise SystemExit("nvcc is not here: install the CUDA toolkit")
    PORTABLE.write_bytes(portable_assembly(compiler))
