"""The device runtime as aarch64 code, emulated: the same detections as on this machine.

Needs `qemu-aarch64-static` and `debootstrap` (Debian: qemu-user-static, debootstrap) and root, to
unpack an arm64 Python; no virtual machine is booted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Detector

# One entry a core, as an arm64 kernel gives it: without it onnxruntime's processor detection reads the
# host's file and crashes.
CPU = (
    "processor\t: {}\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp "
    "asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"
)
GLIBC = ("2014", "_2_17", "_2_24", "_2_26", "_2_27", "_2_28", "_2_31", "_2_34", "_2_35")


@pytest.fixture(scope="module")
def arm_python(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A command that runs arm64 Python 3.11 with the runtime installed."""
    for tool in ("qemu-aarch64-static", "debootstrap", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install qemu-user-static debootstrap")
    if os.geteuid() != 0:
        pytest.skip("debootstrap needs root")
    root = tmp_path_factory.mktemp("arm") / "root"
    fetch = [
        "debootstrap",
        "--arch=arm64",
        "--variant=minbase",
        "--foreign",
        "--include=python3",
        "bookworm",
        str(root),
    ]
    done = subprocess.run(fetch, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(CPU.format(n) for n in range(os.cpu_count() or 1)))
    site = root / "opt/site"
    (wheel,) = distributions.glob("*.whl")
    platforms = [word for tag in GLIBC for word in ("--platform", f"manylinux{tag}_aarch64")]
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        str(site),
        "--only-binary",
        ":all:",
    ]
    install += [
        "--implementation",
        "cp",
        "--python-version",
        "311",
        "--abi",
        "cp311",
        "--abi",
        "abi3",
        "--abi",
        "none",
    ]
    done = subprocess.run([*install, *platforms, f"{wheel}[runtime]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = root / "opt/python"
    qemu = f"exec qemu-aarch64-static -L {root} -cpu cortex-a76 {root}/usr/bin/python3.11"
    command.write_text(f'#!/bin/sh\nexport PYTHONPATH={site}\n{qemu} "$@"\n')
    command.chmod(0o755)
    return command


DETECT = """
import json, platform, sys
from edgesmith.sdk import Detector, read_image, self_test
detector = Detector.load(sys.argv[1], threads=1)
answers = [detector(read_image(path)).to_dict() for path in sys.argv[2:]]
print(json.dumps({"machine": platform.machine(), "passed": self_test(detector).passed, "answers": answers}))
"""


SCORE = 0.04


def _same_object(a: dict[str, Any], b: dict[str, Any]) -> bool:
    sides = np.array([np.maximum(a["box"][:2], b["box"][:2]), np.minimum(a["box"][2:], b["box"][2:])])
    inter = float(np.prod(np.clip(sides[1] - sides[0], 0, None)))
    areas = [(i["box"][2] - i["box"][0]) * (i["box"][3] - i["box"][1]) for i in (a, b)]
    overlap = inter / (sum(areas) - inter)
    return bool(a["label"] == b["label"] and abs(a["score"] - b["score"]) < SCORE and overlap > 0.9)


def _same(bundle: Path, pictures: list[Path], arm_python: Path) -> None:
    command = [str(arm_python), "-c", DETECT, str(bundle), *(str(p) for p in pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    there = json.loads(done.stdout)
    assert there["machine"] == "aarch64"
    assert there["passed"] is True
    detector = Detector.load(bundle, backend="cpu")
    found = 0
    for path, answers in zip(pictures, there["answers"], strict=True):
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        here = detector(np.asarray(image, np.uint8)).to_dict()
        # Arm resizes up to one pixel step differently: scores move by a few hundredths, and one near
        # the threshold may fall on either side of it.
        for one, other in ((here, answers), (answers, here)):
            for item in (i for i in one if i["score"] > 0.25 + SCORE):
                assert any(_same_object(item, candidate) for candidate in other), item
        found += len(here)
    assert found > 0


@pytest.mark.slow
def test_a_tiny_bundle_gives_the_same_on_aarch64(
    arm_python: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(cv2.imencode(".png", np.full((90, 120, 3), 200, np.uint8))[1].tobytes())
    _same(make_bundle(), [picture], arm_python)


@pytest.mark.slow
@pytest.mark.assets
def test_yolox_nano_gives_the_same_on_aarch64(
    arm_python: Path, asset_bundle: Callable[[str], Path], assets: Path
) -> None:
    pictures = sorted((assets / "coco_val").glob("*.jpg"))[:4]
    _same(asset_bundle("yolox_nano"), pictures, arm_python)
