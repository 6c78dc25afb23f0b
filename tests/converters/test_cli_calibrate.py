"""``edgesmith calibrate`` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from edgesmith.calibration.collect import Statistics
from edgesmith.calibration.images import Images, pseudo_images
from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.sdk.cli.app import main

PICTURES = 24


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(PICTURES):
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), pseudo_images(1, number, (64, 80))[0])
    return folder


@pytest.fixture
def recipe(networks: Path, weights: dict[str, Path], many: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'task = "classify"\n[model]\nfactory = "tinynets:classifier"\nweights = "{weights["classifier"]}"\n'
        f'python_path = ["{networks}"]\n[input]\nsize = [64, 64]\n[data]\ncalibration = "{many}"\n'
    )
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_json_has_the_keys_of_the_face(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scales.json"
    assert run(recipe, "-o", out, "--json", "--sensitivity") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) >= {"table", "images", "tensors", "seconds", "resumed", "sensitivity"}
    table = ScaleTable.load(out)
    # A quarter of the images is held back for the search.
    assert (told["table"], told["images"], told["resumed"]) == (str(out), 18, False)
    assert told["tensors"] == len(table.activations) == 4
    assert table.images == 18
    # The classifier's own product is never quantized, so there is nothing to rank about it.
    modules = {entry["module"] for entry in told["sensitivity"]}
    assert modules == {"stem.0", "body.0.0", "body.1.0", "shortcut"}
    assert all(set(entry) == {"node", "module", "loss"} for entry in told["sensitivity"])
    losses = [entry["loss"] for entry in told["sensitivity"]]
    assert losses == sorted(losses, reverse=True)
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == []


def test_for_a_person(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "-o", tmp_path / "scales.json", "--sensitivity") == 0
    shown = capsys.readouterr()
    assert "scales.json: 18 images (6 more held back for the search), 4 tensors" in shown.out
    assert "Tensors that saturate most: % of the values clipped" in shown.out
    assert "minmax" in shown.out
    assert "Layers that cost most: dB" in shown.out
    assert "warning: few-images: 18 images" in shown.err


def test_a_table_of_another_model_is_not_replaced(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scales.json"
    assert run(recipe, "-o", out) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert run(recipe, "-o", out, "--input.size", "32,32") == 3
    assert "scales were measured on another model" in capsys.readouterr().err
    assert out.read_bytes() == before
    out.write_text("{}")
    assert run(recipe, "-o", out) == 3
    assert "is not replaced: not a table of scales" in capsys.readouterr().err


def test_picking(recipe: Path, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scales.json"
    assert run(recipe, "-o", out, "--pick", 8, "--from", many, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["picked"] == str(tmp_path / "scales.txt")
    assert told["images"] == 6
    listed = Images.open(tmp_path / "scales.txt")
    assert len(listed) == 8
    assert len(set(listed.names)) == 8
    # The list is what a recipe takes, and gives the same table.
    assert run(recipe, "-o", tmp_path / "again.json", "--data.calibration", tmp_path / "scales.txt") == 0
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()
    (tmp_path / "scales.txt").write_text("notes of mine\n")
    assert run(recipe, "-o", out, "--pick", 8, "--from", many) == 3
    assert (tmp_path / "scales.txt").read_text() == "notes of mine\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--pick", "8"], 2, "--pick N and --from FOLDER go together"),
        (["--pick", "8", "--from", "nowhere"], 2, "nowhere"),
        (["--data.calibration", "nowhere"], 2, "data.calibration"),
        (["--prune", "{ sparsity = 0.5 }"], 2, "prune"),
        (["-o", "nowhere/scales.json"], 3, "there is no folder nowhere"),
    ],
)
def test_faults(
    recipe: Path, tmp_path: Path, arguments: list[str], status: int, said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(recipe, "-o", "scales.json", *arguments) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "scales.json").exists()


SLOW = """
import sys, time
import edgesmith.calibration.collect as module
from edgesmith.sdk.cli.app import main
module.SAVE_EVERY_S = 0.0
wait = float(sys.argv[1])
real = module.prepared
def slowly(*given):
    time.sleep(wait)
    return real(*given)
module.prepared = slowly
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Each process exports anew: the graph's hash must come out the same."""

    def command(out: str, wait: float) -> list[str]:
        parts = ("-c", SLOW, wait, "calibrate", recipe, "-o", tmp_path / out, "--json")
        return [sys.executable, *map(str, parts)]

    subprocess.run(command("whole.json", 0.0), check=True, capture_output=True)
    state = tmp_path / "killed.json.state"
    process = subprocess.Popen(command("killed.json", 0.3), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (state.exists() and Statistics.load(state).done >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.json").exists()
    done = subprocess.run(command("killed.json", 0.0), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["resumed"] is True
    assert "going on after image" in done.stderr
    assert not state.exists()
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
