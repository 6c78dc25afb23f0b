"""The backend that all GPU engines share, around an engine that is worked out by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.cuda.backend import LANES, DeviceBackend, InputSpec
from edgesmith.sdk.cuda.context import Gpu
from edgesmith.sdk.cuda.lane import Tensor
from edgesmith.sdk.errors import BackendError, BindingError, CameraFormatError, CudaError
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import prepared
from edgesmith.sdk.testing.fake_cuda import FakeCuda

Picture = NDArray[np.uint8]
PREPROCESS = Preprocess(size=(4, 6), interpolation="nearest")
SPEC = InputSpec(name="images", dtype="float32", shape=(None, 3, None, None))


class Doubling:
    """An execution whose output is twice its input."""

    opened = 0
    closed = 0

    def __init__(self, cuda: FakeCuda, tensor: Tensor, *, capturable: bool = True) -> None:
        self._cuda, self._tensor, self.capturable = cuda, tensor, capturable
        self.outputs: tuple[Tensor, ...] = (Tensor("twice", tensor.dtype, tensor.shape),)
        self._at: Mapping[str, int] = {}
        type(self).opened += 1

    def bind(self, addresses: Mapping[str, int]) -> None:
        self._at = addresses

    def enqueue(self, stream: Any) -> None:
        nbytes = self._tensor.nbytes

        def work() -> None:
            values = self._cuda.read(self._at["images"], nbytes).view(np.float32)
            self._cuda.write(self._at["twice"], values * 2)

        self._cuda.enqueue(stream.handle, work)

    def close(self) -> None:
        type(self).closed += 1


class Failing(Doubling):
    """Fails after it has put something into the stream."""

    def enqueue(self, stream: Any) -> None:
        super().enqueue(stream)
        raise BackendError("refused")


Make = Callable[..., DeviceBackend]


@pytest.fixture
def make(cuda: FakeCuda) -> Make:
    """``make(execution, libcuda, ...)``."""

    def build(
        kind: type[Doubling] = Doubling, *, graphs: bool = True, capturable: bool = True, **more: Any
    ) -> DeviceBackend:
        kind.opened = kind.closed = 0
        return DeviceBackend(
            name="test",
            detail="by hand",
            variant="float",
            gpu=Gpu(driver=cuda.driver),
            spec=SPEC,
            open_execution=lambda tensor, address, stream: kind(cuda, tensor, capturable=capturable),
            libcuda=cuda.libcuda if graphs else None,
            **{"preprocess": PREPROCESS, "clone": lambda: build(kind, graphs=graphs), **more},
        )

    return build


def ones(count: int, side: int = 4) -> NDArray[np.float32]:
    return np.full((count, 3, side, 6), 1.25, np.float32)


@pytest.mark.parametrize("graphs", [True, False])
def test_runs_are_replayed_where_they_can_be(make: Make, cuda: FakeCuda, graphs: bool) -> None:
    backend = make(graphs=graphs)
    for number in range(4):
        images = ones(2) * number
        np.testing.assert_array_equal(backend.run(images)["twice"], images * 2)
    assert backend.graphs == int(graphs)
    assert cuda.calls["cuGraphLaunch"] == (3 if graphs else 0)
    backend.close()


def test_the_outputs_are_the_callers(make: Make) -> None:
    backend = make()
    first = backend.run(ones(1))["twice"]
    second = backend.run(ones(1) * 3)["twice"]
    assert (first.max(), second.max()) == (2.5, 7.5)
    backend.close()
    assert first.max() == 2.5


def test_a_graph_that_cannot_be_recorded_is_done_without(
    make: Make, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.graphs = False
    backend = make()
    for _ in range(3):
        np.testing.assert_array_equal(backend.run(ones(1))["twice"], 2.5)
    assert backend.graphs == 0
    assert caplog.text.count("runs without a CUDA graph: cuStreamEndCapture failed") == 1
    backend.close()


def test_an_engine_that_replays_itself_is_not_recorded(make: Make, cuda: FakeCuda) -> None:
    backend = make(capturable=False)
    backend.run(ones(1))
    backend.run(ones(1))
    assert (backend.graphs, cuda.calls["cuGraphLaunch"]) == (0, 0)
    backend.close()


def test_each_shape_has_its_lane_and_the_oldest_goes(make: Make) -> None:
    backend = make()
    for count in (*range(1, LANES + 1), 1, LANES + 1):
        np.testing.assert_array_equal(backend.run(ones(count))["twice"], 2.5)
    assert (Doubling.opened, Doubling.closed) == (LANES + 1, 1)
    backend.run(ones(1))  # was used late: it is still there
    assert Doubling.opened == LANES + 1
    backend.run(ones(2))
    assert Doubling.opened == LANES + 2
    backend.close()
    assert Doubling.closed == Doubling.opened


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 4, 4, 6), np.float32), np.zeros((3, 4, 6), np.float32), np.zeros((1, 3, 4, 6), complex)],
)
def test_what_does_not_fit_is_refused(make: Make, images: Any) -> None:
    backend = make()
    with pytest.raises(BindingError, match=r"input images is float32 \(any, 3, any, any\), got "):
        backend.run(images)
    np.testing.assert_array_equal(backend.run(ones(1).astype(np.float64))["twice"], 2.5)
    backend.close()


def test_frames_are_prepared_on_the_gpu(make: Make, picture: Callable[..., Picture]) -> None:
    backend = make()
    device = backend.on_device
    assert device is not None
    for sizes in ([(8, 9)], [(8, 9), (30, 20)], [(2, 2)]):
        frames = [picture(*size) for size in sizes]
        geometries = device.prepare(frames, 3)
        outputs = device.run_prepared()["twice"]
        assert outputs.shape == (3, 3, 4, 6)
        for row, frame, geometry in zip(outputs, frames, geometries, strict=False):
            want, where = prepared(PREPROCESS, frame)
            np.testing.assert_array_equal(row, want[0] * 2)
            assert geometry == where
    backend.close()


def test_frames_with_gaps_are_packed_on_the_way(make: Make, picture: Callable[..., Picture]) -> None:
    backend = make()
    mirrored = picture(8, 9)[:, ::-1]
    backend.prepare([mirrored], 1)
    np.testing.assert_array_equal(
        backend.run_prepared()["twice"][0], prepared(PREPROCESS, mirrored)[0][0] * 2
    )
    with pytest.raises(CameraFormatError, match="BGR uint8"):
        backend.prepare([mirrored[..., 0]], 1)
    backend.close()


def test_each_run_needs_its_preparation(make: Make, picture: Callable[..., Picture]) -> None:
    backend = make()
    backend.prepare([picture(8, 9)], 1)
    backend.run_prepared()
    with pytest.raises(BackendError, match="no batch was prepared"):
        backend.run_prepared()
    backend.close()


def test_a_batch_that_had_to_go_is_not_run(make: Make, picture: Callable[..., Picture]) -> None:
    backend = make()
    backend.prepare([picture(8, 9)], 9)
    for count in range(1, LANES + 1):
        backend.run(ones(count))
    with pytest.raises(BackendError, match="no batch was prepared"):
        backend.run_prepared()
    backend.close()


@pytest.mark.parametrize("dtype", ["int8", "float64"])
def test_an_input_that_the_kernel_does_not_write_is_left_to_the_host(cuda: FakeCuda, dtype: str) -> None:
    backend = DeviceBackend(
        name="test", detail="", variant="float", gpu=Gpu(driver=cuda.driver),
        spec=InputSpec(name="images", dtype=dtype, shape=(None,)),
        open_execution=lambda tensor, address, stream: Doubling(cuda, tensor), preprocess=PREPROCESS,
    )  # fmt: skip
    assert backend.on_device is None
    with pytest.raises(BackendError, match="does not prepare frames"):
        backend.prepare([], 1)
    backend.close()


def test_a_kernel_that_does_not_load_is_left_to_the_host(
    make: Make, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.loads = lambda image: False
    backend = make()
    assert backend.on_device is None
    assert "frames are prepared on the host: the preprocess kernel does not load" in caplog.text
    np.testing.assert_array_equal(backend.run(ones(1))["twice"], 2.5)
    backend.close()


def test_after_an_error_nothing_is_left_in_the_stream(make: Make, cuda: FakeCuda) -> None:
    backend = make(Failing)
    for _ in range(2):
        with pytest.raises(BackendError, match="refused"):
            backend.run(ones(1))
        assert not any(stream.pending for stream in cuda._streams.values())
    backend.close()


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_no_memory_for_a_shape_leaves_the_others(make: Make, cuda: FakeCuda, call: int) -> None:
    backend = make(preprocess=None)
    backend.run(ones(1))
    cuda.fail("cuMemHostAlloc", call)
    if call > 2:  # a lane takes two
        backend.run(ones(2))
    with pytest.raises(CudaError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        backend.run(ones(3))
    np.testing.assert_array_equal(backend.run(ones(1))["twice"], 2.5)
    np.testing.assert_array_equal(backend.run(ones(3))["twice"], 2.5)
    backend.close()


def test_it_may_be_used_and_closed_by_any_thread(make: Make) -> None:
    backend = make()
    found: list[float] = []

    def work() -> None:
        found.append(float(backend.run(ones(1))["twice"].max()))

    for target in (work, work, backend.close):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert found == [2.5, 2.5]


def test_clones_have_a_stream_of_their_own(make: Make) -> None:
    backend = make()
    clones = [backend.clone() for _ in range(3)]
    wrong: list[int] = []

    def work(clone: DeviceBackend, number: int) -> None:
        for count in (1, 2, 1, 3):
            got = clone.run(ones(count) * number)["twice"]
            wrong.extend([number] * int((got != 2.5 * number).any()))

    threads = [threading.Thread(target=work, args=(clone, n)) for n, clone in enumerate(clones)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for one in (backend, *clones):
        one.close()


def test_what_is_closed_is_refused(make: Make, picture: Callable[..., Picture]) -> None:
    released: list[int] = []
    backend = make(release=lambda: released.append(1))
    backend.prepare([picture(8, 9)], 1)
    backend.close()
    backend.close()
    assert released == [1]
    for call in (
        lambda: backend.run(ones(1)),
        lambda: backend.prepare([picture(8, 9)], 1),
        backend.run_prepared,
        backend.clone,
    ):
        with pytest.raises(BackendError):
            call()


def test_an_error_on_close_frees_the_rest_and_is_raised(make: Make, cuda: FakeCuda) -> None:
    def release() -> None:
        raise BackendError("the engine would not go")

    backend = make(release=release)
    backend.run(ones(1))
    with pytest.raises(BackendError, match="would not go"):
        backend.close()
    assert cuda.leaks() == {}
