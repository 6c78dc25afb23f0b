"""Recipes: what is taken, what is refused, and how that is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgesmith.converters import Data, Evaluation, Input, Model, NmsTable, PrecisionTable, Recipe
from edgesmith.sdk.errors import RecipeError

BASE: dict[str, Any] = {
    "task": "classify",
    "model": {"zoo": "torchvision:resnet18"},
    "input": {"size": [8, 8]},
}


def with_(**tables: Any) -> dict[str, Any]:
    return {**BASE, **tables}


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ({"model": BASE["model"]}, "task", "required"),
        ({"task": "detect"}, "model", "required"),
        (with_(task="track"), "task", "'track' is not among classify, detect, segment, tensor"),
        (with_(modle={}), "modle", "did you mean model?"),
        (with_(model={"factori": "a:b"}), "model.factori", "did you mean model.factory?"),
        (with_(mean=3), "mean", "did you mean input.mean?"),
        (with_(input={"size": [8, 8], "xyzzy": 1}), "input.xyzzy", "here go input.size, input.batch"),
        (with_(base="x"), "base", "unknown key"),
        (with_(data={"evaluation": {"images": "a", "label": "b"}}), "data.evaluation.label",
         "evaluation.labels?"),
        (with_(model={}), "model",
         "exactly one source of factory, program, torchscript, onnx, zoo; got none"),
        (with_(model={"zoo": "a", "onnx": "b"}), "model", "got onnx and zoo"),
        (with_(model={"factory": "a:b"}), "model", "factory needs weights"),
        (with_(model={"onnx": "a", "weights": "b"}), "model", "onnx holds its own"),
        (with_(model={"zoo": 3}), "model.zoo", "expected text, got a number"),
        (with_(model={"zoo": "a", "python_path": "."}), "model.python_path", "expected a list, got text"),
        (with_(model=3), "model", "expected a table, got a number"),
        (with_(input={}), "input.size", "required"),
        (with_(input={"size": [8]}), "input.size", "length 2"),
        (with_(input={"size": [0, 8]}), "input", "each side must be 1..16384"),
        (with_(input={"size": [8, 8], "mean": ["a"]}), "input.mean[0]", "expected a number, got text"),
        (with_(input={"size": [8, 8], "mean": [1, 2]}), "input", "mean has 2 values"),
        (with_(input={"size": [8, 8], "std": 0}), "input", "std holds a zero"),
        (with_(input={"size": [8, 8], "scale": [1, 0, 2]}), "input.scale", "other than zero"),
        (with_(input={"size": [8, 8], "scale": [1, 2]}), "input.scale", "a number or 3 numbers"),
        (with_(input={"size": [8, 8], "batch": 0}), "input.batch", ">= 1"),
        (with_(input={"size": [8, 8], "batch": {"min": 4, "opt": 2, "max": 8}}), "input.batch", "min <= opt"),
        (with_(input={"size": [8, 8], "fit": "crop"}), "input.fit", "letterbox, none, resize-crop, stretch"),
        (with_(input={"size": [8, 8], "fit": "letterbox", "shorter_side": 9}), "input",
         "shorter_side goes with"),
        (with_(input={"fit": "none"}), "input.size", 'only task "tensor"'),
        (with_(nms={"iou": 0.5}), "nms", 'task "detect" only'),
        (with_(task="detect", nms={"iou": 1.5}), "nms.iou", "<= 1.0"),
        (with_(task="detect", nms={"where": "device"}), "nms.where", "'device' is not among graph, host"),
        (with_(precision={"mode": "int4"}), "precision.mode", "auto, fp16, fp32, int8"),
        (with_(labels="nope.txt"), "labels", "there is no file or folder"),
        (with_(data={"calibration": "nope"}), "data.calibration", "there is no file or folder"),
        (with_(data={"calibration": "nope/*.jpg"}), "data.calibration", "there is no file or folder"),
        (with_(data={"evaluation": {"images": "nope"}}), "data.evaluation.images",
         "there is no file or folder"),
        (with_(data={"evaluation": "val"}), "data.evaluation", "expected a table, got text"),
        (with_(model={"factory": "a:b", "weights": "nope.pt"}), "model.weights",
         "there is no file or folder"),
    ],
)  # fmt: skip
def test_bad_recipes_name_the_key(table: dict[str, Any], key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(table, base=tmp_path)
    assert caught.value.key == key
    assert said in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("task", "fit"),
    [("detect", "letterbox"), ("classify", "resize-crop"), ("segment", "stretch"), ("tensor", "none")],
)
def test_the_fit_is_the_tasks(task: str, fit: str) -> None:
    preprocess = Recipe.from_dict(with_(task=task)).preprocess()
    assert preprocess.fit == fit
    assert preprocess.size == (8, 8)
    assert preprocess.scale == 1 / 255
    assert (preprocess.mean, preprocess.std, preprocess.color) == ((0.0,), (1.0,), "rgb")


def test_tensor_takes_any_size_and_a_number_is_a_square() -> None:
    assert Recipe.from_dict({"task": "tensor", "model": {"zoo": "a"}}).preprocess().size is None
    assert Recipe.from_dict(with_(input={"size": 9})).preprocess().size == (9, 9)


def test_a_scale_by_channel_moves_into_mean_and_std() -> None:
    given = {"size": [8, 8], "scale": [0.5, 2, 4], "mean": [1, 2, 3], "std": 0.5}
    made = Recipe.from_dict(with_(input=given)).preprocess()
    for channel, (scale, mean) in enumerate(zip((0.5, 2, 4), (1, 2, 3), strict=True)):
        value = (77 * made.scale - made.mean[channel]) / made.std[channel]
        assert math.isclose(value, (77 * scale - mean) / 0.5)


@pytest.mark.parametrize(("where", "count"), [("host", 3000), ("graph", 300)])
def test_nms_defaults_depend_on_where(where: str, count: int) -> None:
    nms = Recipe.from_dict(with_(task="detect", nms={"where": where})).nms_spec()
    assert nms is not None
    assert nms.candidates == count
    assert (nms.score, nms.evaluation_score, nms.iou, nms.max_detections) == (0.25, 0.001, 0.65, 100)


def test_other_tasks_have_no_nms() -> None:
    assert Recipe.from_dict(BASE).nms_spec() is None


def test_batch_is_a_range() -> None:
    assert Recipe.from_dict(with_(input={"size": 8, "batch": 3})).batch.fixed
    ranged = Recipe.from_dict(with_(input={"size": 8, "batch": {"min": 1, "opt": 2, "max": 4}})).batch
    assert (ranged.min, ranged.opt, ranged.max) == (1, 2, 4)


def test_labels_are_lines_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\nsea lion \n\n")
    assert Recipe.from_dict(with_(labels="names.txt"), base=tmp_path).names() == ("cat", "sea lion")
    assert Recipe.from_dict(with_(labels=["a", "b"])).names() == ("a", "b")
    assert Recipe.from_dict(BASE).names() == ()


def test_labels_with_a_hole_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    with pytest.raises(RecipeError, match="line 2 is empty"):
        Recipe.from_dict(with_(labels="names.txt"), base=tmp_path).names()


def test_toml_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("a\n")
    (tmp_path / "recipe.toml").write_text(
        'task = "classify"\n[model]\nzoo = "a"\n[input]\nsize = [8, 8]\nstd = 2\n'
    )
    monkeypatch.chdir(tmp_path / "here")
    overrides = {"input.size": [16, 16], "labels": "mine.txt", "data.seed": 5}
    recipe = Recipe.from_toml("../recipe.toml", overrides)
    assert recipe.preprocess().size == (16, 16)
    assert recipe.preprocess().std == (2.0,)
    assert recipe.names() == ("a",)
    assert recipe.data.seed == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"task = ", "not valid TOML"), (b"\xff\xfe", "UTF-8"), (None, "cannot read the recipe")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=said) as caught:
        Recipe.from_toml(path)
    assert str(path) in str(caught.value)


def test_from_python_and_checked() -> None:
    recipe = Recipe(
        task="detect",
        model=Model(zoo="a"),
        input=Input(size=(4, 6), mean=(1.0, 2.0, 3.0)),
        nms=NmsTable(iou=0.5),
        data=Data(seed=3),
        precision=PrecisionTable(max_drop=1.0),
    )
    assert recipe.checked().preprocess() == recipe.preprocess()
    assert recipe.checked().nms == recipe.nms
    wrong = Recipe(task="detect", model=Model(zoo="a"), input=Input(size="big"))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"input\.size: expected"):
        wrong.checked()
    missing = Recipe(
        task="classify",
        model=Model(zoo="a"),
        input=Input(size=8),
        data=Data(evaluation=Evaluation(images="x")),
    )
    with pytest.raises(RecipeError, match=r"data\.evaluation\.images"):
        missing.checked()


def test_plain_has_what_was_said_and_no_path_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "val").mkdir()
    other = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    other.mkdir()
    recipe = Recipe.from_dict(
        {
            "task": "classify",
            "model": {"factory": "a:b", "weights": str(tmp_path / "w.pt"), "python_path": [".", str(other)]},
            "input": {"size": [8, 8], "pad": 0},
            "data": {"evaluation": {"images": "val"}},
        },
        base=tmp_path,
    )
    assert recipe.plain() == {
        "task": "classify",
        "model": {"factory": "a:b", "weights": "w.pt", "python_path": [".", other.name]},
        "input": {"size": [8, 8], "pad": 0},
        "data": {"evaluation": {"images": "val"}},
    }
    again = Recipe.from_dict(
        {**recipe.plain(), "model": {"factory": "a:b", "weights": "w.pt"}}, base=tmp_path
    )
    assert again.preprocess() == recipe.preprocess()
