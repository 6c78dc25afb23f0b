"""What travels beside the chosen graph: FP16, plain INT8, the CPU's graph, and what a DLA core needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest

from edgesmith.calibration.cache_file import read_cache
from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import Recipe, convert
from edgesmith.converters.precision import for_cpu, x86_variant
from edgesmith.converters.precision.x86_variant import Race
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import AccuracyBudgetError
from edgesmith.sdk.evaluate.paired import Paired, compare_unlabelled
from edgesmith.sdk.models import Classifier
from edgesmith.sdk.selftest import self_test

COMPARE = "edgesmith.converters.precision.stage.compare_unlabelled"
FAST = Race(float_ms=2.0, x86_ms=1.0, ratio=0.5, spread=(0.45, 0.6), rounds=20)
Asked = Callable[..., Recipe]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), pseudo_images(1, 70 + number, (64, 64))[0])
    return folder


@pytest.fixture
def asked(recipe_of: Callable[..., Recipe], pictures: Path) -> Asked:
    """A recipe for INT8 with the bias correction alone in the chosen way, unless told otherwise."""

    def make(target: Mapping[str, Any] | None = None, **precision: Any) -> Recipe:
        return recipe_of(
            data={"calibration": str(pictures)},
            precision={"mode": "int8", **precision},
            target=dict(target or {}),
        )

    return make


def scripted(monkeypatch: pytest.MonkeyPatch, **drops: float) -> None:
    """The real comparison, with the drops that the test wants by the graph's name (``_`` for ``-``)."""

    def compare(*given: Any) -> Mapping[str, Paired]:
        return {
            name: msgspec.structs.replace(one, drop=drops.get(name.replace("-", "_"), 0.0))
            for name, one in compare_unlabelled(*given).items()
        }

    monkeypatch.setattr(COMPARE, compare)


def graph_of(bundle: Bundle, variant: str) -> onnx.ModelProto:
    return onnx.load_from_string(bundle.read(bundle.manifest.variants[variant].member))


def in_front_of_a_q(model: onnx.ModelProto) -> set[str]:
    """What makes the tensors that are quantized, where it is arithmetic."""
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    read = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return {made[name] for name in read if name in made} & {"Mul", "Add", "Pad"}


def test_plain_int8_has_nothing_in_front_of_a_rounding(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, int8_plain=0.25)
    convert(asked(), tmp_path / "m.edge")
    bundle = Bundle.open(tmp_path / "m.edge")
    assert in_front_of_a_q(graph_of(bundle, "int8")) != set()
    assert in_front_of_a_q(graph_of(bundle, "int8-plain")) == set()
    assert bundle.manifest.variants["int8-plain"].measured["drop"] == 0.25
    for name in ("fp16", "int8-plain"):
        with Classifier.load(tmp_path / "m.edge", backend="cpu", variant=name) as model:
            assert self_test(model).passed


def test_a_variant_past_the_budget_stays_at_home(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, int8_plain=0.51)
    convert(asked(), tmp_path / "m.edge")
    bundle = Bundle.open(tmp_path / "m.edge")
    assert set(bundle.manifest.variants) == {"float", "int8", "fp16"}
    told = json.loads(bundle.read("report.json"))["precision"]["variants"]
    assert {v["name"]: v["in_bundle"] for v in told}["int8-plain"] is False


