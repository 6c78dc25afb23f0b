"""Finds the TensorRT of this machine.

TensorRT is imported only when it is asked for, and all code receives it as ``trt``, so that TensorRT 10 and
11, TensorRT-RTX and the fake of :mod:`edgesmith.sdk.testing` go the same way. Enums are taken by name: their
numbers moved between versions.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from edgesmith.sdk.errors import BackendError

# TensorRT proper first; the others are TensorRT-RTX as its metapackage and as its bare bindings.
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
VARIABLE = "EDGESMITH_TENSORRT"
_SPEC = re.compile(r"(?P<module>[A-Za-z_][\w.]*)(?::(?P<maker>\w+)(?:\?(?P<query>.*))?)?")
LOWEST = (10, 3)


@dataclass(frozen=True)
class Found:
    """TensorRT as it was found.

    Attributes:
        trt: the module, or an object with its attributes; None where there is none.
        spec: how another process finds the same one, see :func:`load_library`.
        reason: why there is none.
    """

    trt: Any | None
    spec: str = ""
    reason: str | None = None

    def require(self) -> Any:
        """The module.

        Raises:
            BackendError: there is none.
        """
        if self.trt is None:
            raise BackendError(f"TensorRT cannot be used here: {self.reason}")
        return self.trt


def load_tensorrt(environment: Mapping[str, str] | None = None) -> Found:
    """The first TensorRT that loads.

    The environment variable ``EDGESMITH_TENSORRT`` names another one, such as
    ``edgesmith.sdk.testing.fake_tensorrt:make?version=10.3.0`` for tests without a GPU.
    """
    named = (os.environ if environment is None else environment).get(VARIABLE)
    faults = []
    for spec in (named,) if named else MODULES:
        if not named and importlib.util.find_spec(spec) is None:
            continue
        try:
            trt = load_library(spec)
        except BackendError as error:
            faults.append(str(error))
            continue
        if not is_rtx(trt) and version_of(trt)[:2] < LOWEST:
            faults.append(f"TensorRT {trt.__version__} is too old: 10.3 (JetPack 6) is the least")
            continue
        return Found(trt, spec)
    absent = (
        "the Python package tensorrt is not installed: on a Jetson `sudo apt install python3-libnvinfer` "
        "(and a "
        "virtual environment with --system-site-packages), elsewhere pip install 'edgesmith[tensorrt]'"
    )
    return Found(None, reason="; ".join(faults) or absent)


def load_library(spec: str) -> Any:
    """Import TensorRT by its specification: a module, or ``module:function?key=value&...`` that makes it.

    Raises:
        BackendError: it does not load.
    """
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise BackendError(f"{spec!r} does not name a TensorRT: write module, or module:function?key=value")
    try:
        module = importlib.import_module(parts["module"])
        if parts["maker"] is None:
            return module
        return getattr(module, parts["maker"])(
            **dict(parse_qsl(parts["query"] or "", keep_blank_values=True))
        )
    except (ImportError, OSError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        # A library that is there and does not load says so in many ways: a shared object, an ABI, CUDA.
        line = next(iter(str(error).strip().splitlines()), "no reason given")
        raise BackendError(
            f"{spec.partition('?')[0]} does not load: {type(error).__name__}: {line}"
        ) from error


def version_of(trt: Any) -> tuple[int, ...]:
    """TensorRT's version as numbers: ``(10, 3, 0)``; a fourth number where it has one."""
    return tuple(int(number) for number in re.findall(r"\d+", str(trt.__version__))[:4])


def is_rtx(trt: Any) -> bool:
    """Whether it is TensorRT-RTX, whose version numbers count on their own."""
    return hasattr(trt, "ComputeCapability")


def named(enum: Any, name: str) -> Any | None:
    """A member of an enum by name, None where this version has no such member."""
    return getattr(enum, name, None)


def title_of(trt: Any) -> str:
    """The library for people: ``TensorRT 10.3.0`` or ``TensorRT-RTX 1.7.1.116``."""
    return f"{'TensorRT-RTX' if is_rtx(trt) else 'TensorRT'} {trt.__version__}"
