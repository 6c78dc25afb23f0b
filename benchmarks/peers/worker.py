"""Quantizes one graph with another tool; runs in that tool's environment, so nothing of edgesmith is here.

    python worker.py TOOL GRAPH.onnx IMAGES.npy OUT.onnx JOB.json

``JOB.json`` holds ``arguments`` for the tool and ``keep_float``, the nodes that stay in float. The last line
of the output is JSON with ``seconds`` (CPU time, the children's included) and ``peak_bytes``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

# Images whose inner tensors onnxruntime keeps at once: without it Percentile takes 12 GiB on YOLOX-nano.
AT_ONCE = 16


@dataclass(frozen=True)
class Job:
    """What is to be quantized, how, and where it goes; ``images`` are ``(N, C, H, W)``, mapped from disk."""

    graph: Path
    entry: str
    images: np.ndarray[Any, np.dtype[np.float32]]
    out: Path
    arguments: dict[str, Any]
    keep_float: tuple[str, ...]

    def feed(self, number: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """One image as the graph takes it."""
        return {self.entry: np.ascontiguousarray(self.images[number : number + 1])}


def with_onnxruntime(job: Job) -> None:
    """``quantize_static``: activations signed symmetric or unsigned, weights signed by channel."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.feeds = map(job.feed, range(len(job.images)))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    ready = job.out.with_suffix(".ready.onnx")
    quant_pre_process(str(job.graph), str(ready), skip_symbolic_shape=True)
    method, unsigned = job.arguments["method"], job.arguments.get("unsigned", False)
    extra: dict[str, Any] = {
        "ActivationSymmetric": not unsigned,
        "WeightSymmetric": True,
        "QuantizeBias": not job.arguments.get("float_bias", False),
    }
    if method != "MinMax":
        extra["CalibMaxIntermediateOutputs"] = AT_ONCE
    q.quantize_static(
        str(ready),
        str(job.out),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt8 if unsigned else q.QuantType.QInt8,
        weight_type=q.QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=list(job.keep_float),
        calibrate_method=getattr(q.CalibrationMethod, method),
        extra_options=extra,
    )
    ready.unlink()


def with_modelopt(job: Job) -> None:
    """ModelOpt's ONNX part: INT8, the rest in float32, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        str(job.graph),
        quantize_mode="int8",
        calibration_data={job.entry: np.asarray(job.images)},
        calibration_method=job.arguments["method"],
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in job.keep_float],
        output_path=str(job.out),
        log_level="WARNING",
    )


def with_nncf(job: Job) -> None:
    """NNCF's post-training quantization for the CPU, over all images."""
    import nncf  # type: ignore[import-not-found]
    from nncf.quantization import advanced_parameters as advanced  # type: ignore[import-not-found]

    presets = {"performance": nncf.QuantizationPreset.PERFORMANCE, "mixed": nncf.QuantizationPreset.MIXED}
    more = advanced.AdvancedQuantizationParameters()
    if job.arguments.get("per_tensor"):
        more.activations_quantization_params = advanced.QuantizationParameters(per_channel=False)
    result = nncf.quantize(
        onnx.load(job.graph),
        nncf.Dataset(list(range(len(job.images))), job.feed),
        preset=presets[job.arguments["preset"]],
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(job.images),
        fast_bias_correction=job.arguments.get("fast_bias_correction", True),
        ignored_scope=nncf.IgnoredScope(names=list(job.keep_float), validate=False),
        advanced_parameters=more,
    )
    onnx.save(result, job.out)


TOOLS: dict[str, Callable[[Job], None]] = {
    "onnxruntime": with_onnxruntime,
    "modelopt": with_modelopt,
    "nncf": with_nncf,
}
MODULES = {
    "onnxruntime": "onnxruntime.quantization",
    "modelopt": "modelopt.onnx.quantization",
    "nncf": "nncf",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=TOOLS)
    for name in ("graph", "images", "out", "job"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    given = json.loads(options.job.read_text())
    entry = onnx.load(options.graph, load_external_data=False).graph.input[0].name
    images = np.load(options.images, mmap_mode="r")
    job = Job(options.graph, entry, images, options.out, given["arguments"], tuple(given["keep_float"]))
    importlib.import_module(MODULES[options.tool])  # outside the time
    began = cpu_seconds()
    TOOLS[options.tool](job)
    print(json.dumps({"seconds": cpu_seconds() - began, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Most memory that was resident; ``ru_maxrss`` would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def cpu_seconds() -> float:
    """CPU time of this process and of its children that ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
