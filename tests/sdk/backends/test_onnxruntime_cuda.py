"""onnxruntime's CUDA provider over a fake GPU: the real library computes on the fake's memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.sdk import Detector
from edgesmith.sdk.backends import onnxruntime as backend_module
from edgesmith.sdk.backends.base import Options
from edgesmith.sdk.backends.choose import open_backend
from edgesmith.sdk.backends.onnxruntime import open_bound, open_cuda, open_tensorrt_ep
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cuda.backend import DeviceBackend
from edgesmith.sdk.errors import BackendError, BindingError, MissingExtraError
from edgesmith.sdk.manifest import Batch
from edgesmith.sdk.preprocess import Preprocess
from edgesmith.sdk.testing.fake_cuda import FakeCuda

pytestmark = pytest.mark.usefixtures("without_compilers")

MakeBundle = Callable[..., Path]
CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
# Its output has as many rows as there are bright pixels.
SEEKER = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (int64[4, K] places)
<float half = {0.5}>
{
  bright = Greater (images, half)
  places = NonZero (bright)
}
"""


class Binding:
    """An IOBinding whose device memory is that of the fake."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.real.bind_input(name, "cpu", 0, dtype, shape, address)

    def bind_output(
        self, name: str, device: str, number: int, dtype: Any = None, shape: Any = None, address: Any = None
    ) -> None:
        assert (device, number) == ("cuda", 0)
        self.real.bind_output(name, "cpu", 0, dtype, shape, address)

    def get_outputs(self) -> Any:
        return self.real.get_outputs()


class Session:
    """An InferenceSession that says it runs on the GPU, and runs in the stream that it was given."""

    def __init__(
        self, library: Library, graph: bytes, settings: Any, providers: list[Any], **more: Any
    ) -> None:
        self._library, self._asked = library, providers
        self.options = dict(providers[0][1]) if isinstance(providers[0], tuple) else {}
        self._real = onnxruntime.InferenceSession(graph, settings, providers=[CPU], **more)
        self.graphs: set[str] = set()
        library.sessions.append(self)

    def get_providers(self) -> list[str]:
        names = [p if isinstance(p, str) else p[0] for p in self._asked]
        return [name for name in names if name not in self._library.missing]

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def run(self, outputs: list[str], feeds: dict[str, Any]) -> Any:
        return self._real.run(outputs, feeds)

    def io_binding(self) -> Binding:
        return Binding(self._real.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        cuda = self._library.cuda
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if self.options["enable_cuda_graph"] == "1":
            if self._library.refuses_graphs:
                raise RuntimeError(
                    "This session cannot use the graph capture feature as requested by the user"
                )
            self.graphs.add(options.get_run_config_entry("gpu_graph_id"))
        cuda.check_thread()
        cuda.enqueue(
            int(self.options["user_compute_stream"]), lambda: self._real.run_with_iobinding(binding.real)
        )


class Library:
    """The module onnxruntime, as its GPU build shows itself."""

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.sessions: list[Session] = []
        self.missing: set[str] = set()
        self.refuses_graphs = False

    @property
    def bound(self) -> list[Session]:
        """The sessions on a stream of ours; others made and checked the bundle."""
        return [session for session in self.sessions if "user_compute_stream" in session.options]

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def InferenceSession(self, graph: bytes, settings: Any, **more: Any) -> Session:
        return Session(self, graph, settings, **more)


@pytest.fixture
def library(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Library:
    """onnxruntime and pycuda as a machine with that GPU has them."""
    made = Library(cuda)
    monkeypatch.setattr(backend_module, "_library", lambda: made)
    monkeypatch.setattr(backend_module, "load_driver", lambda: cuda.driver)
    return made


Open = Callable[..., DeviceBackend]


@pytest.fixture
def opened(make_bundle: MakeBundle, library: Library, cuda: FakeCuda) -> Iterator[Open]:
    """``opened(**manifest)``: the bound backend of a tiny detector, closed afterwards."""
    made: list[DeviceBackend] = []

    def make(graphs: bool = True, **changes: Any) -> DeviceBackend:
        bundle = Bundle.open(make_bundle(**changes))
        options = Options(graphs=graphs)
        made.append(open_bound(bundle, "float", options, library=library, driver=cuda.driver))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng((seed, count)).random((count, 3, 32, 32), np.float32)


@pytest.fixture
def frames() -> Callable[[int], list[NDArray[np.uint8]]]:
    """Frames of several sizes."""

    def make(count: int) -> list[NDArray[np.uint8]]:
        rng = np.random.default_rng(count)
        return [rng.integers(0, 256, (20 + 3 * n, 50, 3), np.uint8) for n in range(count)]

    return make


def test_it_computes_what_the_cpu_computes(opened: Open, make_bundle: MakeBundle) -> None:
    backend = opened()
    cpu = open_backend(Bundle.open(make_bundle()), backend="cpu", options=Options())
    for number, count in enumerate((1, 1, 4, 1, 8, 4)):
        batch = images(count, number)
        got, want = backend.run(batch), cpu.run(batch)
        assert list(got) == list(want)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, atol=1e-6)
    assert (backend.name, backend.variant) == ("cuda", "float")
    assert backend.detail == f"onnxruntime {onnxruntime.__version__}, CUDA, Fake GPU, graphs"


def test_the_session_runs_on_our_stream_and_replays_each_shape(opened: Open, library: Library) -> None:
    backend = opened()
    for count in (1, 4, 1):
        backend.run(images(count))
    (session,) = library.bound
    assert session.options["enable_cuda_graph"] == "1"
    assert int(session.options["user_compute_stream"]) == backend._stream.handle
    # -1 is the run that finds the shapes, which nothing is recorded of.
    assert session.graphs == {"-1", "1", "2"}


def test_a_graph_that_cannot_be_recorded_is_done_without(
    opened: Open, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    library.refuses_graphs = True
    backend = opened()
    assert "runs without a CUDA graph: onnxruntime could not run: This session cannot" in caplog.text
    assert [s.options["enable_cuda_graph"] for s in library.bound] == ["1", "0"]
    assert backend.run(images(2))["scores"].shape == (2, 3, 1)
    assert backend.detail.endswith("Fake GPU")


def test_graphs_can_be_declined(opened: Open, library: Library) -> None:
    opened(graphs=False).run(images(1))
    assert [s.options["enable_cuda_graph"] for s in library.bound] == ["0"]


def test_a_model_for_any_size_is_not_recorded(
    make_bundle: MakeBundle, library: Library, cuda: FakeCuda
) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[N, 3, H, W] images) => (float[N, 3] logits)
    <int64[2] plane = {2, 3}> { logits = ReduceMean <keepdims = 0> (images, plane) }
    """
    preprocess = Preprocess(size=None, fit="none", color="bgr")
    bundle = Bundle.open(make_bundle("classify", text=text, preprocess=preprocess))
    backend = open_bound(bundle, "float", Options(), library=library, driver=cuda.driver)
    for side in (16, 24):
        picture = np.full((side, 20, 3), (51, 102, 204), np.uint8)
        backend.prepare([picture], 1)
        np.testing.assert_allclose(backend.run_prepared()["logits"], [[0.2, 0.4, 0.8]], atol=1e-6)
    assert [s.options["enable_cuda_graph"] for s in library.bound] == ["0"]
    backend.close()


