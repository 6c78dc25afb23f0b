"""Trained models of each kind, and the ones that are refused."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgesmith.converters import Recipe
from edgesmith.converters.recipe import SOURCES
from edgesmith.converters.runners import graph_runner
from edgesmith.converters.sources import load_source
from edgesmith.converters.sources.load import KINDS
from edgesmith.converters.sources.state_dict import fill, read_state_dict
from edgesmith.sdk.errors import SourceError, UnsupportedOperatorError

RecipeOf = Callable[..., Recipe]


def of(kind: str, value: str, base: Path, **model: Any) -> Recipe:
    table = {"task": "classify", "model": {kind: value, **model}, "input": {"size": [64, 64]}}
    return Recipe.from_dict(table, base=base)


@pytest.fixture
def reference(tinynets: ModuleType, weights: dict[str, Path]) -> nn.Module:
    """The tiny classifier as the user has it."""
    module: nn.Module = tinynets.classifier()
    module.load_state_dict(load_file(weights["classifier"]))
    return module.eval()


def test_the_table_has_every_kind_of_the_recipe() -> None:
    assert tuple(KINDS) == SOURCES


def test_factory(recipe_of: RecipeOf, reference: nn.Module, tensor: torch.Tensor) -> None:
    path = list(sys.path)
    loaded = load_source(recipe_of())
    assert loaded.module is not None
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert torch.equal(loaded.module(tensor), reference(tensor))
    assert loaded.name == "factory tinynets:classifier with classifier.safetensors"
    assert sys.path == path


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("tinynets:nothing", "tinynets has no nothing; it has"),
        ("nosuchmodule:f", "there is no module nosuchmodule"),
        ("tinynets", "must read module:attribute"),
        ("tinynets:constant", "is a int, not a function or class"),
        ("tinynets:not_a_module", "returned a int, not a torch.nn.Module"),
        ("tinynets:broken", r"KeyError: 'depth' \(at .*tinynets\.py, line \d+, in broken\)"),
    ],
)
def test_factories_that_fail(networks: Path, weights: dict[str, Path], factory: str, said: str) -> None:
    recipe = of("factory", factory, networks, weights=str(weights["classifier"]), python_path=["."])
    with pytest.raises(SourceError, match=said):
        load_source(recipe)


def test_a_fault_while_importing_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "faulty_net.py").write_text("import math\n\nx = math.sqrt(-1)\n")
    (tmp_path / "unfinished_net.py").write_text("def f(:\n")
    (tmp_path / "lacking_net.py").write_text("import nosuchpackage_at_all\n")
    for name, said in (
        ("faulty_net", r"ValueError: .*faulty_net\.py, line 3"),
        ("unfinished_net", r"SyntaxError: .*unfinished_net\.py, line 1"),
        ("lacking_net", r"nosuchpackage_at_all.*lacking_net\.py, line 1"),
    ):
        with pytest.raises(SourceError, match=said):
            load_source(of("factory", f"{name}:f", tmp_path, weights="w.pt", python_path=["."]))


def test_a_namesake_from_another_folder_is_not_taken(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        code = f"from torch import nn\ndef make():\n    m = nn.Linear(1, {value}, bias=False)\n    return m\n"
        (tmp_path / name / "namesake_net.py").write_text(code)
        save_file({"weight": torch.zeros(value, 1)}, tmp_path / f"{name}.safetensors")
    for name, value in (("one", 1), ("two", 2)):
        recipe = of(
            "factory", "namesake_net:make", tmp_path, weights=f"{name}.safetensors", python_path=[name]
        )
        module = load_source(recipe).module
        assert module is not None
        assert module.out_features == value


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt"])
@pytest.mark.parametrize("entry", [None, "state_dict", "model", "model_state_dict", "net"])
def test_state_dicts_and_checkpoints(
    tmp_path: Path, reference: nn.Module, ending: str, entry: str | None
) -> None:
    state = reference.state_dict()
    content: Any = state if entry is None else {entry: state, "epoch": 3, "best": np.float64(0.5)}
    torch.save(content, tmp_path / f"w.{ending}")
    read, notes = read_state_dict(tmp_path / f"w.{ending}")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)
    assert notes == ([] if entry is None else [f"w.{ending}: took the entry {entry!r}"])


def test_of_several_entries_the_one_taken_is_said(tmp_path: Path, reference: nn.Module) -> None:
    average = {k: torch.zeros_like(v) for k, v in reference.state_dict().items()}
    torch.save({"ema": average, "model": reference.state_dict()}, tmp_path / "w.pt")
    read, notes = read_state_dict(tmp_path / "w.pt")
    assert torch.equal(read["classifier.weight"], reference.state_dict()["classifier.weight"])
    assert notes == ["w.pt: took the entry 'model'; also there: ema"]


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_go(
    tmp_path: Path, reference: nn.Module, tinynets: ModuleType, prefix: str
) -> None:
    state = {f"{prefix}{k}": v for k, v in reference.state_dict().items()}
    module = tinynets.classifier()
    notes = fill(module, state, tmp_path / "w.pt")
    assert notes == [f"w.pt: took {prefix!r} off the keys"]
    assert torch.equal(module.classifier.weight, reference.state_dict()["classifier.weight"])


def test_a_prefix_that_belongs_to_the_module_stays(tmp_path: Path) -> None:
    module = nn.ModuleDict({"model": nn.Linear(2, 2)})
    assert fill(module, {"model.weight": torch.ones(2, 2), "model.bias": torch.ones(2)}, tmp_path) == []


def test_stripping_never_merges_two_keys(tmp_path: Path) -> None:
    state = {"model.weight": torch.ones(2, 2), "weight": torch.zeros(2, 2), "model.bias": torch.ones(2)}
    with pytest.raises(SourceError) as caught:
        fill(nn.Linear(2, 2), state, tmp_path / "w.pt")
    assert caught.value.missing == ("bias",)
    assert caught.value.unexpected == ("model.weight", "model.bias")


def test_keys_that_do_not_fit_are_listed(tmp_path: Path, reference: nn.Module, tinynets: ModuleType) -> None:
    state = dict(reference.state_dict())
    gone = [k for k in state if k.startswith("body") and not k.endswith("num_batches_tracked")]
    for key in gone:
        del state[key]
    state["classifier.bias"] = torch.zeros(7)
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(SourceError) as caught:
        fill(tinynets.classifier(), state, tmp_path / "w.pt")
    assert caught.value.missing == tuple(gone)
    assert caught.value.unexpected == ("extra.weight",)
    text = str(caught.value)
    assert f"{len(gone)} missing in the file: {', '.join(gone[:8])} and {len(gone) - 8} more" in text
    assert "1 not in the module: extra.weight" in text
    assert "classifier.bias is (7,), the module has (5,)" in text


def test_counters_of_batch_norm_may_be_missing(
    tmp_path: Path, reference: nn.Module, tinynets: ModuleType
) -> None:
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert fill(tinynets.classifier(), state, tmp_path / "w.pt") == []


def test_weights_that_are_not_finite(tmp_path: Path, reference: nn.Module, tinynets: ModuleType) -> None:
    state = dict(reference.state_dict())
    state["classifier.bias"] = torch.full((5,), float("nan"))
    with pytest.raises(SourceError, match=r"1 values that are not finite: classifier\.bias"):
        fill(tinynets.classifier(), state, tmp_path / "w.pt")


class Planted:
    """What an attacker would pickle: unpickling it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, (99,))


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"model": Planted()}, tmp_path / "w.pt")
    with pytest.raises(
        SourceError, match=r"unpickling runs code.*torch\.save\(model\.state_dict\(\), \"weights\.pt\"\)"
    ):
        read_state_dict(tmp_path / "w.pt")


