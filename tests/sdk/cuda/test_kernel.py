"""The kernel's own source, compiled as C++ and run over its grid, against sdk/preprocess.py."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cuda.compile import KERNELS, SOURCE
from edgesmith.sdk.cuda.preprocess import BLOCK, JOB, grid_of, job_of, launch_arguments, value_table
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import geometry_of, prepared

Picture = NDArray[np.uint8]
ONE_STEP = 1.0


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The source behind the shim."""
    if not shutil.which("g++"):
        message = "g++ is missing: apt install g++"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    library = tmp_path_factory.mktemp("shim") / "prepare.so"
    shim = Path(__file__).with_name("shim.cpp")
    flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE.parent}"]
    subprocess.run(["g++", *flags, "-o", str(library), str(shim)], check=True, capture_output=True)
    return ctypes.CDLL(str(library))


class Memory:
    """Arrays at aligned addresses, with a guard behind each that has to stay as it was."""

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.uint8], int]] = []

    def put(self, content: NDArray[Any], *, guard: int = 64) -> tuple[int, NDArray[np.uint8]]:
        """Address and bytes of a copy."""
        flat = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
        whole = np.full(flat.size + guard + 16, 0xEE, np.uint8)
        start = -whole.ctypes.data % 8
        whole[start : start + flat.size] = flat
        self._kept.append((whole, start + flat.size))
        return whole.ctypes.data + start, whole[start : start + flat.size]

    def intact(self) -> bool:
        """Whether nothing was written behind an array."""
        return all((whole[end:] == 0xEE).all() for whole, end in self._kept)


def run_kernel(
    library: ctypes.CDLL, preprocess: Preprocess, frames: list[Picture], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The batch that the kernel makes of the frames."""
    memory = Memory()
    jobs = np.zeros(len(frames), JOB)
    geometries = [geometry_of(preprocess, *frame.shape[:2]) for frame in frames]
    for at, (frame, geometry) in enumerate(zip(frames, geometries, strict=True)):
        source, _ = memory.put(frame)
        _, content = job_of(preprocess, geometry, source=source, tables=0)
        tables, room = memory.put(content)
        job, content = job_of(preprocess, geometry, source=source, tables=tables)
        room[:] = content
        jobs[at] = job[0]
    rows, columns = geometries[0].rows, geometries[0].columns
    shape = (len(frames), *preprocess.tensor_shape(*frames[0].shape[:2]))
    out, written = memory.put(np.zeros(shape, dtype))
    launch = getattr(library, f"launch_{KERNELS[dtype.itemsize]}")
    launch(
        (ctypes.c_uint * 3)(*grid_of(rows, columns, len(frames))),
        (ctypes.c_uint * 3)(*BLOCK),
        ctypes.c_void_p(memory.put(jobs)[0]),
        ctypes.c_void_p(out),
        ctypes.c_void_p(memory.put(value_table(preprocess, dtype))[0]),
        *launch_arguments(preprocess, rows, columns),
    )
    assert memory.intact()
    return written.view(dtype).reshape(shape)


def draw(rng: np.random.Generator) -> tuple[Preprocess, Picture]:
    """A preprocess and a frame of any kind; small ones, as the shim is slow."""

    def one_of(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    def side() -> int:
        return int(rng.integers(1, 9) if rng.random() < 0.3 else rng.integers(1, 120))

    fit = one_of("letterbox", "letterbox", "stretch", "resize-crop", "none")
    interpolation = one_of("linear", "linear", "area", "cubic", "nearest")
    height, width = (1, 1) if rng.random() < 0.05 else (side(), side())
    size = one_of((height, width), None) if fit == "none" else (side() // 2 + 1, side() // 2 + 1)
    color = one_of("rgb", "bgr", "y")
    channels = 1 if color == "y" else 3
    preprocess = Preprocess(
        size=size,
        fit=fit,
        anchor=one_of("center", "top-left"),
        pad=int(rng.integers(256)),
        upscale=one_of(True, False),
        color=color,
        mean=tuple(rng.uniform(0, 1, one_of(1, channels))),
        std=tuple(rng.uniform(0.2, 1, one_of(1, channels))),
        interpolation=interpolation,
        antialias=interpolation in ("linear", "cubic") and one_of(True, False),
        rounding=one_of("round", "floor"),
        layout=one_of("nchw", "nchw", "nchw", "nhwc"),
    )
    return preprocess, rng.integers(0, 256, (height, width, 3), np.uint8)


def steps_apart(preprocess: Preprocess, got: NDArray[Any], want: NDArray[Any]) -> float:
    """The largest difference in steps of the uint8 pixel before the arithmetic."""
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    if preprocess.layout == "nhwc":
        return float(difference.max())
    std = np.resize(np.asarray(preprocess.std), preprocess.channels)[:, None, None]
    return float((difference * std / preprocess.scale).max())


@pytest.mark.parametrize("seed", range(200))
def test_the_kernel_gives_what_the_host_gives(kernel: ctypes.CDLL, seed: int) -> None:
    preprocess, frame = draw(np.random.default_rng(seed))
    want, _ = prepared(preprocess, frame)
    half = seed % 4 == 0 and preprocess.layout == "nchw"
    got = run_kernel(kernel, preprocess, [frame], np.dtype(np.float16) if half else want.dtype)
    # float16 rounds what it is given: up to half a unit in its last place, here 2^-9 of the value.
    rounding = float(np.abs(want).max()) / 2**10 * 255 if half else 1e-3
    assert steps_apart(preprocess, got, want) <= ONE_STEP + rounding
    if preprocess.interpolation == "nearest" and not half:
        np.testing.assert_array_equal(got, want)


def test_what_is_not_resized_is_exact(kernel: ctypes.CDLL, picture: Callable[..., Picture]) -> None:
    preprocess = Preprocess(size=None, fit="none", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    frame = picture(37, 53)
    want, _ = prepared(preprocess, frame)
    np.testing.assert_array_equal(run_kernel(kernel, preprocess, [frame], want.dtype), want)


def test_few_pixels_differ_at_all(kernel: ctypes.CDLL, picture: Callable[..., Picture]) -> None:
    """OpenCV's linear resize drops bits between its two passes, here none are: a small share, by one step."""
    preprocess = Preprocess(size=(104, 104))
    frame = picture(270, 480)
    want, _ = prepared(preprocess, frame)
    got = run_kernel(kernel, preprocess, [frame], want.dtype)
    assert np.mean(got != want) < 0.1


def test_frames_of_several_sizes_share_a_batch(kernel: ctypes.CDLL, picture: Callable[..., Picture]) -> None:
    preprocess = Preprocess(size=(40, 56), interpolation="nearest")
    frames = [picture(80, 60), picture(1, 1), picture(40, 56), picture(13, 200)]
    got = run_kernel(kernel, preprocess, frames, np.dtype(np.float32))
    for row, frame in zip(got, frames, strict=True):
        np.testing.assert_array_equal(row, prepared(preprocess, frame)[0][0])
