"""A conversion in each precision mode, from the recipe to what the bundle holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import onnx
import pytest

from edgesmith.calibration.images import pseudo_images
from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.converters import Recipe, convert
from edgesmith.converters.outcome import ConvertReport
from edgesmith.converters.precision import stage
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cameras import read_image
from edgesmith.sdk.cli.app import main
from edgesmith.sdk.errors import AccuracyBudgetError, RecipeError
from edgesmith.sdk.evaluate.paired import Paired, compare_unlabelled
from edgesmith.sdk.models import Classifier
from edgesmith.sdk.selftest import self_test

KEYS = {
    "bundle", "precision", "metric", "float", "chosen", "drop", "interval", "int8_macs_share", "kept_float",
    "evaluations", "seconds", "refused",
}  # fmt: skip
COMPARE = "edgesmith.converters.precision.stage.compare_unlabelled"
LAYERS = {"stem.0", "body.0.0", "body.1.0", "shortcut"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(20):
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), pseudo_images(1, 50 + number, (64, 64))[0])
    return folder


@pytest.fixture
def asked(recipe_of: Callable[..., Recipe], pictures: Path) -> Callable[..., Recipe]:
    def make(mode: str, **precision: Any) -> Recipe:
        return recipe_of(data={"calibration": str(pictures)}, precision={"mode": mode, **precision})

    return make


def graph_of(bundle: Bundle, variant: str) -> onnx.ModelProto:
    return onnx.load_from_string(bundle.read(bundle.manifest.variants[variant].member))


def quantized_modules(model: onnx.ModelProto) -> set[str]:
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    return {
        next(p.value for p in node.metadata_props if p.key == "edgesmith.module")
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and made.get(node.input[0]) == "DequantizeLinear"
    }


def halves(model: onnx.ModelProto) -> bool:
    return any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer)


def scripted(monkeypatch: pytest.MonkeyPatch, drops: dict[str, float]) -> list[str]:
    """The real comparison, with the drops that the test wants by the graph's name; the names looked at.

    FP16 is measured beside the first look in every mode.
    """
    looked: list[str] = []

    def compare(*given: Any) -> Mapping[str, Paired]:
        found = compare_unlabelled(*given)
        looked.extend(found)
        return {name: msgspec.structs.replace(one, drop=drops.get(name, 0.0)) for name, one in found.items()}

    monkeypatch.setattr(COMPARE, compare)
    return looked


@pytest.mark.parametrize("mode", ["fp16", "int8", "auto"])
def test_a_bundle_of_each_mode(
    mode: str, asked: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {mode: 0.25})
    out = tmp_path / "m.edge"
    report = convert(asked(mode), out)
    told = msgspec.to_builtins(report)
    assert set(told) >= KEYS
    assert (told["bundle"], told["precision"], told["refused"]) == (str(out), mode, None)
    assert (told["metric"], told["float"], told["drop"]) == ("agreement", 100.0, 0.25)
    assert len(told["interval"]) == 2
    assert told["evaluations"] == {"fp16": 1, "int8": 3, "auto": 6}[mode]
    bundle = Bundle.open(out)
    manifest = bundle.manifest
    assert manifest.chosen == mode
    beside = set() if mode == "fp16" else {"fp16", "int8-plain"}
    assert set(manifest.variants) == {"float", mode, *beside}
    assert {name: manifest.variants[name].member for name in beside} == {
        name: f"variants/{name}.onnx" for name in beside
    }
    assert manifest.variants[mode].member == "model.onnx"
    assert manifest.variants[mode].measured["drop"] == 0.25
    assert manifest.measured == manifest.variants[mode].measured
    graph = graph_of(bundle, mode)
    assert quantized_modules(graph) == (set() if mode == "fp16" else LAYERS)
    assert halves(graph)
    assert not halves(graph_of(bundle, "float"))
    assert {value.type.tensor_type.elem_type for value in [*graph.graph.input, *graph.graph.output]} == {
        onnx.TensorProto.FLOAT
    }
    table = ScaleTable.from_json(bundle.read("scales.json"))
    assert table.images == 15  # five of the twenty are held back for the search
    assert len(table.activations) == 4
    whys = {entry["module"]: entry["why"] for entry in told["kept_float"]}
    assert all(set(entry) == {"node", "module", "why"} for entry in told["kept_float"])
    if mode == "fp16":
        assert set(whys) == LAYERS | {"classifier"}
        assert told["int8_macs_share"] == 0.0
    else:
        assert set(whys) == {"classifier"}
        assert 0.99 < told["int8_macs_share"] < 1.0
    assert json.loads(bundle.read("report.json"))["manifest"]["chosen"] == mode


def test_the_variants_verify_and_answer_alike(
    asked: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.edge"
    convert(asked("int8", accept_drop=True), out)
    frame = read_image(pictures / "00.png")
    scores = {}
    for variant in ("float", "int8"):
        with Classifier.load(out, backend="cpu", variant=variant) as model:
            assert self_test(model).passed
            found = model(frame)
            scores[variant] = dict(zip(found.labels.tolist(), found.scores.tolist(), strict=True))
    assert scores["float"] != scores["int8"]
    assert scores["int8"] == pytest.approx(scores["float"], abs=0.05)


def test_labelled_images_judge_in_top1(
    recipe_of: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    """Labels that are all one class: the float model's share of it is the figure."""
    rows = "".join(f"{p.name},2\n" for p in sorted(pictures.glob("*.png")))
    (tmp_path / "labels.csv").write_text(f"file,class\n{rows}")
    evaluation = {"images": str(pictures), "labels": str(tmp_path / "labels.csv")}
    report = convert(
        recipe_of(
            data={"calibration": str(pictures), "evaluation": evaluation},
            precision={"mode": "int8", "accept_drop": True},
        ),
        tmp_path / "m.edge",
    )
    assert report.metric == "top1"
    assert report.float is not None
    assert report.chosen is not None
    assert report.drop == pytest.approx(report.float - report.chosen)
    manifest = Bundle.open(tmp_path / "m.edge").manifest
    assert manifest.variants["float"].measured["top1"] == report.float
    assert manifest.variants["int8"].measured["top1"] == report.chosen
    assert set(manifest.variants["int8"].measured) >= {"drop", "drop_low", "drop_high", "flipped"}


