"""The other tools' settings that INT8 is held against, each in an environment of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One way to call a tool.

    ``environment`` names the requirements and the worker script; ``arguments`` go to the script as JSON.
    ``tensorrt`` is True where TensorRT takes the file's scales (signed symmetric, one an activation); its
    INT32 biases TensorRT would still refuse where ``arguments`` do not say ``float_bias``.
    """

    environment: str
    arguments: dict[str, Any]
    tensorrt: bool


_NNCF_EXACT = {"fast_bias_correction": False}
SETTINGS: dict[str, Setting] = {
    "ort_minmax": Setting("onnxruntime", {"method": "MinMax"}, True),
    "ort_minmax_float_bias": Setting("onnxruntime", {"method": "MinMax", "float_bias": True}, True),
    "ort_entropy": Setting("onnxruntime", {"method": "Entropy"}, True),
    "ort_percentile": Setting("onnxruntime", {"method": "Percentile"}, True),
    "ort_cpu": Setting("onnxruntime", {"method": "MinMax", "unsigned": True}, False),
    "modelopt_max": Setting("modelopt", {"method": "max"}, True),
    "modelopt_entropy": Setting("modelopt", {"method": "entropy"}, True),
    "nncf_default": Setting("nncf", {"preset": "performance"}, False),
    "nncf_mixed": Setting("nncf", {"preset": "mixed"}, False),
    "nncf_default_exact_bias": Setting("nncf", {"preset": "performance", **_NNCF_EXACT}, False),
    "nncf_mixed_exact_bias": Setting("nncf", {"preset": "mixed", **_NNCF_EXACT}, False),
    "nncf_per_tensor": Setting("nncf", {"preset": "performance", "per_tensor": True}, False),
}
