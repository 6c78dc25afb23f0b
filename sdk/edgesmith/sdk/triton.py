"""A bundle as a model repository of NVIDIA's Triton server.

    repository/NAME/config.pbtxt            batching, instances, TensorRT, warm-up
    repository/NAME/labels.txt              class names, one a line
    repository/NAME/1/model.onnx            the graph; a number higher for each other one that is written

Triton runs the graph alone: its clients prepare the input and decode the outputs as the bundle's manifest
says, which this package does (``Model.prepare`` and ``Model.decode``). Settings of the ONNX Runtime backend:
https://github.com/triton-inference-server/onnxruntime_backend
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgesmith.sdk.bundle import Bundle, file_sha256
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.manifest import Manifest, TensorSpec
from edgesmith.sdk.replacing import replaced

Device = Literal["auto", "gpu", "cpu"]
_KINDS: Mapping[str, str] = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}
_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32",
    "int64": "TYPE_INT64", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
}  # fmt: skip
_WORKSPACE_BYTES = 1 << 30
_WARMUP_SIDE = 64  # of a picture, where the graph takes any size
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What TensorRT may use beyond float32, by a variant's precision; the graph says where it does.
_PRECISION = {"fp16": "FP16", "int8": "INT8"}


class _Enum(str):
    """A word that stands without quotes in the text format."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the repository: its ``version``, the bundle's ``variant``, where its instances run."""

    name: str
    version: int
    variant: str
    kind: str
    config: str