@pytest.mark.parametrize("batch", [Batch(), Batch(min=1, opt=4, max=8), Batch(min=3, opt=3, max=3)])
def test_a_detector_finds_the_same_with_frames_prepared_on_the_gpu(
    opened: Open, make_bundle: MakeBundle, frames: Callable[[int], list[NDArray[np.uint8]]], batch: Batch
) -> None:
    backend = opened(batch=batch)
    with Detector.load(make_bundle(batch=batch), backend="cpu") as cpu:
        detector = Detector(cpu.bundle, backend)
        assert backend.on_device is backend
        for count in (1, 5, 2):
            for ours, theirs in zip(detector(frames(count)), cpu(frames(count)), strict=True):
                # A pixel differs by one step at most, and the scores are means of pixels.
                np.testing.assert_allclose(ours.scores, theirs.scores, atol=1 / 255)
                np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
        assert set(detector.timings) == {"preprocess", "infer", "postprocess"}


def test_the_host_prepares_where_the_backend_does_not(
    opened: Open, make_bundle: MakeBundle, cuda: FakeCuda, frame: NDArray[np.uint8]
) -> None:
    cuda.loads = lambda image: False
    backend = opened()
    assert backend.on_device is None
    detections = Detector(Bundle.open(make_bundle()), backend)(frame)
    np.testing.assert_allclose(detections.scores, [0.8, 0.4], atol=1e-5)


