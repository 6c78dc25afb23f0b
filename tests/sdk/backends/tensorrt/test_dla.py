"""DLA: asked for by number, by calibrator up to TensorRT 10.7, by Q/DQ graph later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edgesmith.sdk.backends.tensorrt.dla import Coverage, DlaLayer, cache_for
from edgesmith.sdk.backends.tensorrt.fallback import rollback_of
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions
from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.errors import BuildError
from edgesmith.sdk.evaluate.classify import decisions
from edgesmith.sdk.manifest import Batch
from edgesmith.sdk.models import Classifier
from edgesmith.sdk.testing.simulated import read_plan

Make = Callable[..., Any]
CACHE = b"TRT-100300-EntropyCalibration2\nimages: 3c010a14\n"
STRIPPED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)
<int64[2] plane = {2, 3}>
{
  [act] relu = Relu (images)
  [mean] logits = ReduceMean <keepdims = 0> (relu, plane)
}
"""


@pytest.fixture
def with_dla(trio: Bundle) -> Bundle:
    """The bundle with what the old road needs."""
    members = {name: trio.read(name) for name in trio.manifest.members}
    members["model.dla.onnx"] = onnx.parser.parse_model(STRIPPED).SerializeToString()
    members["calibration.cache"] = CACHE
    write_bundle(trio.path, trio.manifest, members)
    return Bundle.open(trio.path)


def test_a_core_that_is_not_there_is_refused(with_dla: Bundle, machine: Make) -> None:
    with pytest.raises(BuildError, match=r"DLA core 0 was asked for, and TensorRT 10\.3\.0 sees no DLA"):
        machine().ensure(with_dla, "int8", BuildOptions(dla=0))
    with pytest.raises(BuildError, match=r"sees 2 DLA cores, numbered from 0 on this device"):
        machine(num_DLA_cores=2).ensure(with_dla, "int8", BuildOptions(dla=2))
    # JetPack 7.2 on an Orin: the API is there, the cores are not.
    with pytest.raises(BuildError, match="sees no DLA"):
        machine(version="10.16.2").ensure(with_dla, "int8", BuildOptions(dla=0))


def test_the_old_road(with_dla: Bundle, machine: Make) -> None:
    engine, _ = machine(num_DLA_cores=2).ensure(with_dla, "int8", BuildOptions(dla=1))
    inside = read_plan(engine.plan, rtx=False)
    assert inside.dla == 1
    assert inside.graph == with_dla.read("model.dla.onnx")
    coverage = engine.record.coverage
    assert coverage is not None
    assert [(layer.name, layer.kind, layer.taken) for layer in coverage.layers] == [
        ("act", "ACTIVATION", True),
        ("mean", "REDUCE", False),
    ]
    (left,) = coverage.fallback
    assert left.why == "mean: DLA only supports some layers, REDUCE is not one of them."
    assert str(coverage) == "DLA core 1 takes 1 of 2 layers, 1 changes of device"


def test_the_cache_is_offered_under_the_version_that_runs(with_dla: Bundle, machine: Make) -> None:
    # The bundle's cache says 10.3.0; 10.7.0 would refuse it under that name.
    engine, _ = machine(version="10.7.0", num_DLA_cores=1).ensure(with_dla, "int8", BuildOptions(dla=0))
    assert read_plan(engine.plan, rtx=False).dla == 0
    assert cache_for((10, 7, 0), CACHE) == CACHE.replace(b"100300", b"100700")
    with pytest.raises(BuildError, match="does not begin with TRT-VERSION-ALGORITHM"):
        cache_for((10, 7, 0), b"nonsense")


def test_the_new_road_takes_the_graph_with_its_pairs(trio: Bundle, machine: Make) -> None:
    engine, _ = machine(version="11.4.1", num_DLA_cores=2).ensure(trio, "int8", BuildOptions(dla=0))
    inside = read_plan(engine.plan, rtx=False)
    assert inside.dla == 0
    assert inside.graph == trio.read("variants/int8.onnx")


def test_a_bundle_without_its_members_says_what_to_do(trio: Bundle, machine: Make) -> None:
    with pytest.raises(BuildError, match=r"convert it again with target\.dla, or build without --dla"):
        machine(num_DLA_cores=1).ensure(trio, "int8", BuildOptions(dla=0))


def test_a_dla_takes_the_usual_batch_and_the_model_keeps_to_it(with_dla: Bundle, machine: Make) -> None:
    ranged = msgspec.structs.replace(with_dla.manifest, batch=Batch(min=1, opt=4, max=8))
    write_bundle(with_dla.path, ranged, {name: with_dla.read(name) for name in ranged.members})
    bundle, here = Bundle.open(with_dla.path), machine(num_DLA_cores=1)
    on_gpu, _ = here.ensure(bundle, "int8")
    on_dla, _ = here.ensure(bundle, "int8", BuildOptions(dla=0))
    assert (on_gpu.record.key.batch, on_dla.record.key.batch) == ((1, 4, 8), (4, 4, 4))
    # The self-test's pictures and six frames: filled up, split, and nothing else told than for one alone.
    frames = [np.full((32, 32, 3), 40 * n, np.uint8) for n in range(6)]
    with Classifier(bundle, here.load(bundle, options=BuildOptions(dla=0))) as model:
        assert model.batch == Batch(min=4, opt=4, max=4)
        batches = [(outputs["logits"].shape, len(geometries)) for outputs, geometries in model.raw(frames)]
        assert batches == [((4, 3), 4), ((4, 3), 2)]
        together, singly = model(frames), [model(frame) for frame in frames]
        assert [found.to_dict() for found in together] == [found.to_dict() for found in singly]
        best = decisions([model], frames, lambda frame: frame).results[0]
        assert [list(row) for row in best] == [list(found.labels) for found in singly]


def test_where_the_dla_computes_wrongly_the_gpu_takes_its_place(with_dla: Bundle, machine: Make) -> None:
    options = BuildOptions(dla=0)
    here = machine(num_DLA_cores=1)
    assert here.load(with_dla, options=options).variant == "int8"
    stripped = with_dla.manifest.members["model.dla.onnx"].sha256
    wrong = machine(num_DLA_cores=1, version="10.7.0", wrong=(stripped,))
    assert wrong.load(with_dla, options=options).variant == "int8"
    event = rollback_of(with_dla, target=wrong.target, cache=wrong.cache)
    assert event is not None
    assert (event.in_use, event.how) == ("int8", "on the GPU")
    assert event.divergence is not None


def test_changes_of_device_are_counted() -> None:
    layers = tuple(
        DlaLayer(name=str(n), kind="X", taken=taken) for n, taken in enumerate((True, False, True))
    )
    assert Coverage(core=0, layers=layers).switches == 2
    assert msgspec.json.decode(msgspec.json.encode(Coverage(core=0, layers=layers)), type=Coverage).core == 0
