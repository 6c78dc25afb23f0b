"""What the doctor looks at, gathered once: nothing is installed, changed or sent."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from edgesmith.sdk.board.sensors import Board, Gpu, PowerMode


@dataclass(frozen=True, slots=True)
class Library:
    """A library as it really loads: ``version`` and ``detail``, or ``error`` where it does not."""

    version: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One machine, as far as running and making bundles is concerned.

    Attributes:
        python: version of the interpreter.
        machine: ``x86_64`` or ``aarch64``.
        board: the Jetson's model, or None on any other machine.
        l4t: the Jetson's L4T release, where it tells.
        packages: version of each installed distribution by normalised name.
        requirements: edgesmith's own, as (extra or "", name, lowest version).
        onnxruntime, cv2, gstreamer, av, tensorrt: None where the module is not there.
        driver: the CUDA driver; None where there is no ``libcuda.so.1``.
        cache: the folder for engines; ``free_bytes`` on its file system.
        gpu, mode, fastest: a Jetson's GPU clocks, power mode, and the mode without limits.
        backends: in the order that ``auto`` tries them, each with why it cannot run here, or None.
    """

    python: tuple[int, int, int]
    machine: str
    board: str | None
    l4t: str | None
    packages: Mapping[str, str]
    requirements: tuple[tuple[str, str, str], ...]
    onnxruntime: Library | None
    cv2: Library | None
    gstreamer: Library | None
    av: Library | None
    tensorrt: Library | None
    driver: Library | None
    cache: Path
    free_bytes: int
    gpu: Gpu = field(default_factory=Gpu)
    mode: PowerMode | None = None
    fastest: PowerMode | None = None
    backends: tuple[tuple[str, str | None], ...] = ()


Order = Callable[[], list[tuple[str, "str | None"]]]


def gather(order: Order | None = None) -> Facts:
    """Look at this machine. Each library is imported; one that breaks is a fact like any other.

    ``order`` tells the backends in the order that ``auto`` tries them; they are built on this package, so
    whoever stands above both brings it (``backends.choose.order_here``).
    """
    cache, sensors = cache_folder(), Board()
    return Facts(
        python=sys.version_info[:3],
        machine=platform.machine(),
        board=_board(),
        l4t=l4t_release(),
        packages=installed_packages(),
        requirements=own_requirements(importlib.metadata.requires("edgesmith") or ()),
        onnxruntime=load("onnxruntime", _onnxruntime),
        cv2=load("cv2", _cv2),
        gstreamer=load("gi", _gstreamer),
        av=load("av", _av),
        tensorrt=load("tensorrt", _version_only),
        driver=_driver(),
        cache=cache,
        free_bytes=shutil.disk_usage(_existing(cache)).free,
        gpu=sensors.gpu(),
        mode=sensors.power_mode(),
        fastest=sensors.fastest_mode(),
        backends=_order(order) if order is not None else (),
    )


def _order(ask: Order) -> tuple[tuple[str, str | None], ...]:
    try:
        return tuple(ask())
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        # A library that is installed and does not load: its own check says more.
        return (("none", f"a library does not load: {type(error).__name__}: {error}"),)


def cache_folder() -> Path:
    """Where built engines are kept: ``edgesmith`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgesmith"


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_packages() -> dict[str, str]:
    """Version of each distribution on the path; the first one found counts, as in an import."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalised(name), distribution.version)
    return found


def own_requirements(lines: list[str] | tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    """(extra or "", name, lowest version) of each requirement that applies to this interpreter."""
    found = []
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*([^;]*)(?:;(.*))?$", line)
        if match is None:
            continue
        name, versions, marker = match[1], match[2], match[3] or ""
        limit = re.search(r"python_version\s*<\s*['\"](\d+)\.(\d+)", marker)
        if limit and sys.version_info[:2] >= (int(limit[1]), int(limit[2])):
            continue
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        lowest = re.search(r">=\s*([0-9.]+)", versions)
        found.append((extra[1] if extra else "", normalised(name), lowest[1] if lowest else ""))
    return tuple(found)


def load(module: str, look: Callable[[ModuleType], Library]) -> Library | None:
    """The module as ``look`` sees it; None where it is not installed."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
        return look(importlib.import_module(module))
    except (ImportError, OSError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        # A broken build says so in many ways: a missing shared object, an ABI that changed.
        lines = str(error).strip().splitlines() or [""]
        return Library(error=f"{type(error).__name__}: {lines[0]}")


def _version_only(module: ModuleType) -> Library:
    return Library(str(module.__version__), {"path": str(module.__file__)})


def _onnxruntime(module: Any) -> Library:
    return Library(str(module.__version__), {"providers": ", ".join(module.get_available_providers())})


def _cv2(module: Any) -> Library:
    features = build_features(module.getBuildInformation())
    return Library(str(module.__version__), {"path": str(module.__file__), **features})


def build_features(text: str) -> dict[str, str]:
    """``gui``, ``gstreamer`` and ``ffmpeg`` of OpenCV's build information; ``no`` where one lacks."""
    features = {}
    for name, key in (("gui", "GUI"), ("gstreamer", "GStreamer"), ("ffmpeg", "FFMPEG")):
        found = re.search(rf"^\s*{key}:[ \t]*(.*)$", text, re.MULTILINE)
        value = found[1].strip() if found else ""
        if name == "gui" and found and not value:  # some builds name the toolkit on the lines below
            section = text[found.end() :].split("\n\n", 1)[0]
            value = ", ".join(
                re.findall(r"^\s*(GTK\+|QT|Win32 UI|Cocoa|Wayland):\s*YES", section, re.MULTILINE)
            )
        features[name] = "no" if not value or value.upper().startswith("NO") else value
    return features


def _gstreamer(module: Any) -> Library:
    module.require_version("Gst", "1.0")
    gst = importlib.import_module("gi.repository.Gst")
    return Library(gst.version_string().removeprefix("GStreamer "), {"pygobject": str(module.__version__)})


def _av(module: Any) -> Library:
    try:
        encoder = module.codec.Codec("h264", "w").name
    except ValueError:  # PyAV's error for an unknown codec is one
        encoder = "none"
    return Library(str(module.__version__), {"h264": encoder})


def _driver() -> Library | None:
    """The CUDA driver's version and number of devices, by its C interface."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, devices = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(devices))
    text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if status:
        return Library(text, error=f"CUDA error {status} from cuInit")
    return Library(text, {"devices": str(devices.value)})


def _board() -> str | None:
    try:
        chips = Path("/proc/device-tree/compatible").read_bytes()
        model = Path("/proc/device-tree/model").read_bytes()
    except OSError:
        return None
    return model.rstrip(b"\0").decode(errors="replace") if b"nvidia,tegra" in chips else None


def l4t_release() -> str | None:
    """The Jetson's L4T release, such as ``36.4.3``; None on any other machine."""
    try:
        text = Path("/etc/nv_tegra_release").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