def test_clones_work_side_by_side(opened: Open, library: Library) -> None:
    backend = opened()
    want = backend.run(images(2))["scores"]
    clones = [backend.clone() for _ in range(2)]
    wrong: list[float] = []

    def work(clone: DeviceBackend) -> None:
        for _ in range(5):
            wrong.append(float(np.abs(clone.run(images(2))["scores"] - want).max()))

    threads = [threading.Thread(target=work, args=(clone,)) for clone in clones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(wrong) == 0
    assert len(wrong) == 10
    assert len({s.options["user_compute_stream"] for s in library.bound}) == 3
    for clone in clones:
        clone.close()


def test_a_batch_that_does_not_fit(opened: Open) -> None:
    backend = opened(batch=Batch(min=2, opt=2, max=2))
    with pytest.raises(BindingError, match=r"input images is float32 \(2, 3, 32, 32\), got float32 \(1, 3"):
        backend.run(images(1))
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(images(2))


def test_a_session_that_fell_back_is_refused(
    make_bundle: MakeBundle, library: Library, cuda: FakeCuda
) -> None:
    library.missing.add(CUDA)
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider and runs on CPU"):
        open_bound(Bundle.open(make_bundle()), "float", Options(), library=library, driver=cuda.driver)


def test_no_memory_leaves_nothing(make_bundle: MakeBundle, library: Library, cuda: FakeCuda) -> None:
    bundle = Bundle.open(make_bundle())
    for call in ("cuStreamCreate", "cuMemHostAlloc"):
        cuda.fail(call, *range(1, 99))
        options = Options(graphs=False)
        if call == "cuStreamCreate":
            with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY"):
                open_bound(bundle, "float", options, library=library, driver=cuda.driver)
        else:
            backend = open_bound(bundle, "float", options, library=library, driver=cuda.driver)
            assert backend.on_device is None  # no memory for the kernel's table: the host prepares
            with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY"):
                backend.run(images(1))
            backend.close()
        assert cuda.leaks() == {}
        cuda._failures.clear()


def test_without_pycuda_the_session_runs_as_it_is(
    make_bundle: MakeBundle,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def absent() -> Any:
        raise MissingExtraError("pycuda is not installed", extra="gpu")

    monkeypatch.setattr(backend_module, "load_driver", absent)
    caplog.set_level("INFO")
    backend = open_cuda(Bundle.open(make_bundle()), "float", Options())
    assert not isinstance(backend, DeviceBackend)
    assert backend.run(images(2))["scores"].shape == (2, 3, 1)
    assert library.sessions[-1].options == {"device_id": "0"}
    assert "without graphs: pycuda is not installed" in caplog.text
    backend.close()


def test_shapes_that_depend_on_the_data_run_unbound(
    make_bundle: MakeBundle, library: Library, cuda: FakeCuda
) -> None:
    bundle = Bundle.open(make_bundle("classify", text=SEEKER))
    backend = open_cuda(bundle, "float", Options())
    assert not isinstance(backend, DeviceBackend)
    assert backend.run(np.ones((1, 3, 32, 32), np.float32))["places"].shape == (4, 3 * 32 * 32)
    assert backend.run(np.zeros((1, 3, 32, 32), np.float32))["places"].shape == (4, 0)
    backend.close()


def test_it_is_bound_where_it_can_be(make_bundle: MakeBundle, library: Library) -> None:
    backend = open_backend(Bundle.open(make_bundle()), backend="cuda", options=Options())
    assert isinstance(backend, DeviceBackend)
    backend.close()


def test_tensorrt_inside_of_onnxruntime(
    make_bundle: MakeBundle, library: Library, cuda: FakeCuda, tmp_path: Path
) -> None:
    bundle = Bundle.open(make_bundle())
    backend = open_backend(bundle, backend="tensorrt-ep", options=Options())
    options = library.sessions[-1].options
    assert backend.name == "tensorrt-ep"
    assert options["trt_engine_cache_path"] == str(tmp_path / "cache" / "edgesmith" / "onnxruntime")
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("0", "0")
    assert library.sessions[-1]._asked[1:] == [(CUDA, {"device_id": "0"}), CPU]
    backend.close()
    library.missing.add(TENSORRT)
    with pytest.raises(BackendError, match="asked for TensorrtExecutionProvider and runs on CUDA"):
        open_tensorrt_ep(bundle, "float", Options())