def test_pickled_modules_are_refused_by_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"pickled Python objects \(torch\.nn\.modules\.linear\.Linear\)"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3}, "no state dict in it; its entries are 'epoch'"),
        ([1, 2], "holds a list, not a state dict"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=said):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_of_rubbish(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"rubbish" * 9)
    with pytest.raises(SourceError, match=name):
        read_state_dict(tmp_path / name)


@pytest.fixture
def program(tmp_path: Path, reference: nn.Module) -> Path:
    torch.export.save(torch.export.export(reference, (torch.zeros(1, 3, 64, 64),)), tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


@pytest.fixture
def archive(tmp_path: Path, reference: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; the user's archive is what it is
        trace: Any = torch.jit.trace
        torch.jit.save(trace(reference, torch.zeros(1, 3, 64, 64)), tmp_path / "net.ts")
    return tmp_path / "net.ts"


def test_program(program: Path, reference: nn.Module, tensor: torch.Tensor) -> None:
    loaded = load_source(of("program", "net.pt2", program.parent))
    assert loaded.module is not None
    wrapped = nn.Sequential(loaded.module).eval()  # a head's wrapper calls eval() on its parts
    torch.testing.assert_close(wrapped(tensor[:1]), reference(tensor[:1]))
    assert "stem.0.weight" in dict(loaded.module.named_parameters())


def test_program_of_a_training_module(tmp_path: Path, reference: nn.Module) -> None:
    torch.export.save(
        torch.export.export(reference.train(), (torch.zeros(1, 3, 64, 64),)), tmp_path / "net.pt2"
    )
    with pytest.raises(SourceError, match=r"training mode.*model\.eval\(\)"):
        load_source(of("program", "net.pt2", tmp_path))


def test_no_program(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match=r"net\.pt2: cannot be read as an exported program"):
        load_source(of("program", "net.pt2", tmp_path))


def test_torchscript(archive: Path, reference: nn.Module, tensor: torch.Tensor) -> None:
    loaded = load_source(of("torchscript", "net.ts", archive.parent))
    assert loaded.module is not None
    torch.testing.assert_close(loaded.module(tensor[:1]), reference(tensor[:1]))
    assert "stem.0" in dict(loaded.module.named_modules())


def test_torchscript_has_one_shape(archive: Path) -> None:
    table = {
        "task": "classify",
        "model": {"torchscript": "net.ts"},
        "input": {"size": [64, 64], "batch": {"min": 1, "opt": 2, "max": 4}},
    }
    with pytest.raises(SourceError, match="one input shape"):
        load_source(Recipe.from_dict(table, base=archive.parent))


def test_no_torchscript(tmp_path: Path) -> None:
    (tmp_path / "net.ts").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match=r"net\.ts: cannot be read as a TorchScript archive"):
        load_source(of("torchscript", "net.ts", tmp_path))


def test_programs_given_as_weights_say_where_they_belong(program: Path, archive: Path) -> None:
    with pytest.raises(SourceError, match=r'an exported program; give it as model\.program = "net\.pt2"'):
        read_state_dict(program)
    with pytest.raises(
        SourceError, match=r'a TorchScript archive; give it as model\.torchscript = "net\.ts"'
    ):
        read_state_dict(archive)


GRAPH = """
<ir_version: 8, opset_import: ["" : {opset}{more}]>
agraph (float[N,3,8,8] x) => (float[N,5] y)
<float[5,3,1,1] w = {{{weights}}}>
{{
  c = Conv(x, w)
  m = GlobalAveragePool(c)
  {extra}
  y = Flatten(m)
}}
"""


def graph(path: Path, *, opset: int = 17, more: str = "", extra: str = "") -> Path:
    weights = ", ".join(str(0.1 * n) for n in range(15))
    onnx.save(
        onnx.parser.parse_model(GRAPH.format(opset=opset, weights=weights, more=more, extra=extra)), path
    )
    return path


def test_onnx_of_an_older_opset_is_converted(tmp_path: Path) -> None:
    graph(tmp_path / "net.onnx", opset=13)
    loaded = load_source(of("onnx", "net.onnx", tmp_path))
    assert loaded.model is not None
    assert loaded.model.opset_import[0].version == 20
    assert loaded.notes == ("net.onnx: opset 13 converted to 20",)
    images = np.random.default_rng(0).normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    before = graph_runner(onnx.load(tmp_path / "net.onnx"))(images)["y"]
    assert np.array_equal(graph_runner(loaded.model)(images)["y"], before)


def test_onnx_with_external_data(tmp_path: Path) -> None:
    whole = onnx.numpy_helper.to_array(onnx.load(graph(tmp_path / "net.onnx", opset=20)).graph.initializer[0])
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(whole, "w"))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    loaded = load_source(of("onnx", "big.onnx", tmp_path))
    assert loaded.model is not None
    assert (tmp_path / "big.data").stat().st_size >= whole.nbytes
    assert np.array_equal(onnx.numpy_helper.to_array(loaded.model.graph.initializer[0]), whole)
    (tmp_path / "big.data").unlink()
    with pytest.raises(SourceError, match=r"big\.onnx.*big\.data"):
        load_source(of("onnx", "big.onnx", tmp_path))


