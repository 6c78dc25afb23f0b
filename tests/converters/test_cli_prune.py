"""``edgesmith prune`` and ``edgesmith distill`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgesmith.sdk.cli.app import main

RECIPE = """
task = "classify"
[model]
factory = "tinynets:classifier"
weights = "{weights}"
python_path = ["{networks}"]
[input]
size = [64, 64]
[data]
training = "train.npz"
[prune]
keep = 0.7
round_to = 2
[distill]
train = {{ epochs = 1, batch = 16 }}
"""


@pytest.fixture
def recipe(tmp_path: Path, weights: dict[str, Path], networks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(24) % 5)
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(weights=weights["classifier"], networks=networks))
    monkeypatch.chdir(tmp_path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.slow
def test_prune_then_distill_from_the_same_folder(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prune", recipe) == 0
    shown = capsys.readouterr().out
    assert "stem.0" in shown
    assert "it makes the outputs" in shown
    assert "small.pruned.pt2: written" in shown
    program = torch.export.load(tmp_path / "small.pruned.pt2").module()
    assert program(torch.zeros(3, 3, 64, 64)).shape == (3, 5)
    assert run("distill", recipe, "-o", "w.safetensors", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"out", "stages", "seconds"}
    assert [(s["name"], s["cached"]) for s in told["stages"]] == [
        ("trained", False), ("prune", True), ("distill", False),
    ]  # fmt: skip
    narrow = {w["layer"]: w["after"] for w in told["stages"][1]["widths"]}
    assert load_file(tmp_path / "w.safetensors")["stem.0.weight"].shape[0] == narrow["stem.0"] < 8


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-o", "net.bin"], 2, "the ending says what is written: .pt2"),
        (["-o", "nowhere/net.pt2"], 2, "a folder that exists"),
        (["--prune.keep", "2"], 2, "prune.keep"),
        (["--prune.importance", "size"], 2, "is not among activation, bn-scale"),
        (["--prune.round_to", "0"], 2, "prune.round_to"),
        (["--prune.train.augment", "rotate"], 2, "there are flip, shift, crop"),
    ],
)
def test_faults_end_in_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert run("prune", recipe, *arguments) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_a_recipe_without_the_table(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text().partition("[prune]")[0])
    assert run("distill", recipe) == 2
    assert "has no table [distill]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ready_graph_cannot_be_trained(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", recipe) == 0
    text = recipe.read_text()
    model = text[text.index("[model]") : text.index("[input]")]
    recipe.write_text(text.replace(model, '[model]\nprogram = "small.pruned.pt2"\n'))
    capsys.readouterr()
    assert run("prune", recipe, "-o", "again.pt2") == 2
    assert "a program model is fixed" in capsys.readouterr().err
