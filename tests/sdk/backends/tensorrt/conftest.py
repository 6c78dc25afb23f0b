"""A bundle with three variants, a small engine runner on the fake TensorRT, and a cache of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edgesmith.sdk.backends.base import Backend
from edgesmith.sdk.backends.tensorrt import build, worker
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.engine import ensure_engine
from edgesmith.sdk.backends.tensorrt.fallback import open_checked
from edgesmith.sdk.backends.tensorrt.library import Found, load_library
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, Engine
from edgesmith.sdk.backends.tensorrt.target import Target, detect_target
from edgesmith.sdk.backends.tensorrt.worker import make_log
from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.errors import BackendError, IncompatibleEngineError
from edgesmith.sdk.manifest import Batch, Manifest, Variant
from edgesmith.sdk.testing.fake_tensorrt import FakeTensorRT, HostMemory

HEAD = '<ir_version: 9, opset_import: ["" : 20]>\nagraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)'
FLOAT = HEAD + "<int64[2] plane = {2, 3}> { logits = ReduceMean <keepdims = 0> (images, plane) }"
FP16 = (
    HEAD
    + """<int64[2] plane = {2, 3}, float16[1] one = {15360}> {
  half = Cast <to = 10> (images)
  scaled = Mul (half, one)
  full = Cast <to = 1> (scaled)
  logits = ReduceMean <keepdims = 0> (full, plane)
}"""
)
INT8 = (
    HEAD
    + """<int64[2] plane = {2, 3}, float step = {0.0078740157}, int8 zero = {0}> {
  q = QuantizeLinear (images, step, zero)
  dq = DequantizeLinear (q, step, zero)
  logits = ReduceMean <keepdims = 0> (dq, plane)
}"""
)
GRAPHS = {"float": FLOAT, "fp16": FP16, "int8": INT8}


class FakeBackend:
    """An engine on the fake TensorRT with memory on the host: what run.py does, without CUDA."""

    name = "tensorrt"

    def __init__(self, trt: Any, engine: Engine) -> None:
        self.variant = engine.record.variant
        low, best, high = engine.record.key.batch
        self.batch = Batch(min=low, opt=best, max=high)
        self.detail = f"fake TensorRT {trt.__version__}"
        self.closed = False
        log = make_log(trt)
        runtime = trt.Runtime(log)
        runtime.engine_host_code_allowed = bool(engine.record.key.options.get("version_compatible"))
        loaded = runtime.deserialize_cuda_engine(engine.plan)
        if loaded is None:
            raise IncompatibleEngineError("; ".join(log.errors))
        self._context, self._memory, self._trt = loaded.create_execution_context(), HostMemory(), trt
        trt._memory = self._memory
        self._names = [loaded.get_tensor_name(n) for n in range(loaded.num_io_tensors)]

    def run(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """One run."""
        if self.closed:
            raise BackendError("closed")
        self._trt._memory = self._memory
        context = self._context
        assert context.set_input_shape("images", images.shape)
        addresses = {}
        for name in self._names:
            size = int(np.prod(context.get_tensor_shape(name))) * 4
            addresses[name] = self._memory.allocate(size)
            assert context.set_tensor_address(name, addresses[name])
        self._memory.write(addresses["images"], np.ascontiguousarray(images).view(np.uint8).reshape(-1))
        assert context.execute_async_v3(1)
        shape = context.get_tensor_shape("logits")
        data = self._memory.read(addresses["logits"], int(np.prod(shape)) * 4)
        outputs = {"logits": np.array(data).view(np.float32).reshape(shape)}
        for address in addresses.values():
            self._memory.free(address)
        return outputs

    def clone(self) -> FakeBackend:
        """Not needed here."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free."""
        self.closed = True


@dataclass
class Machine:
    """One device with one TensorRT: everything that the code under test is told of it."""

    cache: EngineCache
    settings: dict[str, Any] = field(default_factory=dict)
    opened: list[FakeBackend] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trt = FakeTensorRT(**self.settings)
        self.found = Found(self.trt, self.trt.simulated.specification)
        self.target: Target = detect_target(self.trt)

    def upgraded(self, **settings: Any) -> Machine:
        """The same cache with another TensorRT, driver, or fault."""
        return Machine(self.cache, {**self.settings, **settings})

    def open_engine(self, engine: Engine) -> Backend:
        """A backend of an engine."""
        self.opened.append(FakeBackend(self.trt, engine))
        return self.opened[-1]

    def ensure(
        self, bundle: Bundle, variant: str, options: BuildOptions | None = None, **more: Any
    ) -> tuple[Engine, bool]:
        """``ensure_engine`` on this machine."""
        return ensure_engine(
            bundle,
            variant,
            found=self.found,
            target=self.target,
            options=options or BuildOptions(),
            cache=self.cache,
            **more,
        )

    def load(self, bundle: Bundle, variant: str | None = None, **more: Any) -> Backend:
        """``open_checked`` on this machine."""
        return open_checked(
            bundle,
            variant,
            found=self.found,
            target=self.target,
            open_engine=self.open_engine,
            cache=self.cache,
            **more,
        )


@pytest.fixture
def real_worker() -> None:
    """For tests that need the process which builds; the others build in their own, which is quicker."""


@pytest.fixture(autouse=True)
def _worker_in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_worker" in request.fixturenames:
        return

    def work(folder: Path, timeout_s: float, progress: Any) -> worker.Answer:
        job = msgspec.json.decode((folder / worker.JOB).read_bytes(), type=worker.Job)
        return worker.build(load_library(job.library), job, folder, progress)

    monkeypatch.setattr(build, "_work", work)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """An empty cache."""
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def machine(cache: EngineCache) -> Callable[..., Machine]:
    """``machine(version="10.13.3", wrong=("int8",))``: a device with a fake TensorRT."""
    return lambda **settings: Machine(cache, settings)


@pytest.fixture
def trio(make_bundle: Callable[..., Path]) -> Bundle:
    """A classifier as float, fp16 and int8 (chosen); each with true golden outputs and a measured drop."""
    return Bundle.open(write_trio(make_bundle))


@pytest.fixture
def make_trio(make_bundle: Callable[..., Path]) -> Callable[..., Bundle]:
    """``trio`` with other drops by variant."""
    return lambda **drops: Bundle.open(write_trio(make_bundle, drops))


def write_trio(make_bundle: Callable[..., Path], drops: dict[str, float] | None = None) -> Path:
    """Write it; ``drops`` in points by variant."""
    path = make_bundle("classify")
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    exact = bundle.manifest.variants["float"]
    measured = {"fp16": 0.0, "int8": 0.1, **(drops or {})}
    variants = {"float": exact}
    for name in ("fp16", "int8"):
        model = onnx.parser.parse_model(GRAPHS[name])
        onnx.checker.check_model(model, full_check=True)
        members[f"variants/{name}.onnx"] = model.SerializeToString()
        # A rounding of a pixel to one of 255 levels shifts a mean by less.
        variants[name] = Variant(
            member=f"variants/{name}.onnx",
            precision=name,
            golden="golden/float.npz",
            tolerance={"logits": 0.01},
            measured={"drop": measured[name]},
        )
    manifest: Manifest = msgspec.structs.replace(
        bundle.manifest, variants=variants, chosen="int8", cpu="float"
    )
    write_bundle(path, manifest, members)
    return path
