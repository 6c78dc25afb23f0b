"""``edgesmith convert`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgesmith.converters import parity
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cli.app import main

KEYS = {
    "bundle", "precision", "metric", "float", "chosen", "drop", "interval", "int8_macs_share", "kept_float",
    "evaluations", "seconds", "refused",
}  # fmt: skip


@pytest.fixture
def recipe(networks: Path, weights: dict[str, Path], photos: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'task = "classify"\n[model]\nfactory = "tinynets:classifier"\nweights = "{weights["classifier"]}"\n'
        f'python_path = ["{networks}"]\n[input]\nsize = [64, 64]\n[data]\ncalibration = "{photos}"\n'
    )
    return path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["convert", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_json_is_one_object_with_the_keys_of_the_face(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.edge"
    assert run(str(recipe), "-o", str(out), "--json", "--input.size", "48,40", "--input.batch", "2") == 0
    table = json.loads(capsys.readouterr().out)
    assert set(table) >= KEYS
    assert (table["bundle"], table["precision"], table["refused"]) == (str(out), "fp32", None)
    assert (table["float"], table["kept_float"], table["int8_macs_share"]) == (None, [], 0.0)
    manifest = Bundle.open(out).manifest
    assert manifest.inputs[0].shape == (2, 3, 48, 40)
    assert manifest.provenance.recipe["input"] == {"size": [48, 40], "batch": 2}


def test_summary_tells_the_next_command(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(str(recipe)) == 0
    shown = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert lines["bundle"].startswith("recipe.edge  (")
    assert lines["task"] == "classify, fp32"
    assert lines["parity"].startswith("6 images, same class 100.0 % of 6, logits within ")
    assert lines["next"] == "edgesmith verify recipe.edge"
    assert shown.err == ""
    assert (tmp_path / "recipe.edge").is_file()


def test_refusal_in_json(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "EXPORT_TOLERANCE", 0.0)
    assert run(str(recipe), "-o", str(tmp_path / "m.edge"), "--json") == 4
    shown = capsys.readouterr()
    table = json.loads(shown.out)
    assert set(table) >= KEYS
    assert table["bundle"] is None
    assert "logits: max abs" in table["refused"]
    assert table["parity"]["images"] == 6
    assert "edgesmith: the exported graph answers differently" in shown.err
    assert not (tmp_path / "m.edge").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--input.sise", "3"], 2, "No such option"),
        (["--input.size", "big"], 2, "input.size: expected a number or a list, got text"),
        (["--input.size", "[1,"], 2, "neither TOML nor JSON"),
        (["--precision.mode", "int4"], 2, "precision.mode"),
        (["--model.weights", "nope.pt"], 2, "model.weights: there is no file or folder"),
        (["--model.factory", "tinynets:nothing"], 3, "tinynets has no nothing"),
        (["--target.device", "toaster"], 2, "toaster"),
    ],
)
def test_faults_end_in_a_line_and_a_status(
    recipe: Path, arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(recipe), *arguments) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


def test_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "nope.toml")) == 2
    assert "cannot read the recipe" in capsys.readouterr().err