def write_repository(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    device: Device = "auto",
    instances: int = 1,
    wait_ms: float = 2.0,
    engine_cache: str | None = None,
) -> list[Written]:
    """Write a bundle's graph with its configuration into a model repository.

    With ``device = "auto"`` Triton puts it on the GPU, under TensorRT, and where there is none on the CPU. A
    bundle that has a graph of its own for the CPU then gives two models, ``NAME`` and ``NAME_cpu``.

    Args:
        bundle: the ``.edge`` file.
        repository: its folder; made where it is missing, other models in it stay.
        name: of the model; the bundle's own unless given.
        device: where its instances run.
        instances: how many on each GPU, or on the CPU.
        wait_ms: how long a request waits for others to share its batch.
        engine_cache: folder on Triton's machine where TensorRT's engines are kept; without one they are
            built at every start.

    Raises:
        BundleError: the bundle cannot be read.
        ConfigError: a name or a tensor that Triton cannot have.
        SinkError: the repository cannot be written.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", manifest.name).lstrip("._-") or "model"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of a model in Triton: letters, digits, . _ -")
    if instances < 1:
        raise ConfigError(f"instances is {instances}; it must be 1 or more")
    own_cpu = manifest.cpu if manifest.cpu not in (None, manifest.chosen) else None
    graphs = {name: (manifest.cpu or manifest.chosen if device == "cpu" else manifest.chosen, device)}
    if device == "auto" and own_cpu is not None:
        graphs[f"{name}_cpu"] = (own_cpu, "cpu")
    made = []
    for model, (variant, where) in graphs.items():
        graph = opened.read(manifest.variants[variant].member)
        fields = _config(
            manifest, model, variant, where, instances, wait_ms, file_sha256(bundle), engine_cache
        )
        text = "\n".join(_lines(fields)) + "\n"
        version = _write(Path(repository) / model, graph, text, manifest.labels)
        config = str(Path(repository) / model / "config.pbtxt")
        made.append(Written(name=model, version=version, variant=variant, kind=_KINDS[where], config=config))
    return made


def _config(
    manifest: Manifest,
    name: str,
    variant: str,
    device: str,
    instances: int,
    wait_ms: float,
    sha256: str,
    cache: str | None,
) -> dict[str, Any]:
    """The fields of Triton's ModelConfig, in its names."""
    batch = manifest.batch
    # Triton's batches begin at one image; a graph that takes a fixed number sees whole tensors.
    batched = batch.max > 1 and batch.min == 1
    fields: dict[str, Any] = {
        "name": name,
        "backend": "onnxruntime",
        "platform": "onnxruntime_onnx",
        "default_model_filename": "model.onnx",
        "max_batch_size": batch.max if batched else 0,
        "input": [_tensor(spec, batched) for spec in manifest.inputs],
        "output": [_tensor(spec, batched) for spec in manifest.outputs],
        "instance_group": [{"count": instances, "kind": _Enum(_KINDS[device])}],
        "version_policy": {"latest": {"num_versions": 1}},
    }
    if manifest.task == "classify" and manifest.labels:
        fields["output"][0]["label_filename"] = "labels.txt"
    if batched:
        fields["dynamic_batching"] = {
            "preferred_batch_size": sorted({batch.opt, batch.max}),
            "max_queue_delay_microseconds": round(wait_ms * 1e3),
        }
    if device != "cpu":
        accelerator = {"name": "tensorrt", "parameters": _tensorrt(manifest, variant, batched, cache)}
        fields["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    fields["model_warmup"] = [_warmup(manifest, batched)]
    about = {"edgesmith_bundle": sha256, "edgesmith_variant": variant, "edgesmith_task": manifest.task}
    fields["parameters"] = {key: {"string_value": value} for key, value in about.items()}
    return fields


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    if spec.dtype not in _TYPES:
        raise ConfigError(f"{spec.name} is {spec.dtype}, which Triton does not take")
    sides = [side if isinstance(side, int) else -1 for side in spec.shape]
    return {
        "name": spec.name,
        "data_type": _Enum(_TYPES[spec.dtype]),
        "dims": sides[1:] if batched else sides,
    }


def _tensorrt(manifest: Manifest, variant: str, batched: bool, cache: str | None) -> dict[str, str]:
    """Parameters of ONNX Runtime's TensorRT provider."""
    found = {
        "precision_mode": _PRECISION.get(manifest.variants[variant].precision, "FP32"),
        "max_workspace_size_bytes": str(_WORKSPACE_BYTES),
    }
    if cache is not None:
        found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": cache}
    if batched and all(isinstance(side, int) for spec in manifest.inputs for side in spec.shape[1:]):
        for end in ("min", "opt", "max"):
            shapes = []
            for spec in manifest.inputs:
                sides = (getattr(manifest.batch, end), *spec.shape[1:])
                shapes.append(f"{spec.name}:{'x'.join(map(str, sides))}")
            found[f"trt_profile_{end}_shapes"] = ",".join(shapes)
    return found


def _warmup(manifest: Manifest, batched: bool) -> dict[str, Any]:
    """One run of zeros before the first request: it builds the engine."""
    inputs = {}
    for spec in manifest.inputs:
        tensor = _tensor(spec, batched)
        sides = [side if side > 0 else _WARMUP_SIDE for side in tensor["dims"]]
        if not batched:
            sides[0] = manifest.batch.opt
        inputs[spec.name] = {"data_type": tensor["data_type"], "dims": sides, "zero_data": True}
    return {"name": "zeros", "batch_size": 1 if batched else 0, "inputs": inputs}


def _write(folder: Path, graph: bytes, config: str, labels: Sequence[str]) -> int:
    """The model's files; the graph as a new version, unless the newest is the same. Returns its number."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        versions = sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())
        newest = versions[-1] if versions else 0
        same = newest and (folder / str(newest) / "model.onnx").read_bytes() == graph
        version = newest if same else newest + 1
        if not same:
            # Triton may be looking: a version appears with its graph in it.
            making = folder / f".{secrets.token_hex(4)}"
            making.mkdir()
            (making / "model.onnx").write_bytes(graph)
            making.rename(folder / str(version))
        _replace(folder / "labels.txt", "".join(f"{label}\n" for label in labels))
        _replace(folder / "config.pbtxt", config)
    except OSError as error:
        raise SinkError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return version


def _replace(path: Path, text: str) -> None:
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Protobuf's text format: messages as dicts, maps as dicts below ``parameters`` and ``inputs``."""
    for name, value in fields.items():
        for item in _items(name, value):
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"
            elif isinstance(item, list):
                yield f"{indent}{name}: [{', '.join(map(str, item))}]"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _items(name: str, value: Any) -> list[Any]:
    if name in ("parameters", "inputs"):
        return [{"key": key, "value": inner} for key, inner in value.items()]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return value
    return [value]


def _scalar(value: Any) -> str:
    if isinstance(value, _Enum):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()  # JSON's escapes are among those of the text format
    return str(value)