def test_a_plain_choice_has_no_twin(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    convert(asked(repairs=["bias"]), tmp_path / "m.edge")
    assert set(Bundle.open(tmp_path / "m.edge").manifest.variants) == {"float", "int8", "fp16"}


def test_the_recipe_names_the_variants(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    convert(asked({"variants": ["int8-plain"]}), tmp_path / "m.edge")
    assert set(Bundle.open(tmp_path / "m.edge").manifest.variants) == {"float", "int8", "int8-plain"}
    convert(asked({"variants": []}), tmp_path / "m.edge")
    assert set(Bundle.open(tmp_path / "m.edge").manifest.variants) == {"float", "int8"}


def test_a_named_variant_past_the_budget_refuses(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, fp16=0.7)
    with pytest.raises(
        AccuracyBudgetError, match=r"target\.variants names fp16, which loses 0\.70"
    ) as caught:
        convert(asked({"variants": ["fp16"]}), tmp_path / "m.edge")
    assert (caught.value.drop, caught.value.budget) == (0.7, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_dla_core_gets_the_graph_without_pairs_and_their_scales(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch)
    convert(
        asked({"dla": 1, "device": "orin-nx-16gb", "variants": ["int8-plain"]}, rest="fp32"),
        tmp_path / "m.edge",
    )
    bundle = Bundle.open(tmp_path / "m.edge")
    cache = read_cache(bundle.read("calibration.cache").decode())
    assert cache.version == 100300
    model = onnx.load_from_string(bundle.read("model.dla.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    names = {v.name for v in model.graph.input} | {o for node in model.graph.node for o in node.output}
    plain = graph_of(bundle, "int8-plain")
    made = {output: node.op_type for node in plain.graph.node for output in node.output}
    quantized = [
        node for node in plain.graph.node
        if node.op_type == "Conv" and made.get(node.input[0]) == "DequantizeLinear"
    ]  # fmt: skip
    convolutions = {node.name: node for node in model.graph.node}
    assert len(quantized) >= 4
    # What each quantized layer reads has a scale under the name that it has in the stripped graph.
    assert {convolutions[node.name].input[0] for node in quantized} <= set(cache.scales) & names
    # The weights are those that the integers stand for, so without rounding activations little changes.
    image = np.random.default_rng(1).normal(0, 1, (1, 3, 64, 64)).astype(np.float32)
    rounded, whole = (graph_runner(m)(image)["logits"] for m in (plain, model))
    assert np.abs(rounded - whole).max() < 0.1 * max(1.0, float(np.ptp(whole)))


def test_a_dla_core_refuses_plain_int8_past_the_budget(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, int8_plain=3.0)
    with pytest.raises(AccuracyBudgetError, match=r"target\.dla: .* loses 3\.00 points"):
        convert(asked({"dla": 0, "device": "orin-nx-16gb"}), tmp_path / "m.edge")
    assert list(tmp_path.iterdir()) == []


def cpu_sentence(path: Path) -> str:
    return str(json.loads(Bundle.open(path).read("report.json"))["precision"]["cpu"])


def test_where_it_wins_cpus_with_vnni_run_the_uint8_graph(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, x86=0.1)
    monkeypatch.setattr(for_cpu, "has_integer_products", lambda: True)
    monkeypatch.setattr(x86_variant, "race", lambda *_given, **_options: FAST)
    monkeypatch.setattr(x86_variant, "OTHER_MARGIN", 60.0)  # a seeded network of no meaning
    convert(asked(), tmp_path / "m.edge")
    bundle = Bundle.open(tmp_path / "m.edge")
    assert bundle.manifest.cpu == "x86"
    assert bundle.manifest.variants["x86"].member == "model.x86.onnx"
    assert bundle.manifest.variants["x86"].measured["drop"] == 0.1
    kinds = {i.data_type for i in graph_of(bundle, "x86").graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds
    assert cpu_sentence(tmp_path / "m.edge").startswith(
        "CPUs with VNNI run the uint8 graph: 0.50 times float"
    )
    with Classifier.load(tmp_path / "m.edge", backend="cpu", variant="x86") as model:
        assert self_test(model).passed


def test_past_the_budget_cpus_run_float(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, x86=0.9)
    monkeypatch.setattr(for_cpu, "has_integer_products", lambda: True)
    monkeypatch.setattr(x86_variant, "race", lambda *_given, **_options: FAST)
    monkeypatch.setattr(x86_variant, "OTHER_MARGIN", 60.0)
    convert(asked(), tmp_path / "m.edge")
    manifest = Bundle.open(tmp_path / "m.edge").manifest
    assert "x86" not in manifest.variants
    assert manifest.cpu == "float"
    assert "loses 0.90 points" in cpu_sentence(tmp_path / "m.edge")


def test_without_vnni_nothing_is_tried(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    monkeypatch.setattr(for_cpu, "has_integer_products", lambda: False)
    convert(asked(), tmp_path / "m.edge")
    assert Bundle.open(tmp_path / "m.edge").manifest.cpu == "float"
    assert "has no VNNI" in cpu_sentence(tmp_path / "m.edge")
