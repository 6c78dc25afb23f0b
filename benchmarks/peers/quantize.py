"""One model through every setting of the other tools: files, or why there is none.

Every tool gets the same float graph, the same images, and the same layers to leave in float as ours leaves:
the ones that make the outputs, products of a single row, and everything behind them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgesmith.calibration.images import Images, tensors
from edgesmith.calibration.sites import sites_of
from edgesmith.converters.precision.decide import never_quantized
from edgesmith.sdk.preprocess import Preprocess
from peers.environments import interpreter
from peers.settings import SETTINGS

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
MOST_IMAGES = 512  # of the calibration images: ranges settle long before
LIMIT_S = 1200.0
_TOLD = 300  # characters of a tool's own message that are kept
_PASSING_THROUGH = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Pad", "Slice", "Split", "MaxPool",
    "Resize", "DepthToSpace", "SpaceToDepth",
})  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a setting came to: a file, or the tool's message; CPU seconds and peak memory of the worker."""

    setting: str
    path: Path | None = None
    failure: str | None = None
    seconds: float | None = None
    peak_bytes: int | None = None


def job_of(float_graph: bytes, images: Images, preprocess: Preprocess) -> Path:
    """A folder for the graph, its images and the node names that stay in float; made once for each input."""
    shown = images.sample(MOST_IMAGES, 0)
    digest = hashlib.sha256(float_graph + shown.fingerprint().encode()).hexdigest()[:16]
    folder = WORK / digest
    if (folder / "keep_float.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    graph = onnx.load_from_string(float_graph)
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0]
    batch.Clear()
    batch.dim_value = 1
    onnx.save(graph, folder / "float.onnx")
    np.save(folder / "images.npy", np.concatenate(list(tensors(shown, preprocess))))
    (folder / "keep_float.json").write_text(json.dumps(kept_in_float(graph)))
    return folder


def kept_in_float(graph: onnx.ModelProto) -> list[str]:
    """Nodes that our INT8 leaves in float: output layers, single-row products, and all that follow them."""
    model = ir.serde.deserialize_model(graph)
    sites = sites_of(model)
    reasons = never_quantized(sites, ())
    waiting = [site.node for site in sites if site.name in reasons]
    found: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node.name is not None and node.name not in found:
            found[node.name] = None
            waiting += [use.node for value in node.outputs for use in value.uses()]
    return list(found)


def quantized(folder: Path, settings: Iterable[str]) -> dict[str, Made]:
    """Every setting's file; one that is there from an earlier run is taken as it is."""
    return {setting: _quantized(folder, setting) for setting in settings}


def _quantized(folder: Path, setting: str) -> Made:
    out, told = folder / f"{setting}.onnx", folder / f"{setting}.json"
    if not told.exists():
        told.write_text(json.dumps(_worked(folder, setting, out)))
    figures = json.loads(told.read_text())
    return Made(setting, out if figures.get("failure") is None else None, **figures)


def _worked(folder: Path, setting: str, out: Path) -> Mapping[str, object]:
    keep = json.loads((folder / "keep_float.json").read_text())
    return run_worker(setting, folder / "float.onnx", folder / "images.npy", out, keep)


def run_worker(
    setting: str, graph: Path, images: Path, out: Path, keep_float: Sequence[str] = ()
) -> Mapping[str, object]:
    """Quantize in the tool's environment: ``seconds`` and ``peak_bytes``, or ``failure`` with its message."""
    chosen = SETTINGS[setting]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as place:
        job = Path(place) / "job.json"
        job.write_text(json.dumps({"arguments": chosen.arguments, "keep_float": list(keep_float)}))
        command: list[str | Path] = [
            interpreter(chosen.environment), HERE / "worker.py", chosen.environment, graph, images, out, job,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=settings)
        except subprocess.TimeoutExpired:
            return {"failure": f"not done after {LIMIT_S:.0f} s"}
    if done.returncode == 0 and out.exists():
        figures: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return figures
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    message = next(
        (line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message"
    )
    where = "" if done.returncode >= 0 else f"killed by signal {-done.returncode}: "
    return {"failure": (where + message.strip().replace(str(out.parent), "."))[:_TOLD]}


def int8_share(quantized_graph: onnx.ModelProto, float_graph: onnx.ModelProto) -> float:
    """Share (0..1) of the multiply-accumulates whose layer reads integers at both inputs.

    Layers are found by their names; one that the tool renamed counts as float.
    """
    model = ir.serde.deserialize_model(quantized_graph)
    integers = {
        node.name for node in model.graph if len(node.inputs) > 1 and all(map(_integer, node.inputs[:2]))
    }
    sites = sites_of(ir.serde.deserialize_model(float_graph))
    return sum(site.macs for site in sites if site.name in integers) / sum(site.macs for site in sites)


def _integer(value: ir.Value | None) -> bool:
    """Whether a value is integers that were only passed on since (by a Concat where all inputs are)."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type == "DequantizeLinear":
        return producer is not None
    if producer.op_type == "Concat":
        return all(map(_integer, producer.inputs))
    return producer.op_type in _PASSING_THROUGH and _integer(producer.inputs[0])
