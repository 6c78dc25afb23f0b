"""Each script that a user would copy, run as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Bundle, Classifier

MakeBundle = Callable[..., Path]


def script(root: Path, name: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "samples" / name), *(str(a) for a in args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_dev_boxs_script_makes_a_bundle_that_runs(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.edge"
    done = script(root, "convert_model.py", out)
    assert done.returncode == 0, done.stderr
    assert f"edgesmith inspect {out}" in done.stdout
    assert Bundle.open(out).manifest.batch.max == 8
    classes = Classifier.load(out)(np.zeros((64, 64, 3), np.uint8))
    assert {c.name for c in classes} == {"circle", "square", "triangle"}


def test_the_devices_script_checks_a_bundle(root: Path, make_bundle: MakeBundle, tmp_path: Path) -> None:
    done = script(root, "check_device.py", make_bundle())
    assert done.returncode == 0, done.stderr
    assert "scores" in done.stdout
    assert "ok" in done.stdout
    assert "ms" in done.stdout
    missing = script(root, "check_device.py", tmp_path / "none.edge")
    assert missing.returncode == 3
    assert "there is no such bundle" in missing.stderr


def test_the_robots_script_follows_a_target(root: Path, make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, value in enumerate((0, 255)):
        picture = np.full((48, 64, 3), value, np.uint8)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    done = script(root, "embed_detector.py", make_bundle(), folder)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "frame 0: nothing, turn and look"
    assert second.startswith("frame 1: ball right, ")


@pytest.mark.parametrize("name", ["convert_model.py", "check_device.py", "embed_detector.py"])
def test_without_arguments_a_script_says_what_it_is(root: Path, name: str) -> None:
    done = script(root, name)
    assert done.returncode == 1
    assert f"python samples/{name}" in done.stderr
