from __future__ import annotations

import numpy as np
import pytest

from edgesmith.sdk.cuda.buffers import Buffers
from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.errors import CudaError
from edgesmith.sdk.testing.fake_cuda import FakeCuda


def test_bytes_go_there_and_back(gpu: Gpu, cuda: FakeCuda) -> None:
    buffers = Buffers(gpu)
    with gpu.current():
        stream, buffer = gpu.stream(), buffers.take(10)
        buffer.array(np.dtype(np.float32), (1, 2))[...] = [[1.5, -2.0]]
        buffer.upload(stream, 8)
        stream.synchronize()
        assert cuda.read(buffer.address, 8).view(np.float32).tolist() == [1.5, -2.0]
        cuda.write(buffer.address, np.array([3.0, 4.0], np.float32))
        buffer.download(stream)
        stream.synchronize()
        assert buffer.array(np.dtype(np.float32), (2,)).tolist() == [3.0, 4.0]
        assert buffer.mapped is cuda.integrated
        assert buffer.address % 4 == 0
        assert buffers.nbytes == 10
        buffers.close()


def test_shared_memory_is_allocated_once_and_never_copied(cuda: FakeCuda, gpu: Gpu) -> None:
    with gpu.current():
        buffers = Buffers(gpu)
        buffers.take(100)
        buffers.take(100, host=False)
        device = 1 if cuda.integrated else 2
        assert (cuda.calls["cuMemHostAlloc"], cuda.calls["cuMemAlloc"]) == (1, device)
        buffers.close()


@pytest.mark.parametrize("call", ["cuMemHostAlloc", "cuMemAlloc"])
def test_half_a_buffer_is_given_back(gpu: Gpu, cuda: FakeCuda, call: str) -> None:
    if cuda.integrated and call == "cuMemAlloc":
        pytest.skip("a mapped buffer is one allocation")
    with gpu.current():
        buffers = Buffers(gpu)
        buffers.take(64)
        cuda.fail(call)
        with pytest.raises(CudaError, match="no memory for 128 bytes on Fake GPU: CUDA_ERROR_OUT_OF_MEM"):
            buffers.take(128)
        buffers.close()
    gpu.close()
    assert cuda.leaks() == {}


def test_a_buffer_is_freed_alone_and_its_view_is_gone(gpu: Gpu, cuda: FakeCuda) -> None:
    with gpu.current():
        buffers = Buffers(gpu)
        first, second = buffers.take(8), buffers.take(8)
        buffers.give_back(first)
        assert (first.host.size, first.address) == (0, 0)
        assert second.host.size == 8
        buffers.close()
        buffers.close()


def test_an_error_while_freeing_does_not_keep_the_rest(gpu: Gpu, cuda: FakeCuda) -> None:
    with gpu.current():
        buffers = Buffers(gpu)
        taken = [buffers.take(8) for _ in range(3)]
        block = cuda.find(taken[1].address, 8)
        cuda.release(block)  # behind its owner's back
        with pytest.raises(cuda.driver.LogicError, match="freed already"):
            buffers.close()


def test_nothing_has_room_too(gpu: Gpu) -> None:
    with gpu.current():
        buffers, stream = Buffers(gpu), gpu.stream()
        empty = buffers.take(0)
        empty.upload(stream)
        empty.download(stream)
        stream.synchronize()
        assert empty.array(np.dtype(np.float32), (0, 4)).shape == (0, 4)
        buffers.close()
