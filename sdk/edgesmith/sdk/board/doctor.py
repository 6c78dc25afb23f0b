"""Is this machine ready: one small function a question, each with the command that mends it.

``ok`` is ready, or an optional part that is absent; ``warn`` works, but not as it could;
``fail`` does not work. A check looks at :class:`~edgesmith.sdk.board.facts.Facts` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from edgesmith.sdk.board.facts import Facts, gather

Status = Literal["ok", "warn", "fail"]
LOWEST_TENSORRT = "10.3"
ENOUGH_BYTES, LITTLE_BYTES = 4 << 30, 500 << 20
OPENCV = (
    "opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip
CUDA_USERS = ("onnxruntime-gpu", "tensorrt", "pycuda")
Answer = tuple[Status, str, str | None]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ``mend`` is the command or change that mends or adds it, None where nothing is to do."""

    name: str
    status: Status
    detail: str
    mend: str | None = None


def examine(facts: Facts | None = None) -> list[Check]:
    """All checks in order, of this machine or of the given facts."""
    facts = gather() if facts is None else facts
    checks = []
    for name, look in CHECKS:
        status, detail, mend = look(facts)
        checks.append(Check(name=name, status=status, detail=detail, mend=mend))
    return checks


def ok(detail: str, mend: str | None = None) -> Answer:
    """Ready, or an optional part that is absent."""
    return "ok", detail, mend


def warn(detail: str, mend: str) -> Answer:
    """It works, but not as it could."""
    return "warn", detail, mend


def fail(detail: str, mend: str) -> Answer:
    """It does not work."""
    return "fail", detail, mend


def _python(facts: Facts) -> Answer:
    text = ".".join(str(n) for n in facts.python)
    if facts.python < (3, 10, 0):
        return fail(f"{text}; edgesmith needs 3.10 to 3.13", "install Python 3.10 to 3.13")
    if facts.python >= (3, 14, 0):
        return warn(f"{text}; edgesmith is tested on 3.10 to 3.13", "use Python 3.10 to 3.13")
    return ok(f"{text} on {facts.machine}")


def _board(facts: Facts) -> Answer:
    if facts.board is None:
        return ok("no Jetson")
    if facts.l4t is None:
        return warn(f"{facts.board}, without /etc/nv_tegra_release", "sudo apt install nvidia-l4t-core")
    return ok(f"{facts.board}, L4T {facts.l4t}")


def _edgesmith(facts: Facts) -> Answer:
    needed = [(name, lowest) for extra, name, lowest in facts.requirements if not extra]
    missing, old = _state(facts, needed)
    version = facts.packages.get("edgesmith", "not installed as a package")
    if missing or old:
        return fail(f"{version}; {_told(missing, old)}", "pip install --upgrade edgesmith")
    return ok(f"{version}, with {', '.join(f'{n} {facts.packages[n]}' for n, _ in needed)}")


def _extras(facts: Facts) -> Answer:
    extras: dict[str, list[tuple[str, str]]] = {}
    for extra, name, lowest in facts.requirements:
        if extra and extra != "dev":
            extras.setdefault(extra, []).append((name, lowest))
    complete = []
    for extra, needed in extras.items():
        missing, old = _state(facts, needed)
        if old:
            return warn(f"extra {extra}: {_told([], old)}", f"pip install --upgrade 'edgesmith[{extra}]'")
        if not missing:
            complete.append(extra)
    absent = [extra for extra in extras if extra not in complete]
    text = f"complete: {', '.join(complete) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    return ok(text, "pip install 'edgesmith[NAME]'" if absent else None)


