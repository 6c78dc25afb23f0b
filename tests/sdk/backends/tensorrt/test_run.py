"""Engines run on the fake TensorRT over the fake GPU: every refusal, every release."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgesmith.sdk import Classifier, Detector
from edgesmith.sdk.backends.base import Options
from edgesmith.sdk.backends.choose import open_backend
from edgesmith.sdk.backends.tensorrt import run as run_module
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.engine import ensure_engine
from edgesmith.sdk.backends.tensorrt.library import VARIABLE, Found
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, Engine
from edgesmith.sdk.backends.tensorrt.run import (
    DTYPES,
    TensorRTBackend,
    open_tensorrt,
    opener,
    tensorrt_unavailable,
)
from edgesmith.sdk.backends.tensorrt.target import detect_target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, BindingError, CudaError, IncompatibleEngineError
from edgesmith.sdk.manifest import Batch
from edgesmith.sdk.testing import fake_runtime
from edgesmith.sdk.testing.fake_cuda import FakeCuda
from edgesmith.sdk.testing.fake_tensorrt import FakeTensorRT

pytestmark = pytest.mark.usefixtures("without_compilers")

MakeBundle = Callable[..., Path]
VERSIONS = ["10.3.0", "10.13.3", "10.16", "11.4", "1.7.1.116"]
GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
agraph ({kind}[N, 3, 4, 6] images) => ({kind}[N, 3, 4, 6] twice, int64[1] count)
{{
  twice = Add (images, images)
  shape = Shape <start = 0, end = 1> (images)
  count = Identity (shape)
}}
"""

Plan = Callable[..., Engine]


@pytest.fixture
def plan(make_bundle: MakeBundle, tmp_path: Path) -> Plan:
    """``plan(trt, profiles, kind)``: an engine that doubles its input; or of another graph."""

    def make(
        trt: FakeTensorRT,
        profiles: tuple[tuple[int, int, int], ...] = ((1, 2, 4),),
        kind: str = "float",
        text: str = GRAPH,
        **options: Any,
    ) -> Engine:
        graph = onnx.parser.parse_model(text.format(kind=kind) if text is GRAPH else text)
        builder = trt.Builder(trt.Logger())
        network = builder.create_network(0)
        assert trt.OnnxParser(network, trt.Logger()).parse(graph.SerializeToString())
        config = builder.create_builder_config()
        for sizes in profiles:
            profile = builder.create_optimization_profile()
            profile.set_shape("images", *((n, 3, 4, 6) for n in sizes))
            config.add_optimization_profile(profile)
        if options.get("version_compatible"):
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        built = builder.build_serialized_network(network, config)
        assert built is not None
        # The record is that of a real build, of another graph.
        other, _ = ensure_engine(
            Bundle.open(make_bundle()),
            "float",
            found=Found(trt, trt.simulated.specification),
            target=detect_target(trt),
            options=BuildOptions(),
            cache=EngineCache(tmp_path / "plans"),
        )
        key = msgspec.structs.replace(other.record.key, options=options)
        return Engine(bytes(built), msgspec.structs.replace(other.record, key=key))

    return make


Open = Callable[..., TensorRTBackend]


