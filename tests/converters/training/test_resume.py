"""A run that was killed ends as one that was not; two processes train as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
EPOCHS = 24


def started(script: Path, archive: Path, folder: Path, *before: str, epochs: int) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *before, str(script), str(archive), str(folder), str(epochs)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> None:
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told


def killed(process: subprocess.Popen[str], checkpoint: Path) -> None:
    """Kill once a checkpoint was written, in the middle of whatever comes next."""
    until = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def told(folder: Path) -> tuple[bool, list[tuple[float, float]]]:
    """Whether it was resumed; metric and loss of each epoch."""
    found = json.loads((folder / "told.json").read_text())
    return found["resumed"], [tuple(epoch) for epoch in found["course"]]


@pytest.fixture(scope="module")
def whole(script: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(started(script, archive, folder, epochs=EPOCHS))
    return folder


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_same_weights(
    whole: Path, script: Path, archive: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process = started(script, archive, folder, epochs=EPOCHS)
    killed(process, folder / "checkpoint.pt")
    assert not (folder / "final.pt").exists(), "it was over before it was killed"
    finish(started(script, archive, folder, epochs=EPOCHS))
    assert told(folder)[0]
    assert told(folder)[1] == told(whole)[1]
    left, right = torch.load(whole / "final.pt"), torch.load(folder / "final.pt")
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(
    whole: Path, script: Path, archive: Path, tmp_path: Path
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    alone, again = tmp_path / "two", tmp_path / "two-killed"
    finish(started(script, archive, alone, *launcher, epochs=EPOCHS))
    process = started(script, archive, again, *launcher, epochs=EPOCHS)
    killed(process, again / "checkpoint.pt")
    finish(started(script, archive, again, *launcher, epochs=EPOCHS))
    left, right = torch.load(alone / "final.pt"), torch.load(again / "final.pt")
    assert all(torch.equal(left[name], right[name]) for name in left)
    # BatchNorm sees half of each batch in each process: the same within noise, not to the bit.
    assert told(again)[0]
    best = [max(metric for metric, _ in told(folder)[1]) for folder in (whole, alone)]
    assert abs(best[0] - best[1]) <= 10.0
