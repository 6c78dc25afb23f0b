from __future__ import annotations

import ctypes
from typing import Any

import pytest

from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.cuda.graph import capture, load_libcuda
from edgesmith.sdk.errors import CudaError
from edgesmith.sdk.testing.fake_cuda import FakeCuda


def test_a_graph_replays_what_was_recorded(gpu: Gpu, cuda: FakeCuda) -> None:
    done: list[str] = []
    with gpu.current():
        stream = gpu.stream()

        def work() -> None:
            cuda.enqueue(stream.handle, lambda: done.append("first"))
            cuda.enqueue(stream.handle, lambda: done.append("second"))

        graph = capture(cuda.libcuda, stream.handle, work)
        stream.synchronize()
        assert done == []
        for _ in range(2):
            graph.launch(stream.handle)
        stream.synchronize()
        assert done == ["first", "second"] * 2
        graph.close()
        graph.close()
        with pytest.raises(CudaError, match="cuGraphLaunch failed: CUDA_ERROR_INVALID_HANDLE"):
            graph.launch(stream.handle)


def test_what_fails_while_recording_leaves_a_usable_stream(gpu: Gpu, cuda: FakeCuda) -> None:
    with gpu.current():
        stream = gpu.stream()

        def work() -> None:
            cuda.enqueue(stream.handle, lambda: None)
            raise KeyError("in the work")

        with pytest.raises(KeyError):
            capture(cuda.libcuda, stream.handle, work)
        assert not cuda.is_capturing(stream.handle)
        capture(cuda.libcuda, stream.handle, lambda: None).close()


def test_a_capture_inside_a_capture_is_refused(gpu: Gpu, cuda: FakeCuda) -> None:
    with gpu.current():
        stream = gpu.stream()
        with pytest.raises(CudaError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            capture(
                cuda.libcuda,
                stream.handle,
                lambda: capture(cuda.libcuda, stream.handle, lambda: None).close(),
            )


def test_a_thread_without_a_context_cannot_record(gpu: Gpu, cuda: FakeCuda) -> None:
    with gpu.current():
        stream = gpu.stream()
    with pytest.raises(CudaError, match=r"CUDA_ERROR_INVALID_CONTEXT .*no CUDA context"):
        capture(cuda.libcuda, stream.handle, lambda: None)


def test_an_instance_that_fails_gives_the_graph_back(
    gpu: Gpu, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.libcuda, "cuGraphInstantiateWithFlags", lambda *arguments: 1)
    with gpu.current():
        stream = gpu.stream()
        with pytest.raises(CudaError, match="cuGraphInstantiate failed: CUDA_ERROR_INVALID_VALUE"):
            capture(cuda.libcuda, stream.handle, lambda: None)
    assert cuda.libcuda.live == 0


def test_a_library_without_graphs_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Old:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"undefined symbol: {name}")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Old())
    caplog.set_level("INFO")
    assert load_libcuda() is None
    assert "no CUDA graphs: undefined symbol: cuStreamBeginCapture_v2" in caplog.text


def test_the_prototypes_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Function:
        argtypes: Any = None
        restype: Any = None

    made: dict[str, Function] = {}

    class Library:
        def __getattr__(self, name: str) -> Function:
            return made.setdefault(name, Function())

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert load_libcuda() is not None
    assert made["cuGraphLaunch"].argtypes == [ctypes.c_void_p, ctypes.c_void_p]
    assert all(function.restype is ctypes.c_int for function in made.values())
