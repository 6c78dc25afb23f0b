"""``edgesmith doctor``: every state of every check, on machines that are only described."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgesmith.sdk.board.doctor import CHECKS, Check, examine
from edgesmith.sdk.board.facts import Facts, Library
from edgesmith.sdk.board.sensors import Gpu, PowerMode
from edgesmith.sdk.cli.app import app

BASE = {"edgesmith": "0.1.0", "numpy": "2.2.6", "msgspec": "0.20.0"}
RUNTIME = {**BASE, "onnxruntime": "1.23.0", "opencv-python-headless": "4.12.0"}
ORT = Library("1.23.0", {"providers": "CPUExecutionProvider"})
CV2 = Library("4.12.0", {"path": "/p/cv2/__init__.py", "gui": "no", "gstreamer": "no", "ffmpeg": "YES"})
JETPACK_CV2 = Library(
    "4.8.0", {"path": "/usr/lib/cv2.so", "gui": "GTK+", "gstreamer": "YES (1.20.3)", "ffmpeg": "YES"}
)
BROKEN = Library(error="ImportError: libx.so.1: cannot open shared object file")
DESK = Facts(
    python=(3, 12, 1),
    machine="x86_64",
    board=None,
    l4t=None,
    packages=RUNTIME,
    requirements=(
        ("", "numpy", "1.23"),
        ("", "msgspec", "0.19"),
        ("runtime", "onnxruntime", "1.19"),
        ("runtime", "opencv-python-headless", "4.8"),
        ("video", "av", "12"),
        ("dev", "ruff", "0.9"),
    ),
    onnxruntime=ORT,
    cv2=CV2,
    gstreamer=None,
    av=None,
    tensorrt=None,
    driver=None,
    cache=Path("/home/user/.cache/edgesmith"),
    free_bytes=50 << 30,
    backends=(("tensorrt", "no driver"), ("cpu", None)),
)
FASTEST = PowerMode(number=2, name="MAXN_SUPER")
JETSON = dataclasses.replace(
    DESK,
    python=(3, 10, 12),
    machine="aarch64",
    board="NVIDIA Jetson Orin Nano",
    l4t="36.4.3",
    packages={**BASE, "pycuda": "2024.1", "tensorrt": "10.3.0"},
    onnxruntime=None,
    cv2=JETPACK_CV2,
    gstreamer=Library("1.20.3", {"pygobject": "3.42.1"}),
    tensorrt=Library("10.3.0", {"path": "/usr/lib/tensorrt"}),
    driver=Library("12.6", {"devices": "1"}),
    gpu=Gpu(min_mhz=1020.0, max_mhz=1020.0),
    mode=FASTEST,
    fastest=FASTEST,
    backends=(("tensorrt", None),),
)
NUMPY_2 = Library(error="ImportError: numpy.core.multiarray failed to import")
# check, machine, what is different on it, status, pieces of the detail, pieces of the command
FAULTS: list[tuple[str, Facts, dict[str, Any], str, str, str]] = [
    ("python", DESK, {"python": (3, 9, 18)}, "fail", "3.9.18; edgesmith needs 3.10", "install Python"),
    ("python", DESK, {"python": (3, 14, 0)}, "warn", "tested on 3.10 to 3.13", "use Python"),
    ("board", JETSON, {"l4t": None}, "warn", "Orin Nano, without", "nvidia-l4t-core"),
    ("edgesmith", DESK, {"packages": {"numpy": "2.0"}}, "fail", "missing: msgspec", "--upgrade edgesmith"),
    (
        "edgesmith", DESK, {"packages": {**RUNTIME, "numpy": "1.9.5"}},
        "fail", "too old: numpy 1.9.5 (needs 1.23)", "--upgrade edgesmith",
    ),
    (
        "extras", DESK, {"packages": {**RUNTIME, "onnxruntime": "1.9.0"}},
        "warn", "extra runtime: too old: onnxruntime 1.9.0 (needs 1.19)", "--upgrade 'edgesmith[runtime]'",
    ),
    ("extras", DESK, {}, "ok", "complete: runtime; not installed: video", "'edgesmith[NAME]'"),
    (
        "onnxruntime", DESK, {"packages": {**RUNTIME, "onnxruntime-gpu": "1.23.0"}},
        "fail", "both installed",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgesmith[runtime]'",
    ),
    (
        "onnxruntime", DESK,
        {"packages": {**RUNTIME, "onnxruntime-gpu": "1.23.0"}, "driver": Library("13.0", {"devices": "1"})},
        "fail", "both installed", "'edgesmith[gpu]'",
    ),
    ("onnxruntime", DESK, {"onnxruntime": None}, "warn", "can be read but not run", "'edgesmith[runtime]'"),
    ("onnxruntime", JETSON, {"tensorrt": None}, "warn", "can be read but not run", "nvidia-jetpack"),
    ("onnxruntime", DESK, {"onnxruntime": BROKEN}, "fail", "libx.so.1", "--force-reinstall onnxruntime"),
    (
        "onnxruntime", DESK, {"packages": {**BASE, "onnxruntime-gpu": "1.23.0"}},
        "warn", "silently runs on the CPU", "pip uninstall -y onnxruntime-gpu",
    ),
    (
        "opencv", DESK, {"packages": {**RUNTIME, "opencv-python": "4.12.0"}},
        "fail", "opencv-python and opencv-python-headless are both installed", "&& pip install opencv-python",
    ),
    ("opencv", DESK, {"cv2": None}, "warn", "no cv2", "'edgesmith[runtime]'"),
    ("opencv", JETSON, {"cv2": None}, "warn", "no cv2", "apt install python3-opencv"),
    ("opencv", DESK, {"cv2": BROKEN}, "fail", "libx.so.1", "--force-reinstall opencv-python-headless"),
    (
        "opencv", DESK, {"cv2": dataclasses.replace(CV2, detail={**CV2.detail, "ffmpeg": "no"})},
        "warn", "neither video files nor streams", "--upgrade opencv-python-headless",
    ),
    (
        "opencv", JETSON, {"cv2": CV2, "packages": {**BASE, "opencv-python": "4.12.0"}},
        "warn", "hides JetPack's own build", "pip uninstall -y opencv-python",
    ),
    (
        "opencv", DESK, {}, "ok",
        "from opencv-python-headless, /p/cv2/__init__.py; without GStreamer, windows", "'edgesmith[desktop]'",
    ),
    ("gstreamer", JETSON, {"gstreamer": None}, "warn", "CSI cameras", "apt install python3-gi"),
    ("gstreamer", DESK, {"gstreamer": None}, "ok", "CSI cameras", "'edgesmith[gst]'"),
    ("gstreamer", JETSON, {"gstreamer": BROKEN}, "fail", "GStreamer does not load", "gir1.2-gst"),
    ("video", DESK, {}, "ok", "no PyAV", "'edgesmith[video]'"),
    ("video", DESK, {"av": BROKEN}, "fail", "does not load", "--force-reinstall"),
    ("video", DESK, {"av": Library("14.0", {"h264": "none"})}, "warn", "no H.264 encoder", "--only-binary"),
    ("cuda driver", JETSON, {"driver": None}, "fail", "no libcuda.so.1 on a Jetson", "nvidia-l4t-cuda"),
    (
        "cuda driver", DESK, {"packages": {**BASE, "pycuda": "2024.1"}},
        "warn", "though there is pycuda", "install NVIDIA's driver",
    ),
    (
        "cuda driver", DESK, {"driver": Library("13.0", error="CUDA error 100 from cuInit")},
        "fail", "CUDA error 100", "--gpus all",
    ),
    ("tensorrt", JETSON, {"tensorrt": None}, "fail", "--system-site-packages", "nvidia-jetpack"),
    ("tensorrt", JETSON, {"tensorrt": BROKEN}, "fail", "libx.so.1", "nvidia-jetpack"),
    ("tensorrt", JETSON, {"tensorrt": Library("8.5.2")}, "fail", "need 10.3 or later", "JetPack 6.1"),
    (
        "tensorrt", DESK, {"tensorrt": Library("10.1.0")},
        "fail", "10.1.0: bundles need 10.3", "--upgrade 'edgesmith[tensorrt]'",
    ),
    ("pycuda", JETSON, {"packages": BASE}, "warn", "TensorRT runs need it", "'edgesmith[jetson]'"),
    ("pycuda", DESK, {"tensorrt": Library("10.16.0")}, "warn", "TensorRT runs need it", "'edgesmith[gpu]'"),
    ("numpy", JETSON, {"cv2": NUMPY_2}, "fail", "2.2.6; built for numpy 1: cv2", "'numpy<2'"),
    ("numpy", JETSON, {"cv2": BROKEN}, "ok", "2.2.6", ""),
    (
        "power mode", JETSON, {"mode": PowerMode(number=0, name="15W")},
        "warn", "15W (number 0), not MAXN_SUPER", "sudo nvpmodel -m 2",
    ),
    ("power mode", JETSON, {"mode": None}, "ok", "not told", ""),
    ("power mode", JETSON, {}, "ok", "MAXN_SUPER (number 2)", ""),
    (
        "clocks", JETSON, {"gpu": Gpu(min_mhz=306.0, max_mhz=1020.0)},
        "warn", "306 to 1020 MHz", "sudo jetson_clocks",
    ),
    ("clocks", JETSON, {"gpu": Gpu()}, "ok", "not told", ""),
    ("clocks", JETSON, {}, "ok", "locked at 1020 MHz", ""),
    ("backends", DESK, {}, "ok", "in this order: tensorrt (no: no driver); cpu", ""),
    (
        "backends", DESK, {"backends": (("cpu", "not installed"),)},
        "warn", "none runs: cpu (no: not installed)", "'edgesmith[runtime]'",
    ),
    ("disk", DESK, {"free_bytes": 1 << 30}, "warn", "1.0 GiB free", "XDG_CACHE_HOME"),
    ("disk", DESK, {"free_bytes": 1 << 20}, "fail", "0.0 GiB free", "XDG_CACHE_HOME"),
]  # fmt: skip


def found(facts: Facts, name: str) -> Check:
    (check,) = [c for c in examine(facts) if c.name == name]
    return check


@pytest.mark.parametrize(("name", "machine", "changes", "status", "detail", "mend"), FAULTS)
def test_a_fault_is_seen(
    name: str, machine: Facts, changes: dict[str, Any], status: str, detail: str, mend: str
) -> None:
    check = found(dataclasses.replace(machine, **changes), name)
    assert check.status == status
    assert detail in check.detail
    assert mend in (check.mend or "")


@pytest.mark.parametrize("machine", [DESK, JETSON])
def test_a_sound_machine_has_nothing_to_mend(machine: Facts) -> None:
    assert [c.name for c in examine(machine)] == [name for name, _ in CHECKS]
    assert {c.status for c in examine(machine)} == {"ok"}


def test_every_fault_names_what_mends_it() -> None:
    for _, machine, changes, *_ in FAULTS:
        for check in examine(dataclasses.replace(machine, **changes)):
            assert check.mend or check.status == "ok"
            assert check.detail


def test_a_sound_machine_in_words() -> None:
    assert found(JETSON, "board").detail == "NVIDIA Jetson Orin Nano, L4T 36.4.3"
    assert found(JETSON, "onnxruntime").detail == "not installed; TensorRT runs bundles here"
    assert found(JETSON, "opencv").detail == "4.8.0 not from a wheel, /usr/lib/cv2.so"
    assert found(JETSON, "gstreamer").detail == "1.20.3 by PyGObject 3.42.1"
    assert found(JETSON, "cuda driver").detail == "CUDA 12.6, devices: 1"
    assert found(DESK, "cuda driver").detail == "none: bundles run on the CPU"
    assert found(DESK, "edgesmith").detail == "0.1.0, with numpy 2.2.6, msgspec 0.20.0"


def call(monkeypatch: pytest.MonkeyPatch, facts: Facts, *args: str) -> Result:
    monkeypatch.setattr("edgesmith.sdk.cli.doctor.gather", lambda order: facts)
    return CliRunner().invoke(app, ["doctor", *args], standalone_mode=False)


FAILED = dataclasses.replace(DESK, cv2=BROKEN, free_bytes=1 << 30)


def test_the_exit_status_is_1_when_a_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, DESK).return_value == 0
    assert call(monkeypatch, dataclasses.replace(DESK, free_bytes=1 << 30)).return_value == 0
    for args in ((), ("--json",)):
        done = call(monkeypatch, FAILED, *args)
        assert done.return_value == 1
        assert done.exception is None


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.loads(call(monkeypatch, FAILED, "--json").stdout)
    assert set(answer) == {"checks"}
    for check in answer["checks"]:
        assert set(check) == {"name", "status", "detail", "mend"}
    states = {c["name"]: c["status"] for c in answer["checks"]}
    assert states == {name: "ok" for name, _ in CHECKS} | {"opencv": "fail", "disk": "warn"}


def test_the_text_is_aligned_and_ends_in_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = call(monkeypatch, FAILED).stdout.splitlines()
    start = lines[0].index("found")
    rows = lines[1 : lines.index("")]
    assert [row.split()[0] for row in rows] == [c.status.upper() for c in examine(FAILED)]
    assert all(row[start - 2 : start] == "  " and row[start] != " " for row in rows)
    assert lines[-1] == f"{len(CHECKS) - 2} ok, 1 to look at, 1 failed"
    mends = lines[lines.index("To mend:") + 1 :]
    assert mends[0] == "  opencv  pip install --force-reinstall opencv-python-headless"
    assert mends[1].startswith("  disk    free some space")
    assert not any("Traceback" in line or line != line.rstrip() for line in lines)


def test_this_machine_can_be_examined() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"], standalone_mode=False)
    assert done.exception is None
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["python"]["status"] == checks["edgesmith"]["status"] == "ok"
    assert done.return_value == int(any(c["status"] == "fail" for c in checks.values()))


def test_help_reads_well() -> None:
    text = CliRunner().invoke(app, ["doctor", "--help"]).stdout
    assert "Nothing is installed, changed or sent" in text
    assert "With --json: checks" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(name in " ".join(text.split()) for name, _ in CHECKS)
