"""One recipe, all stages: in order, kept, taken from disk, told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgesmith.converters import Recipe, convert
from edgesmith.converters.compression.chain import Chain
from edgesmith.converters.compression.reshape import reshaped
from edgesmith.converters.pictures import pictures_of
from edgesmith.converters.prune.groups import cut, find_groups
from edgesmith.converters.report.compression import StageReport
from edgesmith.converters.sources import load_source
from edgesmith.converters.stages import Stages
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import DataError, RecipeError
from edgesmith.sdk.models import load_model

MakeRecipe = Callable[..., Recipe]
QUICK: dict[str, Any] = {"epochs": 1, "batch": 16, "rate": 0.01}
STAGES: dict[str, dict[str, Any]] = {
    "prune": {"keep": 0.7, "round_to": 2, "train": QUICK},
    "distill": {"train": QUICK},
    "qat": {"train": {"epochs": 1, "batch": 16}},
    "precision": {"mode": "int8", "accept_drop": True, "rest": "fp32"},
    "target": {"variants": ["fp16"]},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stages of this file lie."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.slow
def test_all_stages_in_order_and_one_report(chain_recipe: MakeRecipe, kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.edge"
    told = convert(chain_recipe(**STAGES), out, stages=kept)
    assert [stage.name for stage in told.stages] == ["trained", "prune", "distill", "qat", "precision"]
    trained, pruned, distilled, qat, final = told.stages
    assert trained.figures is not None
    assert pruned.figures is not None
    assert distilled.figures is not None
    assert final.figures is not None
    assert pruned.figures.macs < 0.75 * trained.figures.macs
    assert distilled.figures.macs == pruned.figures.macs
    assert final.figures.accuracy == pytest.approx(told.chosen)
    assert distilled.figures.accuracy == pytest.approx(told.float)
    assert qat.curves[0].metric == "negative loss"
    assert {w.layer for w in pruned.widths} >= {"stem.0", "body.1.0"}
    assert {w.layer for w in pruned.whole} == {"classifier"}
    bundle = Bundle.open(out)
    report = json.loads(bundle.read("report.json"))
    assert [s["name"] for s in report["compression"]["stages"]] == [s.name for s in told.stages]
    page = bundle.read("report.html").decode()
    assert "<h2>Training</h2>" in page
    assert "2 layers lost channels" in page or "layers lost channels" in page
    assert bundle.manifest.sparse is False
    with load_model(out, backend="cpu") as model:
        assert len(model.names) in (0, 5)
    # Again: everything is taken from disk, and a changed stage reruns only what follows it.
    again = convert(chain_recipe(**STAGES), tmp_path / "again.edge", stages=kept)
    assert [s.cached for s in again.stages[1:4]] == [True, True, True]
    assert bundle.read("model.float.onnx") == Bundle.open(tmp_path / "again.edge").read("model.float.onnx")
    changed = {**STAGES, "distill": {"train": {**QUICK, "rate": 0.02}}}
    third = convert(chain_recipe(**changed), tmp_path / "third.edge", stages=kept)
    assert [s.cached for s in third.stages[1:4]] == [True, False, False]


@pytest.mark.slow
def test_sparse_weights_are_flagged(chain_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = chain_recipe(prune={"keep": 1.0, "sparsity": "2:4", "train": QUICK})
    told = convert(recipe, tmp_path / "m.edge")
    assert {s.layer for s in told.stages[1].sparse} == {"body.1.0", "shortcut", "classifier"}
    assert Bundle.open(tmp_path / "m.edge").manifest.sparse is True


def chained(recipe: Recipe, folder: Path) -> tuple[nn.Module, list[StageReport]]:
    """The network after the recipe's stages, without figures."""
    source = load_source(recipe)
    with Stages() as stage:
        chain = Chain(recipe, source, pictures_of(recipe), folder, stage, measure=False)
        module = chain.run().module
    assert module is not None
    return module, chain.reports


