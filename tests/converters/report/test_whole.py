"""Conversions of tiny networks whose reports must tell what the conversion itself found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgesmith.converters import Recipe, convert
from edgesmith.converters.outcome import ConvertReport
from edgesmith.converters.report import against_float
from edgesmith.converters.report.precision import PrecisionReport
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.evaluate.paired import compare_unlabelled

RecipeOf = Callable[..., Recipe]
MOST_BYTES = 600_000


class Members(msgspec.Struct, frozen=True):
    """What of ``report.json`` is looked at here."""

    precision: PrecisionReport | None
    sizes_bytes: dict[str, int]


def converted(recipe: Recipe, out: Path) -> tuple[ConvertReport, Members, PrecisionReport, str]:
    told = convert(recipe, out)
    bundle = Bundle.open(out)
    members = msgspec.json.decode(bundle.read("report.json"), type=Members)
    html = bundle.read("report.html").decode()
    assert len(html.encode()) < MOST_BYTES
    assert "http" not in html
    assert members.precision is not None
    return told, members, members.precision, html


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_float, "LATENCY_S", 0.05)


def test_int8_of_a_classifier(recipe_of: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of(precision={"mode": "int8", "accept_drop": True})
    told, members, found, html = converted(recipe, tmp_path / "m.edge")
    assert [(v.name, v.chosen, v.in_bundle) for v in found.variants][:2] == [
        ("float", False, True),
        ("int8", True, True),
    ]
    assert ("fp16", False, True) in [(v.name, v.chosen, v.in_bundle) for v in found.variants]
    sizes = {v.name: v.size_bytes for v in found.variants}
    assert sizes["float"] == members.sizes_bytes["model.float.onnx"]
    assert sizes["int8"] == members.sizes_bytes["model.onnx"]
    assert 0 < (sizes["fp16"] or 0) < members.sizes_bytes["model.float.onnx"]
    assert found.verdict is not None
    assert (found.verdict.drop, found.verdict.interval) == (told.drop, told.interval)
    assert found.share == told.int8_macs_share > 0
    assert (found.calibration_images, found.search_images, found.images) == (4, 2, 2)
    assert not found.labelled
    kept = {k.module or k.node for k in told.kept_float}
    assert {name for group in found.kept_float for name in group.layers} == kept
    assert not {layer.module for layer in found.layers} & kept
    assert {layer.returned for layer in found.layers} == {False}
    assert [t.taken for t in found.trials].count(True) == 1
    assert 0 < len(found.scales) <= 10
    for scales in found.scales:
        assert scales.windows["minmax"][1] >= scales.windows["mse"][1] - 1e-6
    assert {"float", "int8"} <= set(found.latency.p50_ms)
    assert found.scores is None
    assert html.count("<h2>Verdict</h2>") == 1
    assert html.count("<title>") > len(found.layers)


def test_int8_of_a_detector(recipe_of: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of("detector", precision={"mode": "int8", "accept_drop": True})
    _, _, found, html = converted(recipe, tmp_path / "m.edge")
    assert found.scores is not None
    assert found.scores.found_exact > 0
    assert sum(found.scores.exact) >= found.scores.found_exact
    assert 0.0 < found.scores.f1_same <= found.scores.f1_there <= 1.0
    assert "<h2>Scores and threshold</h2>" in html
    assert html.count('<div class="pairs">') == len(found.worst) <= 4


def test_fp16_has_no_integers_to_tell_of(recipe_of: RecipeOf, tmp_path: Path) -> None:
    told, _, found, html = converted(recipe_of(precision={"mode": "fp16"}), tmp_path / "m.edge")
    assert [v.name for v in found.variants] == ["float", "fp16"]
    assert (found.share, found.repairs, found.method) == (0.0, None, None)
    assert (len(found.layers), len(found.scales), len(found.trials)) == (0, 0, 0)
    assert "<h2>Error by layer</h2>" not in html
    assert told.precision == "fp16"


def test_float_alone_has_no_precision_part(recipe_of: RecipeOf, tmp_path: Path) -> None:
    convert(recipe_of(), tmp_path / "m.edge")
    bundle = Bundle.open(tmp_path / "m.edge")
    assert msgspec.json.decode(bundle.read("report.json"), type=Members).precision is None
    assert b"<h2>Verdict</h2>" not in bundle.read("report.html")


def test_the_half_graph_is_measured_once(
    recipe_of: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def watched(exact: Any, others: Any, images: Any) -> Any:
        seen.append(sorted(others))
        got = compare_unlabelled(exact, others, images)
        # Refused at first, so that the search looks a second time.
        worse = msgspec.structs.replace(got["auto"], drop=99.0)
        return {**got, "auto": worse} if len(seen) == 1 else got

    monkeypatch.setattr("edgesmith.converters.precision.stage.compare_unlabelled", watched)
    recipe = recipe_of(precision={"mode": "auto", "max_drop": 60.0})
    _, _, found, html = converted(recipe, tmp_path / "m.edge")
    assert seen == [["auto", "fp16", "int8-plain"], ["auto"]]
    assert {v.name for v in found.variants} == {"float", "auto", "fp16", "int8-plain"}
    assert [p.float_layers for p in found.curve] == [0, 2]
    assert [layer.returned for layer in found.layers].count(True) == 2
    assert 'class="chart curve"' in html
