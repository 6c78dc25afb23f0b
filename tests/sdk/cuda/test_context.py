from __future__ import annotations

import sys
import threading
from types import ModuleType

import pytest

from edgesmith.sdk.cuda.context import ERRORS, Gpu, cuda_error, load_driver
from edgesmith.sdk.errors import CudaError, MissingExtraError
from edgesmith.sdk.testing.fake_cuda import FakeCuda


def test_what_the_gpu_is(gpu: Gpu, cuda: FakeCuda) -> None:
    facts = gpu.facts
    assert (facts.name, facts.compute_capability, facts.driver) == ("Fake GPU", "8.7", "12.6")
    assert facts.integrated is cuda.integrated
    assert facts.memory_bytes == 8 << 30


def test_nothing_stays_pushed(gpu: Gpu, cuda: FakeCuda) -> None:
    with gpu.current():
        assert cuda.leaks()["pushed contexts"] == 1
    assert "pushed contexts" not in cuda.leaks()
    with pytest.raises(KeyError), gpu.current():
        raise KeyError
    assert "pushed contexts" not in cuda.leaks()


def test_every_thread_may_use_it_and_close_it(cuda: FakeCuda) -> None:
    gpu = Gpu(driver=cuda.driver)
    done: list[int] = []

    def work() -> None:
        with gpu.current():
            memory = cuda.driver.mem_alloc(8)
            memory.free()
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    closer = threading.Thread(target=gpu.close)
    closer.start()
    closer.join()
    assert cuda.leaks() == {}
    gpu.close()
    with pytest.raises(CudaError, match="the run failed: this GPU was closed"), gpu.current("the run failed"):
        pass


def test_an_error_has_name_explanation_and_mend(gpu: Gpu, cuda: FakeCuda) -> None:
    cuda.fail("cuMemAlloc")
    with pytest.raises(CudaError) as caught, gpu.current("no scratch memory"):
        cuda.driver.mem_alloc(4)
    assert caught.value.name == "CUDA_ERROR_OUT_OF_MEMORY"
    assert str(caught.value).startswith("no scratch memory: CUDA_ERROR_OUT_OF_MEMORY (cuMemAlloc failed: ")
    assert "free GPU memory" in str(caught.value)


def test_a_gpu_that_is_not_there(cuda: FakeCuda) -> None:
    with pytest.raises(CudaError, match=r"GPU 3 cannot be opened: CUDA_ERROR_INVALID_DEVICE .*count from 0"):
        Gpu(3, driver=cuda.driver)


@pytest.mark.parametrize(("said", "name", "advice"), ERRORS)
def test_known_errors(said: str, name: str, advice: str) -> None:
    error = cuda_error("it failed", f"cuCall failed: {said}")
    assert error.name == name
    assert str(error) == f"it failed: {name} (cuCall failed: {said}); {advice}"


def test_unknown_errors_keep_the_drivers_words() -> None:
    error = cuda_error("it failed", "the moon is full", name="CUDA_ERROR_MOON")
    assert (error.name, str(error)) == ("CUDA_ERROR_MOON", "it failed: CUDA_ERROR_MOON (the moon is full)")


def test_without_pycuda_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(MissingExtraError, match=r"edgesmith\[gpu\]"):
        load_driver()


def test_without_a_cuda_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "pycuda.driver":
                raise ImportError("libcuda.so.1: cannot open shared object file")

    package = ModuleType("pycuda")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(CudaError, match=r"no CUDA driver on this machine: libcuda\.so\.1"):
        load_driver()