def test_stages_are_taken_from_disk_until_something_changes(
    chain_recipe: MakeRecipe, tmp_path: Path, tensor: torch.Tensor
) -> None:
    tables = {"prune": STAGES["prune"], "distill": STAGES["distill"]}
    network, told = chained(chain_recipe(**tables), tmp_path)
    assert [(s.name, s.cached) for s in told] == [("prune", False), ("distill", False)]
    assert not list(tmp_path.rglob("checkpoint.pt"))
    again, told = chained(chain_recipe(**tables), tmp_path)
    assert [s.cached for s in told] == [True, True]
    assert torch.equal(again(tensor), network(tensor))
    # How it runs is no part of what it gives; how long it learns is.
    idle = {**tables, "distill": {"train": {**QUICK, "checkpoint_s": 5.0}}}
    assert [s.cached for s in chained(chain_recipe(**idle), tmp_path)[1]] == [True, True]
    longer = {**tables, "distill": {"train": {**QUICK, "epochs": 2}}}
    assert [s.cached for s in chained(chain_recipe(**longer), tmp_path)[1]] == [True, False]
    deeper = {**tables, "prune": {**STAGES["prune"], "keep": 0.6}}
    assert [s.cached for s in chained(chain_recipe(**deeper), tmp_path)[1]] == [False, False]


def test_a_kept_stage_that_was_tampered_with_is_refused(chain_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = chain_recipe(prune={"keep": 0.7, "round_to": 2}, data={})
    chained(recipe, tmp_path)
    (place,) = tmp_path.iterdir()
    weights = place / "weights.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "stem.0.weight": tensors["stem.0.weight"] * 1.5}, weights)
    with pytest.raises(DataError, match="other answers than when it was written"):
        chained(recipe, tmp_path)
    weights.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"delete .* to run the stage again"):
        chained(recipe, tmp_path)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"prune": {"keep": 0.05, "most": 0.3}}, "of the target remains"),
        ({"prune": {"untouched": ["*"]}}, r"no layer can lose channels: .*prune\.untouched names it"),
        ({"prune": {"target": "estimate"}}, "whose figures are known"),
        ({"prune": {"train": {}}}, "a training stage needs images"),
        ({"distill": {}}, "a training stage needs images"),
    ],
)
def test_what_cannot_be_done_is_told(
    chain_recipe: MakeRecipe, tmp_path: Path, tables: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        chained(chain_recipe(data={}, **tables), tmp_path)


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_importance_by_images(chain_recipe: MakeRecipe, tmp_path: Path, importance: str) -> None:
    table = {"keep": 0.7, "round_to": 2, "importance": importance, "images": 16, "target": "parameters"}
    _, (told,) = chained(chain_recipe(prune=table), tmp_path)
    assert f"% of parameters left, by {importance}" in told.note
    assert "not tuned" in told.note


@pytest.mark.slow
def test_targets_that_are_timed(chain_recipe: MakeRecipe, tmp_path: Path) -> None:
    table = {"keep": 0.9, "round_to": 2, "target": "estimate", "scope": "uniform"}
    recipe = chain_recipe(prune=table, target={"device": "orin-nano-8gb"})
    _, (told,) = chained(recipe, tmp_path)
    assert "% of estimate left" in told.note


def test_a_pruned_network_is_put_together_again(
    tinynets: object, seeded: Callable[[nn.Module], nn.Module], tensor: torch.Tensor
) -> None:
    network = seeded(tinynets.classifier()).requires_grad_(False)  # type: ignore[attr-defined]
    groups = find_groups(network, tensor[:1]).groups
    small = cut(network, tensor[:1], {g.root: list(range(0, g.width, 3)) for g in groups})
    again = reshaped(network, small.state_dict())
    assert again is not None
    assert torch.equal(again.eval()(tensor), small(tensor))
    assert str(again) == str(small)  # the layers' own numbers of channels too
    assert reshaped(network, {"nothing.weight": torch.ones(1)}) is None
    assert reshaped(network, {"stem.0.weight": torch.ones(1)}) is None