def _state(facts: Facts, needed: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Of (name, lowest version): what is missing, and what is too old."""
    missing = [name for name, _ in needed if name not in facts.packages]
    old = [
        f"{name} {facts.packages[name]} (needs {lowest})"
        for name, lowest in needed
        if name in facts.packages and _number(facts.packages[name]) < _number(lowest)
    ]
    return missing, old


def _told(missing: list[str], old: list[str]) -> str:
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    return "; ".join(parts + ([f"too old: {', '.join(old)}"] if old else []))


def _number(version: str) -> tuple[int, ...]:
    """The release numbers, without trailing zeros: 2.10 is after 2.9, and 3.0 is 3."""
    numbers = re.match(r"v?([0-9]+(?:\.[0-9]+)*)", version)
    parts = [int(n) for n in numbers[1].split(".")] if numbers else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _onnxruntime(facts: Facts) -> Answer:
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in facts.packages]
    extra = "gpu" if facts.driver is not None and not facts.board else "runtime"
    if len(wheels) == 2:
        return fail(
            "onnxruntime and onnxruntime-gpu are both installed: one has overwritten the other",
            f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgesmith[{extra}]'",
        )
    if facts.onnxruntime is None:
        if facts.tensorrt is not None and facts.tensorrt.error is None:
            return ok("not installed; TensorRT runs bundles here")
        mend = "sudo apt install nvidia-jetpack" if facts.board else f"pip install 'edgesmith[{extra}]'"
        return warn("not installed, nor is TensorRT: bundles can be read but not run", mend)
    if facts.onnxruntime.error:
        mend = f"pip install --force-reinstall {wheels[0] if wheels else 'onnxruntime'}"
        return fail(f"does not load: {facts.onnxruntime.error}", mend)
    text = f"{facts.onnxruntime.version}, offers {facts.onnxruntime.detail['providers']}"
    if wheels == ["onnxruntime-gpu"] and facts.driver is None:
        return warn(
            f"{text}; without NVIDIA's driver the GPU wheel silently runs on the CPU",
            "pip uninstall -y onnxruntime-gpu && pip install 'edgesmith[runtime]'",
        )
    return ok(text)


def _opencv(facts: Facts) -> Answer:
    wheels = [name for name in OPENCV if name in facts.packages]
    if len(wheels) > 1:
        keep = "opencv-python" if "opencv-python" in wheels else wheels[0]
        return fail(
            f"{' and '.join(wheels)} are both installed: they share one folder and overwrite each other",
            f"pip uninstall -y {' '.join(wheels)} && pip install {keep}",
        )
    if facts.cv2 is None:
        mend = "sudo apt install python3-opencv" if facts.board else "pip install 'edgesmith[runtime]'"
        return warn("no cv2: bundles can be read but not run", mend)
    if facts.cv2.error:
        mend = f"pip install --force-reinstall {wheels[0] if wheels else 'opencv-python-headless'}"
        return fail(f"does not load: {facts.cv2.error}", mend)
    detail = facts.cv2.detail
    parts = {"gstreamer": "GStreamer", "gui": "windows", "ffmpeg": "FFmpeg"}
    lacking = [name for key, name in parts.items() if detail[key] == "no"]
    source = f"from {wheels[0]}" if wheels else "not from a wheel"
    text = f"{facts.cv2.version} {source}, {detail['path']}"
    text += f"; without {', '.join(lacking)}" if lacking else ""
    if facts.board and wheels:
        text += "; it hides JetPack's own build, which has GStreamer"
        return warn(text, f"pip uninstall -y {wheels[0]}")
    if "FFmpeg" in lacking and "GStreamer" in lacking:
        text += ": neither video files nor streams can be read"
        return warn(text, f"pip install --upgrade {wheels[0] if wheels else 'opencv-python-headless'}")
    if "windows" in lacking and "opencv-python-headless" in wheels:
        mend = "pip uninstall -y opencv-python-headless && pip install 'edgesmith[desktop]'"
        return ok(text, mend)
    return ok(text)


def _gstreamer(facts: Facts) -> Answer:
    headers = "sudo apt install libgirepository1.0-dev libcairo2-dev pkg-config"
    system = "sudo apt install python3-gi python3-gst-1.0 gir1.2-gst-plugins-base-1.0"
    if facts.gstreamer is None:
        text = "no PyGObject: CSI cameras and RTSP with little delay need it"
        return warn(text, system) if facts.board else ok(text, f"{headers} && pip install 'edgesmith[gst]'")
    if facts.gstreamer.error:
        return fail(f"PyGObject is there, but GStreamer does not load: {facts.gstreamer.error}", system)
    return ok(f"{facts.gstreamer.version} by PyGObject {facts.gstreamer.detail['pygobject']}")


def _video(facts: Facts) -> Answer:
    if facts.av is None:
        return ok("no PyAV: H.264 files need it", "pip install 'edgesmith[video]'")
    again = "pip install --force-reinstall --only-binary av av"
    if facts.av.error:
        return fail(f"PyAV does not load: {facts.av.error}", again)
    if facts.av.detail["h264"] == "none":
        return warn(f"PyAV {facts.av.version} has no H.264 encoder", again)
    return ok(f"PyAV {facts.av.version}, H.264 by {facts.av.detail['h264']}")


def _driver(facts: Facts) -> Answer:
    if facts.driver is None:
        if facts.board:
            return fail("no libcuda.so.1 on a Jetson", "sudo apt install --reinstall nvidia-l4t-cuda")
        users = [name for name in CUDA_USERS if name in facts.packages]
        if users:
            return warn(f"no libcuda.so.1, though there is {', '.join(users)}", "install NVIDIA's driver")
        return ok("none: bundles run on the CPU")
    if facts.driver.error:
        return fail(
            f"CUDA {facts.driver.version} driver: {facts.driver.error}",
            "see what nvidia-smi says; start a container with --gpus all, or --runtime nvidia",
        )
    return ok(f"CUDA {facts.driver.version}, devices: {facts.driver.detail['devices']}")


def _tensorrt(facts: Facts) -> Answer:
    mend = "sudo apt install nvidia-jetpack" if facts.board else "pip install 'edgesmith[tensorrt]'"
    if facts.tensorrt is None:
        if facts.board:
            text = "not there; a virtual environment sees JetPack's with --system-site-packages"
            return fail(text, mend)
        return ok("not installed", mend if facts.driver is not None else None)
    if facts.tensorrt.error:
        return fail(f"does not load: {facts.tensorrt.error}", mend)
    if _number(facts.tensorrt.version) < _number(LOWEST_TENSORRT):
        return fail(
            f"{facts.tensorrt.version}: bundles need {LOWEST_TENSORRT} or later, for opset 19 and 20",
            "upgrade to JetPack 6.1 or later"
            if facts.board
            else "pip install --upgrade 'edgesmith[tensorrt]'",
        )
    return ok(facts.tensorrt.version)


def _pycuda(facts: Facts) -> Answer:
    extra = "jetson" if facts.board else "gpu"
    if "pycuda" in facts.packages:
        return ok(facts.packages["pycuda"])
    if facts.tensorrt is not None:
        return warn("not installed: TensorRT runs need it", f"pip install 'edgesmith[{extra}]'")
    return ok("not installed; only TensorRT runs need it")


def _numpy(facts: Facts) -> Answer:
    version = facts.packages.get("numpy")
    if version is None:
        return ok("not installed as a package")
    signs = ("numpy", "multiarray", "_ARRAY_API")
    libraries = {"onnxruntime": facts.onnxruntime, "cv2": facts.cv2, "tensorrt": facts.tensorrt}
    broken = [
        name
        for name, found in libraries.items()
        if found is not None and found.error and any(sign in found.error for sign in signs)
    ]
    if broken and _number(version) >= (2,):
        return fail(f"{version}; built for numpy 1: {', '.join(broken)}", "pip install 'numpy<2'")
    return ok(version)


def _power_mode(facts: Facts) -> Answer:
    if not facts.board:
        return ok("no Jetson")
    if facts.mode is None:
        return ok("not told: /var/lib/nvpmodel/status cannot be read")
    text = f"{facts.mode.name} (number {facts.mode.number})"
    if facts.fastest is not None and facts.fastest.number != facts.mode.number:
        return warn(f"{text}, not {facts.fastest.name}", f"sudo nvpmodel -m {facts.fastest.number}")
    return ok(text)


def _clocks(facts: Facts) -> Answer:
    if not facts.board:
        return ok("no Jetson")
    gpu = facts.gpu
    if gpu.locked is None:
        return ok("the GPU's limits are not told")
    if gpu.locked:
        return ok(f"GPU locked at {gpu.max_mhz:.0f} MHz")
    text = f"GPU not locked: {gpu.min_mhz:.0f} to {gpu.max_mhz:.0f} MHz, so timings vary"
    return warn(text, "sudo jetson_clocks")


def _backends(facts: Facts) -> Answer:
    told = "; ".join(name if why is None else f"{name} (no: {why})" for name, why in facts.backends)
    if facts.backends and all(why is not None for _, why in facts.backends):
        mend = "sudo apt install nvidia-jetpack" if facts.board else "pip install 'edgesmith[runtime]'"
        return warn(f"none runs: {told}", mend)
    return ok(f"in this order: {told}" if told else "not looked at")


def _disk(facts: Facts) -> Answer:
    text = f"{facts.free_bytes / 2**30:.1f} GiB free for engines in {facts.cache}"
    mend = "free some space, or set XDG_CACHE_HOME to a larger disk"
    if facts.free_bytes < LITTLE_BYTES:
        return fail(text, mend)
    if facts.free_bytes < ENOUGH_BYTES:
        return warn(text, mend)
    return ok(text)


CHECKS: tuple[tuple[str, Callable[[Facts], Answer]], ...] = (
    ("python", _python),
    ("board", _board),
    ("edgesmith", _edgesmith),
    ("extras", _extras),
    ("numpy", _numpy),
    ("onnxruntime", _onnxruntime),
    ("opencv", _opencv),
    ("gstreamer", _gstreamer),
    ("video", _video),
    ("cuda driver", _driver),
    ("tensorrt", _tensorrt),
    ("pycuda", _pycuda),
    ("backends", _backends),
    ("power mode", _power_mode),
    ("clocks", _clocks),
    ("disk", _disk),
)
