"""The bundles of the trained models through this build code and a real builder: TensorRT-RTX, for SM 8.6.

It compiles without a GPU; what it makes runs on none of our boards, and nothing is run here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.engine import NOT_FOR_TENSORRT, ensure_engine
from edgesmith.sdk.backends.tensorrt.library import Found, load_tensorrt
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, Engine, read_header
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BuildError

MODULE = "tensorrt_rtx_bindings"
SM86 = BuildOptions(compute_capability="8.6", timeout_s=240)
MODELS = (
    "mobilenet_v1_025", "efficientnet_lite0", "resnet20_cifar", "resnet56_cifar", "yolox_nano", "nanodet_m",
    "fastestdet",
)  # fmt: skip
DETECTORS = ("yolox_nano", "nanodet_m", "fastestdet")
pytestmark = pytest.mark.usefixtures("real_worker")


@pytest.fixture
def build(cache: EngineCache) -> Callable[..., tuple[Engine, bool]]:
    """``build(bundle, variant)`` with the real TensorRT-RTX."""
    if importlib.util.find_spec(MODULE) is None:
        message = f"{MODULE} is missing: pip install 'edgesmith[trt-check]'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    # The module itself stays out of this process: the worker loads it.
    found = Found(None, MODULE)
    target = Target(library="tensorrt-rtx", tensorrt=rtx_version())

    def ensure(bundle: Bundle, variant: str, options: BuildOptions = SM86) -> tuple[Engine, bool]:
        return ensure_engine(bundle, variant, found=found, target=target, options=options, cache=cache)

    return ensure


def rtx_version() -> str:
    return str(load_tensorrt({"EDGESMITH_TENSORRT": MODULE}).require().__version__)


def test_a_small_graph(trio: Bundle, build: Callable[..., tuple[Engine, bool]], cache: EngineCache) -> None:
    for variant in ("float", "fp16", "int8"):
        engine, built = build(trio, variant)
        assert built
        assert read_header(engine.plan).library == "tensorrt-rtx"
        assert engine.record.workspace_bytes > 0
    assert not build(trio, "float")[1]


def test_what_it_refuses_comes_with_its_reason(
    make_bundle: Callable[..., Path], build: Callable[..., tuple[Engine, bool]]
) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)
    <int64[2] plane = {2, 3}>
    { logits = ReduceMean <keepdims = 0> (images, plane) [odd] d = Det (images) }
    """
    bundle = Bundle.open(make_bundle("classify", text=text))
    with pytest.raises(BuildError, match=r"cannot build this graph: the ONNX parser refused Det odd"):
        build(bundle, "float")


def test_a_gpu_that_it_does_not_know(trio: Bundle, build: Callable[..., tuple[Engine, bool]]) -> None:
    with pytest.raises(BuildError, match=r"cannot build for compute capability 8\.7"):
        build(trio, "float", BuildOptions(compute_capability="8.7"))


@pytest.mark.assets
def test_a_trained_model_with_a_profile(
    asset_bundle: Callable[..., Path], build: Callable[..., tuple[Engine, bool]]
) -> None:
    # The same bundle as in tests/test_trained_models.py: the suite converts it once.
    path = asset_bundle("mobilenet_v1_025", input__batch={"min": 1, "opt": 4, "max": 8})
    bundle = Bundle.open(path)
    for variant in bundle.manifest.variants:
        if variant not in NOT_FOR_TENSORRT:
            engine, _ = build(bundle, variant)
            assert len(engine.plan) > 50_000, variant


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", MODELS)
def test_every_trained_model_in_every_precision(
    asset_bundle: Callable[..., Path], build: Callable[..., Any], model: str
) -> None:
    # A bundle of this mode carries the float, the FP16 and the INT8 graphs.
    bundle = Bundle.open(asset_bundle(model, precision__mode="int8", precision__accept_drop=True))
    precisions = set()
    for name, variant in bundle.manifest.variants.items():
        if name in NOT_FOR_TENSORRT:
            continue
        engine, built = build(bundle, name)
        assert built, name
        assert len(engine.plan) > 50_000, name
        precisions.add("int8" if b"QuantizeLinear" in bundle.read(variant.member) else variant.precision)
    assert {"fp32", "fp16", "int8"} <= precisions


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("model", DETECTORS)
def test_every_detector_with_its_suppression(
    asset_bundle: Callable[..., Path], build: Callable[..., Any], model: str
) -> None:
    bundle = Bundle.open(asset_bundle(model, precision__mode="fp32", nms__where="graph"))
    engine, _ = build(bundle, "float")
    assert len(engine.plan) > 50_000
