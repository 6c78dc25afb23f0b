"""TensorRT's calibration cache, written and read: text, one tensor a line.

    TRT-100300-EntropyCalibration2
    images: 3c010a14
    stem/Relu: 3d20e6d3

The first line names the TensorRT that may read it (10.3.0) and the calibrator; TensorRT refuses a cache of
another version. The number is the scale, a float32 whose bytes stand in big-endian order as hexadecimal
digits: the largest magnitude that counts, divided by 127 (1/127 above). The form is that of the developer
guide's INT8 calibration chapter and of the caches that NVIDIA publishes with its models. Only TensorRT up to
10.x has calibrators; edgesmith writes it for DLA on TensorRT <= 10.7.

A cache has one symmetric scale a tensor. What a quantizer has beside it, a factor by channel or a shift, has
no place here: :func:`plain_scale` gives the symmetric scale that covers the same values.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import NamedTuple

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.sdk.errors import CalibrationError

_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:\.\d+)?")
ALGORITHM = "EntropyCalibration2"  # the calibrator that DLA needs


class Cache(NamedTuple):
    """A cache file: TensorRT's version as one number, the calibrator's name, scales by tensor name."""

    version: int
    algorithm: str
    scales: dict[str, float]


def version_number(version: str) -> int:
    """TensorRT's own number for a version: ``10.3.0`` is 100300, ``8.5.2`` is 8502.

    Raises:
        CalibrationError: it is not a version of three or four numbers.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise CalibrationError(f"{version!r} is not a TensorRT version: give it as 10.3.0")
    major, minor, patch = (int(number) for number in found.groups())
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch


def plain_scale(quantizer: Quantizer) -> float:
    """The symmetric scale of a tensor whose quantizer may have a shift and factors."""
    steps = max(abs(quantizer.shift - 128), abs(quantizer.shift + 127)) if quantizer.shift else 127
    return steps / 127 * quantizer.scale * max(quantizer.factor or (1.0,))


def write_cache(scales: Mapping[str, float], *, version: str, algorithm: str = ALGORITHM) -> str:
    """The text of a cache for one version of TensorRT, ``10.3.0`` for example.

    Raises:
        CalibrationError: a scale is not a positive float32, a name cannot stand in a line, or the version is
            none.
    """
    lines = [f"TRT-{version_number(version)}-{algorithm}"]
    for name, scale in scales.items():
        if not name or name != name.strip() or any(c in name for c in "\r\n"):
            raise CalibrationError(f"tensor {name!r} cannot be named in a calibration cache: rename it")
        try:
            digits = struct.pack(">f", scale)
        except OverflowError:
            digits = struct.pack(">f", math.inf)
        (rounded,) = struct.unpack(">f", digits)
        if not (math.isfinite(rounded) and rounded > 0):
            raise CalibrationError(f"tensor {name} has the scale {scale:g}: it must be a positive float32")
        lines.append(f"{name}: {digits.hex()}")
    return "\n".join(lines) + "\n"


def read_cache(text: str) -> Cache:
    """Read what TensorRT or :func:`write_cache` wrote.

    Raises:
        CalibrationError: a line is malformed; the message has its number.
    """
    lines = text.splitlines()
    header = _HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None:
        shown = lines[0] if lines else ""
        raise CalibrationError(
            f"line 1: {shown[:60]!r} is not the head of a calibration cache (TRT-100300-EntropyCalibration2)"
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.rstrip())
        if found is None:
            raise CalibrationError(f"line {number}: {line[:60]!r} is not `tensor: eight hexadecimal digits`")
        (scale,) = struct.unpack(">f", bytes.fromhex(found[2].zfill(8)))
        if not (math.isfinite(scale) and scale > 0):
            raise CalibrationError(
                f"line {number}: tensor {found[1]} has the scale {scale:g}, not a positive number"
            )
        if found[1] in scales:
            raise CalibrationError(f"line {number}: tensor {found[1]} stands here for the second time")
        scales[found[1]] = scale
    return Cache(int(header[1]), header[2], scales)
