"""The sample of R-CNN: what it finds is worked out by hand from the tiny bundles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

MakeBundle = Callable[..., Path]


def test_regions_are_named_and_suppressed_class_by_class(
    root: Path, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    # The tiny detector's places on a frame of its own size: one at the left, two that overlap at the right.
    frame = np.full((32, 32, 3), 90, np.uint8)
    frame[:, :11] = (255, 0, 0)  # blue on the left
    frame[:, 11:] = (0, 0, 255)  # red on the right
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    regions = make_bundle("detect", name="regions.edge")
    classes = make_bundle("classify", name="classes.edge")
    script, photo = root / "samples" / "rcnn.py", tmp_path / "frame.png"
    command = [sys.executable, *(str(path) for path in (script, regions, classes, photo))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = sorted(line.split()[0] for line in done.stdout.splitlines())
    assert found == ["blue", "red"], done.stdout  # the two at the right are one object


def test_without_arguments_it_says_what_it_is(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "samples" / "rcnn.py")], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "python samples/rcnn.py" in done.stderr