@pytest.fixture
def opened(cuda: FakeCuda, plan: Plan) -> Iterator[Open]:
    """``opened(version, profiles=..., kind=...)``: a backend of that engine, closed afterwards."""
    made: list[TensorRTBackend] = []

    def make(version: str = "10.3.0", *, graphs: bool = True, **engine: Any) -> TensorRTBackend:
        trt = FakeTensorRT(version=version, cuda=cuda)
        made.append(opener(Found(trt), graphs=graphs)(plan(trt, **engine)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def ones(count: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.full((count, 3, 4, 6), 3, dtype)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_runs(opened: Open, cuda: FakeCuda, version: str) -> None:
    backend = opened(version)
    for count in (1, 2, 1, 4, 2):
        outputs = backend.run(ones(count))
        np.testing.assert_array_equal(outputs["twice"], ones(count) * 2)
        assert outputs["count"].tolist() == [count]
    assert backend.name == "tensorrt"
    assert backend.variant == "float"
    assert version in backend.detail
    assert "Fake GPU (SM 8.7)" in backend.detail
    assert backend.graphs == 3
    assert cuda.calls["cuGraphLaunch"] == 2


def test_integers_of_64_bits_stay(opened: Open) -> None:
    assert opened().run(ones(1))["count"].dtype == np.int64


@pytest.mark.parametrize("kind", ["float16", "int8", "int32", "int64", "uint8"])
def test_every_type_goes_through(opened: Open, kind: str) -> None:
    images = ones(2, kind)
    got = opened(kind=kind).run(images)["twice"]
    assert got.dtype == np.dtype(kind)
    np.testing.assert_array_equal(got, images * 2)


def test_float32_goes_into_a_float16_engine(opened: Open) -> None:
    backend = opened(kind="float16")
    assert backend.run(ones(1))["twice"].dtype == np.float16
    with pytest.raises(BindingError, match=r"input images is float16 \(any, 3, 4, 6\), got complex64"):
        backend.run(ones(1, np.complex64))


@pytest.mark.parametrize("name", ["BF16", "FP8", "INT4", "FP4"])
def test_types_that_numpy_lacks_are_refused_by_name(
    opened: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Kind:
        def __init__(self) -> None:
            self.name = name

    monkeypatch.setattr(fake_runtime.Engine, "get_tensor_dtype", lambda self, tensor: Kind())
    with pytest.raises(BindingError, match=f"tensor images has the type {name}, which numpy has not: keep"):
        opened()


def test_the_map_of_types_is_that_of_the_library(cuda: FakeCuda) -> None:
    trt = FakeTensorRT(version="10.3.0", cuda=cuda)
    for theirs, ours in DTYPES.items():
        assert np.dtype(trt.nptype(getattr(trt.DataType, theirs))) == np.dtype(ours)


def test_shapes_outside_of_all_profiles(opened: Open) -> None:
    backend = opened(profiles=((1, 1, 1), (4, 8, 16)))
    with pytest.raises(BindingError, match=r"images \(2, 3, 4, 6\) fits no profile of the engine: \(1, 3, 4"):
        backend.run(ones(2))
    with pytest.raises(
        BindingError, match=r"input images is float32 \(any, 3, 4, 6\), got float32 \(1, 3, 4, 5"
    ):
        backend.run(np.ones((1, 3, 4, 5), np.float32))
    assert backend.run(ones(16))["count"].tolist() == [16]


def test_the_profile_that_was_tuned_for_the_shape_is_taken(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    real = fake_runtime.Context.set_optimization_profile_async

    def watched(self: Any, index: int, stream: int) -> bool:
        chosen.append(index)
        return real(self, index, stream)

    monkeypatch.setattr(fake_runtime.Context, "set_optimization_profile_async", watched)
    backend = opened(profiles=((1, 2, 8), (1, 4, 8), (8, 8, 8)))
    for count in (2, 4, 8, 1, 5):
        assert backend.run(ones(count))["count"].tolist() == [count]
    # 2, 1 and 5 run in the first, which is the one that a context begins with.
    assert chosen == [1, 2]


REFUSALS = {
    "set_input_shape": "refuses shape",
    "set_tensor_address": "refuses the address of images",
    "execute_async_v3": "refuses the run",
}


@pytest.mark.parametrize("call", REFUSALS)
def test_a_false_is_explained_from_the_log(opened: Open, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    backend = opened()
    real = getattr(fake_runtime.Context, call)
    monkeypatch.setattr(
        fake_runtime.Context, call, lambda self, *more: self._refuse("the stars are not right")
    )
    with pytest.raises(BackendError, match=f"TensorRT {REFUSALS[call]}.*the stars are not right"):
        backend.run(ones(1))
    monkeypatch.setattr(fake_runtime.Context, call, real)
    assert backend.run(ones(1))["count"].tolist() == [1]


def test_a_false_without_a_word_in_the_log(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened()
    monkeypatch.setattr(fake_runtime.Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(BackendError, match="refuses the run: no reason in TensorRT's log"):
        backend.run(ones(1))


def test_no_context_is_explained(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened()
    monkeypatch.setattr(fake_runtime.Engine, "create_execution_context", lambda self, strategy: None)
    with pytest.raises(BackendError, match="TensorRT gives no execution context"):
        backend.run(ones(1))


def test_a_graph_that_cannot_be_recorded_is_done_without(
    opened: Open, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.graphs = False
    backend = opened()
    for _ in range(3):
        np.testing.assert_array_equal(backend.run(ones(1))["twice"], 6)
    assert backend.graphs == 0
    assert "this engine runs without a CUDA graph: cuStreamEndCapture failed" in caplog.text


def test_graphs_can_be_declined(opened: Open, cuda: FakeCuda) -> None:
    backend = opened(graphs=False)
    backend.run(ones(1))
    backend.run(ones(1))
    assert cuda.calls["cuGraphLaunch"] == 0


def test_shapes_that_depend_on_the_data_are_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened()
    real = fake_runtime.Context.get_tensor_shape
    monkeypatch.setattr(
        fake_runtime.Context,
        "get_tensor_shape",
        lambda self, name: (-1, 4) if name == "twice" else real(self, name),
    )
    with pytest.raises(BindingError, match=r"output twice depends on the data \(-1, 4\): pad it"):
        backend.run(ones(1))


def test_tensors_on_the_host_are_refused(
    opened: Open, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda
) -> None:
    monkeypatch.setattr(fake_runtime.Engine, "get_tensor_location", lambda self, name: "HOST")
    with pytest.raises(BindingError, match="tensor images is a shape tensor on the host"):
        opened()
    assert cuda.leaks() == {}


def test_two_inputs_are_refused(opened: Open) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[1, 3, 4, 6] images, float[1, 3, 4, 6] more) => (float[1, 3, 4, 6] sum)
    { sum = Add (images, more) }
    """
    with pytest.raises(BindingError, match="one image as its input, this one has images, more"):
        opened(text=text, profiles=())


def test_plans_of_another_version_or_gpu(cuda: FakeCuda, plan: Plan) -> None:
    engine = plan(FakeTensorRT(version="10.3.0", cuda=cuda))
    newer = FakeTensorRT(version="10.13.3", cuda=cuda)
    with pytest.raises(
        IncompatibleEngineError, match=r"TensorRT 10\.13\.3 does not load the engine of variant"
    ):
        opener(Found(newer))(engine)
    other = FakeTensorRT(version="10.3.0", compute_capability=(8, 6), cuda=cuda)
    with pytest.raises(IncompatibleEngineError, match=r"incompatible device, expecting compute 8\.6 got"):
        opener(Found(other))(engine)
    damaged = Engine(engine.plan[:-9] + b"something", engine.record)
    with pytest.raises(IncompatibleEngineError):
        opener(Found(FakeTensorRT(version="10.3.0", cuda=cuda)))(damaged)


def test_plans_that_later_versions_may_load(cuda: FakeCuda, plan: Plan) -> None:
    engine = plan(FakeTensorRT(version="10.3.0", cuda=cuda), version_compatible=True)
    backend = opener(Found(FakeTensorRT(version="10.13.3", cuda=cuda)))(engine)
    assert backend.run(ones(1))["count"].tolist() == [1]
    backend.close()


@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemHostAlloc"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_memory_at_any_moment_leaves_the_rest(
    opened: Open, cuda: FakeCuda, call: str, number: int
) -> None:
    if cuda.integrated and call == "cuMemAlloc" and number > 2:
        pytest.skip("what the host reads is mapped there: input and scratch are the only ones")
    backend = opened()
    cuda.fail(call, number)
    with pytest.raises(CudaError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        backend.run(ones(1))
    np.testing.assert_array_equal(backend.run(ones(1))["twice"], 6)


def test_clones_share_the_engine_until_the_last_goes(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    real = fake_runtime.Runtime.deserialize_cuda_engine

    def watched(self: Any, plan: bytes) -> Any:
        loaded.append(1)
        return real(self, plan)

    monkeypatch.setattr(fake_runtime.Runtime, "deserialize_cuda_engine", watched)
    backend = opened()
    clones = [backend.clone() for _ in range(3)]
    backend.close()
    wrong: list[int] = []

    def work(clone: Any, number: int) -> None:
        for count in (1, 4, 1, 2):
            got = clone.run(ones(count) * number)["twice"]
            wrong.extend([number] * int((got != 6 * number).any()))

    threads = [threading.Thread(target=work, args=(clone, n)) for n, clone in enumerate(clones)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert loaded == [1]
    for clone in clones:
        clone.close()
    with pytest.raises(BackendError, match="closed"):
        backend.clone()


@pytest.mark.parametrize("batch", [Batch(), Batch(min=1, opt=4, max=8)])
def test_a_detector_from_bundle_to_boxes(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> None:
    """The whole road: found by its variable, built, self-tested, frames prepared on the GPU."""
    monkeypatch.setenv(VARIABLE, "edgesmith.sdk.testing.fake_tensorrt:make?version=10.3.0")
    trt = FakeTensorRT(version="10.3.0")
    monkeypatch.setattr(run_module, "load_tensorrt", lambda: Found(trt, trt.simulated.specification))
    assert tensorrt_unavailable() is None
    path = make_bundle(batch=batch)
    bundle = Bundle.open(path)
    backend = open_tensorrt(bundle, None, Options())
    assert isinstance(backend, TensorRTBackend)
    assert backend.on_device is backend
    detector, cpu = Detector(bundle, backend), Detector.load(path, backend="cpu")
    rng = np.random.default_rng(0)
    for count in (1, 3, 1):
        frames = [rng.integers(0, 256, (30 + n, 50, 3), np.uint8) for n in range(count)]
        for ours, theirs in zip(detector(frames), cpu(frames), strict=True):
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1 / 255)
    detector.close()
    assert trt.cuda.leaks() == {}


def test_the_face_reaches_it(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, frame: NDArray[np.uint8]
) -> None:
    monkeypatch.setenv(VARIABLE, "edgesmith.sdk.testing.fake_tensorrt:make?version=11.4.0")
    with Classifier.load(make_bundle("classify"), backend="tensorrt") as classifier:
        assert classifier(frame).top.name == "red"
        assert "tensorrt: TensorRT 11.4.0, Orin (nvgpu) (SM 8.7)" in repr(classifier)
    with pytest.raises(BackendError, match="closed"):
        classifier(frame)


def test_without_tensorrt_or_a_gpu_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "load_tensorrt", lambda: Found(None, reason="there is none"))
    assert tensorrt_unavailable() == "there is none"
    monkeypatch.setattr(run_module, "load_tensorrt", lambda: Found(object()))
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    assert "pycuda is not installed" in (tensorrt_unavailable() or "")


def test_a_backend_that_is_asked_for_and_absent(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "edgesmith.sdk.testing.nowhere")
    with pytest.raises(
        BackendError, match=r"'tensorrt' cannot run here: edgesmith\.sdk\.testing\.nowhere does"
    ):
        open_backend(Bundle.open(make_bundle()), backend="tensorrt", options=Options())