@pytest.mark.parametrize(
    ("mode", "drops", "looks"),
    [
        ("fp16", {"fp16": 9.0}, ["fp16"]),
        ("int8", {"int8": 9.0}, ["int8"]),
        ("auto", {"auto": 9.0, "fp16": 8.0}, ["auto", "auto", "auto"]),
    ],
)
def test_a_refused_conversion_leaves_the_old_bundle(
    mode: str, drops: dict[str, float], looks: list[str], asked: Callable[..., Recipe], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    looked = scripted(monkeypatch, drops)
    out = tmp_path / "m.edge"
    out.write_bytes(b"the old bundle")
    with pytest.raises(AccuracyBudgetError) as caught:
        convert(asked(mode), out)
    assert [name for name in looked if name == mode] == looks
    assert caught.value.drop == min(drops.values())
    assert out.read_bytes() == b"the old bundle"
    # The bundle that was measured is gone.
    assert [path.name for path in tmp_path.iterdir()] == ["m.edge"]


def test_a_refusal_in_json_has_the_same_keys(
    pictures: Path, networks: Path, weights: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scripted(monkeypatch, {"int8": 2.5})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'task = "classify"\n[model]\nfactory = "tinynets:classifier"\nweights = "{weights["classifier"]}"\n'
        f'python_path = ["{networks}"]\n[input]\nsize = [64, 64]\n[data]\ncalibration = "{pictures}"\n'
    )
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(recipe), "-o", str(tmp_path / "m.edge"), "--json", "--precision.mode", "int8"])
    assert caught.value.code == 4
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert set(told) >= KEYS
    assert (told["bundle"], told["precision"], told["drop"]) == (None, "int8", 2.5)
    assert "INT8 loses 2.50 points of agreement" in told["refused"]
    assert told["refused"] in shown.err
    assert not (tmp_path / "m.edge").exists()


def test_auto_gives_back_what_the_budget_asks_for(
    asked: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter((2.0, 0.4))

    def compare(*given: Any) -> Mapping[str, Paired]:
        found = dict(compare_unlabelled(*given))
        return {**found, "auto": msgspec.structs.replace(found["auto"], drop=next(drops))}

    monkeypatch.setattr(COMPARE, compare)
    report: ConvertReport = convert(asked("auto", keep_float=["stem.*"]), tmp_path / "m.edge")
    whys = {entry.module: entry.why for entry in report.kept_float}
    back = {module for module, why in whys.items() if "than the budget allows" in why}
    assert whys["stem.0"] == "precision.keep_float names it (stem.*)"
    assert len(back) == 2
    assert back < LAYERS - {"stem.0"}
    graph = graph_of(Bundle.open(tmp_path / "m.edge"), "auto")
    assert quantized_modules(graph) == LAYERS - {"stem.0"} - back
    assert report.drop == 0.4
    assert report.int8_macs_share < 0.9
    assert report.evaluations == 1 + 4 + 3 + 2  # the plain variant, the ways, the layers, the looks


def test_images_of_the_search_and_of_the_calibration_are_apart(
    asked: Callable[..., Recipe], recipe_of: Callable[..., Recipe], pictures: Path, tmp_path: Path
) -> None:
    split = stage.split_of(asked("int8"))
    assert (len(split.calibration), len(split.search)) == (15, 5)
    assert not set(split.calibration.names) & set(split.search.names)
    again = stage.split_of(asked("int8"))
    assert again.search.names == split.search.names
    own = recipe_of(data={"calibration": str(pictures), "search": str(pictures)}, precision={"mode": "int8"})
    assert len(stage.split_of(own).calibration) == len(stage.split_of(own).search) == 20
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes((pictures / "00.png").read_bytes())
    with pytest.raises(RecipeError, match="1 images cannot be divided") as caught:
        stage.split_of(recipe_of(data={"calibration": str(tmp_path / "one")}, precision={"mode": "int8"}))
    assert caught.value.key == "data.calibration"


@pytest.mark.assets
@pytest.mark.slow
def test_mobilenet_keeps_its_decisions_in_int8(asset_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The model on which plain INT8 flips a fifth of the decisions."""
    report = convert(asset_recipe("mobilenet_v1_025", precision__mode="int8"), tmp_path / "m.edge")
    assert report.drop is not None
    assert report.interval is not None
    assert report.drop <= 0.5
    assert report.interval[0] <= report.drop <= report.interval[1]
    assert report.int8_macs_share >= 0.95
    assert report.float == pytest.approx(57.27, abs=0.3)
    measured = Bundle.open(tmp_path / "m.edge").manifest.measured
    assert measured["flipped"] <= 40