def test_onnx_with_a_foreign_operator(tmp_path: Path) -> None:
    graph(tmp_path / "net.onnx", more=', "com.acme" : 1', extra="z = com.acme.Swirl(m)")
    with pytest.raises(UnsupportedOperatorError, match=r"com\.acme\.Swirl") as caught:
        load_source(of("onnx", "net.onnx", tmp_path))
    assert caught.value.operator == "com.acme.Swirl"


def test_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match=r"net\.onnx: (not a sound ONNX file|fails ONNX's own check)"):
        load_source(of("onnx", "net.onnx", tmp_path))


def test_zoo(tmp_path: Path, tensor: torch.Tensor) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    module = get_model("squeezenet1_1", weights=None).eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = load_source(of("zoo", "torchvision:squeezenet1_1", tmp_path, weights="w.pt"))
    assert loaded.module is not None
    assert torch.equal(loaded.module(tensor), module(tensor))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet81", r"torchvision has no model 'resnet81'; near it: resnet"),
        ("resnet18", "must read torchvision:NAME or timm:NAME"),
        ("keras:x", "must read torchvision:NAME or timm:NAME"),
        ("torchvision:resnet18", r"needs a weights file.*get_model\('resnet18', weights='DEFAULT'\)"),
    ],
)
def test_zoo_names_that_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        load_source(of("zoo", name, tmp_path))
