"""The repository's configuration against Triton's own schema, as NVIDIA's client ships it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgesmith.sdk.bundle import Bundle, file_sha256, write_bundle
from edgesmith.sdk.cli.app import main
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.manifest import Batch, TensorSpec, Variant
from edgesmith.sdk.triton import write_repository

MakeBundle = Callable[..., Path]
OUTPUTS = {
    "detect": (
        TensorSpec(name="boxes", dtype="float32", shape=("N", 3, 4)),
        TensorSpec(name="scores", dtype="float32", shape=("N", 3, 1)),
    ),
    "classify": (TensorSpec(name="logits", dtype="float32", shape=("N", 3)),),
}


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's messages. The file alone: the package around it needs gRPC."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install 'tritonclient[http]'")
    pytest.importorskip("google.protobuf", reason="pip install protobuf")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(schema: Any) -> Callable[[Path], Any]:
    """A configuration, read strictly: an unknown field or a wrong type is an error."""

    def read(path: Path) -> Any:
        text_format = importlib.import_module("google.protobuf.text_format")
        return text_format.Parse(path.read_text(), schema.ModelConfig())

    return read


def test_a_batched_detector(make_bundle: MakeBundle, parsed: Any, schema: Any, tmp_path: Path) -> None:
    path = make_bundle(outputs=OUTPUTS["detect"])
    (made,) = write_repository(path, tmp_path / "repository", instances=2, wait_ms=1.5)
    assert (made.name, made.version, made.variant, made.kind) == ("tiny", 1, "float", "KIND_AUTO")
    folder = tmp_path / "repository" / "tiny"
    assert (folder / "1" / "model.onnx").read_bytes() == Bundle.open(path).read("model.float.onnx")
    assert (folder / "labels.txt").read_text() == "ball\n"
    config = parsed(Path(made.config))
    assert (config.name, config.backend, config.platform) == ("tiny", "onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == 8
    (image,) = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("images", schema.TYPE_FP32, [3, 32, 32])
    assert {o.name: list(o.dims) for o in config.output} == {"boxes": [3, 4], "scores": [3, 1]}
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, schema.ModelInstanceGroup.KIND_AUTO)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"
    assert accelerator.parameters["trt_profile_opt_shapes"] == "images:4x3x32x32"
    assert accelerator.parameters["trt_profile_max_shapes"] == "images:8x3x32x32"
    (warm,) = config.model_warmup
    assert (warm.batch_size, list(warm.inputs["images"].dims), warm.inputs["images"].zero_data) == (
        1, [3, 32, 32], True,
    )  # fmt: skip
    assert config.parameters["edgesmith_bundle"].string_value == file_sha256(path)
    assert config.version_policy.latest.num_versions == 1


def test_a_fixed_batch_is_a_whole_tensor(make_bundle: MakeBundle, parsed: Any, tmp_path: Path) -> None:
    outputs = (TensorSpec(name="logits", dtype="float32", shape=(1, 3)),)
    inputs = (TensorSpec(name="images", dtype="float32", shape=(1, 3, 32, 32)),)
    path = make_bundle("classify", batch=Batch(), outputs=outputs, inputs=inputs)
    (made,) = write_repository(path, tmp_path, device="gpu", name="colors", engine_cache="/engines")
    config = parsed(Path(made.config))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 3, 32, 32]
    assert not config.HasField("dynamic_batching")
    assert config.output[0].label_filename == "labels.txt"
    assert (tmp_path / "colors" / "labels.txt").read_text().splitlines() == ["blue", "green", "red"]
    parameters = config.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters
    assert not [name for name in parameters if "profile" in name]
    assert parameters["trt_engine_cache_path"] == "/engines"


def test_a_bundle_with_a_graph_for_the_cpu_gives_two_models(
    make_bundle: MakeBundle, parsed: Any, schema: Any, tmp_path: Path
) -> None:
    bundle = Bundle.open(make_bundle(outputs=OUTPUTS["detect"]))
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    other = Variant(member="model.onnx", precision="int8", golden="golden/float.npz", tolerance={"boxes": 1})
    manifest = msgspec.structs.replace(
        bundle.manifest,
        chosen="int8",
        cpu="float",
        variants={**bundle.manifest.variants, "int8": other},
    )
    write_bundle(bundle.path, manifest, {**members, "model.onnx": b"the graph for GPUs"})
    made = write_repository(bundle.path, tmp_path / "r")
    assert [(m.name, m.variant, m.kind) for m in made] == [
        ("tiny", "int8", "KIND_AUTO"),
        ("tiny_cpu", "float", "KIND_CPU"),
    ]
    assert (tmp_path / "r/tiny/1/model.onnx").read_bytes() == b"the graph for GPUs"
    accelerators = parsed(Path(made[0].config)).optimization.execution_accelerators
    assert accelerators.gpu_execution_accelerator[0].parameters["precision_mode"] == "INT8"
    assert not parsed(Path(made[1].config)).HasField("optimization")
    (alone,) = write_repository(bundle.path, tmp_path / "cpu", device="cpu")
    assert (alone.name, alone.variant, alone.kind) == ("tiny", "float", "KIND_CPU")
    assert parsed(Path(alone.config)).instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU


def test_versions(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = make_bundle(outputs=OUTPUTS["detect"])
    assert write_repository(path, tmp_path)[0].version == 1
    assert write_repository(path, tmp_path)[0].version == 1  # the same graph again
    text = Bundle.open(path).read("model.float.onnx")
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    write_bundle(path, bundle.manifest, {**members, "model.float.onnx": text + b"\x00"})
    assert write_repository(path, tmp_path)[0].version == 2
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]


def test_names_and_labels_are_quoted(make_bundle: MakeBundle, parsed: Any, tmp_path: Path) -> None:
    outputs = (TensorSpec(name='a "b" \\ ü\n', dtype="float32", shape=("N", 3)),)
    (made,) = write_repository(make_bundle("classify", outputs=outputs), tmp_path)
    assert parsed(Path(made.config)).output[0].name == 'a "b" \\ ü\n'


def test_what_cannot_be_written(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_bundle(outputs=OUTPUTS["detect"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be written"):
        write_repository(path, tmp_path / "file")
    with pytest.raises(ConfigError, match="name"):
        write_repository(path, tmp_path, name="../up")
    with pytest.raises(SystemExit) as caught:
        main(["triton", str(path), "-o", str(tmp_path / "r"), "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["kind"] == "KIND_AUTO"
    with pytest.raises(SystemExit) as caught:
        main(["triton", str(path), "-o", str(tmp_path / "r")])
    assert "KIND_AUTO" in capsys.readouterr().out
