"""The launching side of the kernel, on the fake GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cuda.buffers import Buffers
from edgesmith.sdk.cuda.compile import PORTABLE
from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.cuda.preprocess import FramePreparer
from edgesmith.sdk.errors import CameraFormatError, CudaError
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import prepared
from edgesmith.sdk.testing.fake_cuda import FakeCuda

Picture = NDArray[np.uint8]
PLAIN = Preprocess(size=(24, 32), interpolation="nearest", mean=(0.5,), std=(0.25,))


class Rig:
    """A preparer and room for its output."""

    def __init__(self, gpu: Gpu, preprocess: Preprocess, dtype: Any, most: int) -> None:
        self._gpu, self._preprocess, self._dtype = gpu, preprocess, np.dtype(dtype)
        self.buffers = Buffers(gpu)
        with gpu.current():
            self._stream = gpu.stream()
            self.preparer = FramePreparer(gpu, self._stream, preprocess, self._dtype)
            self._out = self.buffers.take(most * 3 * 24 * 32 * self._dtype.itemsize)

    def __call__(self, *frames: Picture) -> NDArray[Any]:
        """The batch as it lies on the GPU; the geometries have to be the host's."""
        with self._gpu.current():
            geometries = self.preparer.place(frames, self._out.address)
            self._out.download(self._stream)
            self._stream.synchronize()
        assert geometries == [prepared(self._preprocess, frame)[1] for frame in frames]
        shape = (len(frames), *self._preprocess.tensor_shape(24, 32))
        return np.array(self._out.array(self._dtype, shape))

    def close(self) -> None:
        """Free all."""
        with self._gpu.current():
            self.preparer.close()
            self.buffers.close()


@pytest.fixture
def rig(gpu: Gpu) -> Iterator[Callable[..., Rig]]:
    """``rig(preprocess, dtype)``."""
    made: list[Rig] = []

    def make(preprocess: Preprocess = PLAIN, dtype: Any = np.float32, most: int = 4) -> Rig:
        made.append(Rig(gpu, preprocess, dtype, most))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("color", ["rgb", "bgr", "y"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("fit", ["letterbox", "stretch", "resize-crop"])
def test_all_layouts(
    rig: Callable[..., Rig], picture: Callable[..., Picture], color: Any, layout: Any, fit: Any
) -> None:
    preprocess = Preprocess(size=(24, 32), interpolation="nearest", color=color, layout=layout, fit=fit)
    run = rig(preprocess, np.float32 if layout == "nchw" else np.uint8)
    for frame in (picture(50, 40), picture(1, 1), picture(7, 90)):
        np.testing.assert_array_equal(run(frame)[0], prepared(preprocess, frame)[0][0])


def test_float16_is_the_host_value_rounded_once(
    rig: Callable[..., Rig], picture: Callable[..., Picture]
) -> None:
    frame = picture(50, 40)
    got = rig(PLAIN, np.float16)(frame)
    np.testing.assert_array_equal(got[0], prepared(PLAIN, frame)[0][0].astype(np.float16))


def test_frames_change_size_and_number(rig: Callable[..., Rig], picture: Callable[..., Picture]) -> None:
    run = rig()
    batches = [
        [(50, 40)],
        [(50, 40), (20, 20)],
        [(100, 90), (20, 20), (5, 5), (60, 60)],
        [(5, 5)],
        [(50, 40), (100, 90)],
    ]
    for number, sizes in enumerate(batches):
        frames = [picture(*size, seed=number) for size in sizes]
        for row, frame in zip(run(*frames), frames, strict=True):
            np.testing.assert_array_equal(row, prepared(PLAIN, frame)[0][0])


def test_a_film_allocates_nothing_after_its_first_frame(
    rig: Callable[..., Rig], picture: Callable[..., Picture], cuda: FakeCuda
) -> None:
    run = rig()
    run(picture(50, 40))
    before = dict(cuda.calls)
    for number in range(3):
        run(picture(50, 40, seed=number))
    assert dict(cuda.calls) == before


def test_frames_with_gaps_are_refused(rig: Callable[..., Rig], picture: Callable[..., Picture]) -> None:
    run = rig()
    frame = picture(50, 40)
    for gapped in (frame[:, ::-1], frame[:, :20], frame[..., ::-1], frame.transpose(1, 0, 2)):
        with pytest.raises(CameraFormatError, match=r"np\.ascontiguousarray"):
            run(gapped)
    with pytest.raises(CameraFormatError, match="BGR uint8"):
        run(frame.astype(np.float32))
    np.testing.assert_array_equal(run(frame)[0], prepared(PLAIN, frame)[0][0])


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_no_memory_at_any_moment_leaves_nothing(
    gpu: Gpu, cuda: FakeCuda, picture: Callable[..., Picture], call: int
) -> None:
    with gpu.current():
        stream, buffers = gpu.stream(), Buffers(gpu)
        out = buffers.take(2 * 3 * 24 * 32 * 4)
        cuda.fail("cuMemHostAlloc", call)
        preparers: list[FramePreparer] = []

        def work() -> None:
            preparers.append(FramePreparer(gpu, stream, PLAIN, np.dtype(np.float32)))
            for size in ((50, 40), (70, 60)):
                preparers[0].place([picture(*size)], out.address)
                stream.synchronize()

        with pytest.raises(CudaError) as caught:
            work()
        assert caught.value.name == "CUDA_ERROR_OUT_OF_MEMORY"
        stream.synchronize()
        for preparer in preparers:
            # It goes on where there is memory again.
            frame = picture(70, 60)
            preparer.place([frame], out.address)
            out.download(stream)
            stream.synchronize()
            got = out.array(np.dtype(np.float32), (3, 24, 32))
            np.testing.assert_array_equal(got, prepared(PLAIN, frame)[0][0])
            preparer.close()
        buffers.close()


def test_code_that_does_not_load_gives_way_to_the_portable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, picture: Callable[..., Picture]
) -> None:
    portable = PORTABLE.read_bytes()
    device = FakeCuda(loads=lambda image: image == portable)
    monkeypatch.setattr("edgesmith.sdk.cuda.preprocess.kernel_image", lambda capability: b"too new")
    gpu = Gpu(driver=device.driver)
    run = Rig(gpu, PLAIN, np.float32, 1)
    assert "does not load (cuModuleLoadDataEx failed" in caplog.text
    frame = picture(50, 40)
    np.testing.assert_array_equal(run(frame)[0], prepared(PLAIN, frame)[0][0])
    run.close()
    gpu.close()
    assert device.leaks() == {}


def test_no_code_that_loads_is_an_error() -> None:
    device = FakeCuda(loads=lambda image: False)
    gpu = Gpu(driver=device.driver)
    with (
        pytest.raises(CudaError, match="the preprocess kernel does not load: CUDA_ERROR_INVALID_IMAGE"),
        gpu.current(),
    ):
        FramePreparer(gpu, gpu.stream(), PLAIN, np.dtype(np.float32))
    gpu.close()
    assert device.leaks() == {}
