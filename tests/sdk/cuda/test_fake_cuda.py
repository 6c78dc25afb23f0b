"""The contract that the fake GPU holds its users to: each breach is an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.cuda.graph import capture
from edgesmith.sdk.testing.fake_cuda import Error, FakeCuda, LogicError

FOUR = np.arange(4, dtype=np.uint8)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """A discrete GPU."""
    device = FakeCuda()
    yield device
    assert device.leaks() == {}


@pytest.fixture
def current(cuda: FakeCuda) -> Iterator[FakeCuda]:
    """The same, its context current."""
    gpu = Gpu(driver=cuda.driver)
    with gpu.current():
        yield cuda
    gpu.close()


def pinned(cuda: FakeCuda, nbytes: int = 4) -> Any:
    return cuda.driver.pagelocked_empty(nbytes, np.uint8)


def test_work_is_done_when_it_is_waited_for(current: FakeCuda) -> None:
    stream, memory, host = current.driver.Stream(1), current.driver.mem_alloc(4), pinned(current)
    host[:] = FOUR
    current.driver.memcpy_htod_async(int(memory), host, stream)
    assert current.read(int(memory), 4).tolist() != [0, 1, 2, 3]
    host[3] = 9  # too early: the copy has not begun
    stream.synchronize()
    assert current.read(int(memory), 4).tolist() == [0, 1, 2, 9]
    host.base.free()
    memory.free()


def test_freed_memory_is_not_used(current: FakeCuda) -> None:
    stream, memory, host = current.driver.Stream(1), current.driver.mem_alloc(4), pinned(current)
    current.driver.memcpy_htod_async(int(memory), host, stream)
    memory.free()
    with pytest.raises(LogicError, match=r"illegal memory access.*it was freed"):
        stream.synchronize()
    with pytest.raises(LogicError, match="freed already"):
        memory.free()
    with pytest.raises(LogicError, match="it was freed"):
        current.driver.memcpy_htod_async(int(memory), host, stream)
    other = current.driver.mem_alloc(4)
    current.driver.memcpy_htod_async(int(other), host, stream)
    host.base.free()
    with pytest.raises(LogicError, match="it was freed"):
        stream.synchronize()
    other.free()


@pytest.mark.parametrize(("at", "nbytes"), [(0, 5), (1, 4), (-1, 1), (4, 1)])
def test_copies_stay_inside(current: FakeCuda, at: int, nbytes: int) -> None:
    stream, memory, host = current.driver.Stream(1), current.driver.mem_alloc(4), pinned(current, nbytes)
    with pytest.raises(LogicError, match="illegal memory access"):
        current.driver.memcpy_htod_async(int(memory) + at, host, stream)
    with pytest.raises(LogicError, match="illegal memory access"):
        current.driver.memcpy_dtoh_async(host, int(memory) + at, stream)
    memory.free()
    host.base.free()


def test_host_memory_is_the_devices_only_where_it_is_mapped(current: FakeCuda) -> None:
    host = pinned(current)
    with pytest.raises(LogicError, match="invalid argument"):
        host.base.get_device_pointer()
    with pytest.raises(LogicError, match="not mapped"):
        current.read(host.ctypes.data, 4)
    flags = current.driver.host_alloc_flags.DEVICEMAP
    mapped: Any = current.driver.pagelocked_empty(4, np.uint8, mem_flags=flags)
    mapped[:] = FOUR
    assert current.read(mapped.base.get_device_pointer(), 4).tolist() == [0, 1, 2, 3]
    host.base.free()
    mapped.base.free()


def test_a_thread_needs_a_context(current: FakeCuda) -> None:
    errors: list[BaseException] = []
    stream, memory, host = current.driver.Stream(1), current.driver.mem_alloc(4), pinned(current)

    def work() -> None:
        for call in (
            lambda: current.driver.mem_alloc(4),
            lambda: current.driver.memcpy_htod_async(int(memory), host, stream),
            stream.synchronize,
            memory.free,
            lambda: current.driver.module_from_buffer(b"code"),
            current.driver.Context.pop,
        ):
            with pytest.raises(LogicError, match="context") as caught:
                call()
            errors.append(caught.value)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 6
    memory.free()
    host.base.free()


def test_a_capture_forbids_what_waits_and_allocates(current: FakeCuda) -> None:
    stream, host = current.driver.Stream(1), pinned(current)
    calls: list[Callable[[], Any]] = [
        lambda: current.driver.mem_alloc(4),
        host.base.free,
        stream.synchronize,
        stream.is_done,
        lambda: current.driver.Stream(1),
    ]
    for forbidden in calls:
        with pytest.raises(LogicError, match="not permitted when stream is capturing"):
            capture(current.libcuda, stream.handle, forbidden)
        assert not current.is_capturing(stream.handle)
        stream.synchronize()
    host.base.free()


def test_a_capture_that_was_spoiled_gives_no_graph(current: FakeCuda) -> None:
    from edgesmith.sdk.errors import CudaError

    stream = current.driver.Stream(1)

    def careless() -> None:
        with pytest.raises(Error):
            stream.synchronize()

    with pytest.raises(CudaError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        capture(current.libcuda, stream.handle, careless)


def test_a_capture_takes_no_ordinary_memory(current: FakeCuda) -> None:
    stream, memory = current.driver.Stream(1), current.driver.mem_alloc(4)
    with pytest.raises(LogicError, match="capturing"):
        capture(
            current.libcuda,
            stream.handle,
            lambda: current.driver.memcpy_htod_async(int(memory), FOUR.copy(), stream),
        )
    memory.free()


def test_leaks_are_counted() -> None:
    device = FakeCuda()
    gpu = Gpu(driver=device.driver)
    with gpu.current():
        memory, host, stream = device.driver.mem_alloc(4), pinned(device), device.driver.Stream(1)
        graph = capture(device.libcuda, stream.handle, lambda: None)
        assert device.leaks() == {
            "device allocations": 1,
            "pinned allocations": 1,
            "graphs": 1,
            "retained contexts": 1,
            "pushed contexts": 1,
        }
        graph.close()
        memory.free()
        host.base.free()
    gpu.close()
    assert device.leaks() == {}


def test_memory_is_bounded_and_fails_when_told() -> None:
    device = FakeCuda(memory_bytes=1000)
    gpu = Gpu(driver=device.driver)
    with gpu.current():
        memory = device.driver.mem_alloc(900)
        with pytest.raises(device.driver.MemoryError, match="out of memory"):
            device.driver.mem_alloc(200)
        memory.free()
        device.fail("cuMemAlloc", 2)
        device.driver.mem_alloc(200).free()
        with pytest.raises(device.driver.MemoryError, match="out of memory"):
            device.driver.mem_alloc(200)
    gpu.close()
    assert device.leaks() == {}
