"""TensorRT's enums as one version has them: members that came or went, and numbers that moved in 11."""

from __future__ import annotations

import enum
from typing import Any

# name: (number in 10, number in 11 and TensorRT-RTX); None where the version has no such member.
BUILDER_FLAGS: dict[str, tuple[int | None, int | None]] = {
    "FP16": (0, None),
    "INT8": (1, None),
    "DEBUG": (2, 2),
    "GPU_FALLBACK": (3, 3),
    "REFIT": (4, 4),
    "DISABLE_TIMING_CACHE": (5, 5),
    "TF32": (6, 6),
    "SPARSE_WEIGHTS": (7, 7),
    "SAFETY_SCOPE": (8, 8),
    "OBEY_PRECISION_CONSTRAINTS": (9, None),
    "PREFER_PRECISION_CONSTRAINTS": (10, None),
    "DIRECT_IO": (11, 11),
    "VERSION_COMPATIBLE": (13, 12),
    "EXCLUDE_LEAN_RUNTIME": (14, 13),
}
NETWORK_FLAGS: dict[str, tuple[int | None, int | None]] = {
    "EXPLICIT_BATCH": (0, None),
    "STRONGLY_TYPED": (1, 0),
}
SEVERITIES = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
# The same in every version.
FIXED: dict[str, dict[str, int]] = {
    "DataType": {
        "FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5, "FP8": 6, "BF16": 7, "INT64": 8
    },
    "DeviceType": {"GPU": 0, "DLA": 1},
    "TensorIOMode": {"NONE": 0, "INPUT": 1, "OUTPUT": 2},
    "TensorLocation": {"DEVICE": 0, "HOST": 1},
    "TensorFormat": {"LINEAR": 0},
    "MemoryPoolType": {
        "WORKSPACE": 0, "DLA_MANAGED_SRAM": 1, "DLA_LOCAL_DRAM": 2, "DLA_GLOBAL_DRAM": 3, "TACTIC_DRAM": 4
    },
    "ProfilingVerbosity": {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2},
    "HardwareCompatibilityLevel": {"NONE": 0, "AMPERE_PLUS": 1},
    "ExecutionContextAllocationStrategy": {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2},
    "LayerInformationFormat": {"ONELINE": 0, "JSON": 1},
    "ErrorCode": {"SUCCESS": 0, "INTERNAL_ERROR": 1, "MODEL_DESERIALIZE_FAILED": 3, "UNSUPPORTED_NODE": 8},
    "LayerType": {
        "CONVOLUTION": 0, "CAST": 1, "ACTIVATION": 2, "POOLING": 3, "SCALE": 5, "SOFTMAX": 6,
        "DECONVOLUTION": 7, "CONCATENATION": 8, "ELEMENTWISE": 9, "UNARY": 11, "SHUFFLE": 13, "REDUCE": 14,
        "TOPK": 15, "GATHER": 16, "MATRIX_MULTIPLY": 17, "CONSTANT": 19, "IDENTITY": 20, "SLICE": 22,
        "RESIZE": 25, "QUANTIZE": 32, "DEQUANTIZE": 33,
    },
}  # fmt: skip
CALIBRATORS = {
    "LEGACY_CALIBRATION": 0, "ENTROPY_CALIBRATION": 1, "ENTROPY_CALIBRATION_2": 2, "MINMAX_CALIBRATION": 3
}  # fmt: skip
RTX: dict[str, dict[str, int]] = {
    "ComputeCapability": {
        "NONE": 0, "CURRENT": 1, "SM75": 75, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120, "SM121": 121
    },
}  # fmt: skip


def enums_of(numbers: tuple[int, ...], rtx: bool) -> dict[str, Any]:
    """The enums of one version, by name."""
    modern = rtx or numbers[0] >= 11
    tables = dict(FIXED)
    for name, members in (("BuilderFlag", BUILDER_FLAGS), ("NetworkDefinitionCreationFlag", NETWORK_FLAGS)):
        picked = {member: pair[modern] for member, pair in members.items()}
        tables[name] = {member: number for member, number in picked.items() if number is not None}
    if not modern:
        tables["CalibrationAlgoType"] = CALIBRATORS
    if rtx:
        tables.update(RTX)
    return {name: _enum(name, members) for name, members in tables.items()}


def severity() -> Any:
    """``ILogger.Severity``."""
    return _enum("Severity", SEVERITIES)


def _enum(name: str, members: dict[str, int]) -> Any:
    # Not an IntEnum: TensorRT's compare with their own kind alone, and `int()` gives the number.
    made = enum.Enum(name, members)  # type: ignore[misc]  # members known at run time only
    made.__int__ = lambda self: int(self.value)  # type: ignore[attr-defined]
    made.__index__ = lambda self: int(self.value)  # type: ignore[attr-defined]
    return made
