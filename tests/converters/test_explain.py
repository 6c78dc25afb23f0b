"""What stands in the way of a device's TensorRT: found before the build, and named with module and line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from edgesmith.converters import Recipe, convert
from edgesmith.converters.explain import explain_graph, explain_recipe
from edgesmith.converters.operators import (
    OLDEST,
    REFUSED,
    REWRITES,
    TAKEN,
    at_least,
    every_operator,
    operator,
    tensorrt_of,
)
from edgesmith.converters.operators_page import page
from edgesmith.converters.passes.lint_operators import _SETTINGS
from edgesmith.device_profiles import load_profile
from edgesmith.sdk.cli.app import main
from edgesmith.sdk.errors import DeviceProfileError, UnsupportedOperatorError

NETWORK = """
import torch
from torch import nn


class Gate(nn.Module):
    def forward(self, x):
        codes = (x * 7).to(torch.int32)
        masked = torch.bitwise_and(codes, 5)
        return x + masked.float()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.gates = nn.ModuleList([Gate(), Gate()])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for gate in self.gates:
            x = gate(x)
        return self.head(x.mean((2, 3)))


def net():
    return Net()
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A network of the user's with a bitwise operator in two of its modules."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "gated.py").write_text(NETWORK)
    scope: dict[str, object] = {}
    exec(compile(NETWORK, "gated", "exec"), scope)
    torch.manual_seed(0)
    module = scope["net"]()  # type: ignore[operator]
    save_file(module.state_dict(), folder / "w.safetensors")
    table = {
        "task": "classify", "input": {"size": [32, 32]},
        "model": {"factory": "gated:net", "weights": "w.safetensors", "python_path": ["."]},
    }  # fmt: skip
    return Recipe.from_dict(table, base=folder)


def test_each_place_is_named_with_module_and_line(recipe: Recipe) -> None:
    found = explain_recipe(recipe, "orin-nx-16gb")  # goes before the recipe's own
    assert not found.passed
    assert [(one.operator, one.module) for one in found.obstacles] == [
        ("BitwiseAnd", "gates.0"), ("BitwiseAnd", "gates.1"),
    ]  # fmt: skip
    (line,) = found.obstacles[0].lines
    assert line.endswith("gated.py, line 9, in forward")
    assert found.obstacles[0].mend == REFUSED["BitwiseAnd"]
    assert (found.device, found.tensorrt, found.operators["Conv"]) == ("orin-nx-16gb", "10.3.0", 1)


def test_convert_refuses_with_the_same_words(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"BitwiseAnd .*\(module gates\.0\)") as caught:
        convert(recipe, tmp_path / "x.edge")
    assert (caught.value.operator, caught.value.module) == ("BitwiseAnd", "gates.0")
    assert REFUSED["BitwiseAnd"] in str(caught.value)
    assert not (tmp_path / "x.edge").exists()


def graph(tmp_path: Path, body: str) -> Path:
    text = f"""<ir_version: 9, opset_import: ["" : 20, "vendor" : 1]>
    g (float[1, 3, 16, 16] images) => (float[1, 3] logits)
    <int64[2] plane = {{2, 3}}>
    {{ {body} logits = ReduceMean <keepdims = 0> (x, plane) }}"""
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_a_ready_graph(tmp_path: Path) -> None:
    found = explain_graph(
        graph(tmp_path, '["a"] d = vendor.Magic (images) ["b"] x = Identity (d)'), "orin-nano-8gb"
    )
    (one,) = found.obstacles
    assert (one.operator, one.node) == ("Magic", "a")
    assert "no plugin of that name" in one.what
    clean = explain_graph(graph(tmp_path, "x = Relu (images)"), "orin-nano-8gb")
    assert clean.passed
    assert clean.operators == {"Relu": 1, "ReduceMean": 1}


def test_a_ready_graph_is_told_of_the_rewrite_that_the_module_would_get(tmp_path: Path) -> None:
    body = "x = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (images)"
    (one,) = explain_graph(graph(tmp_path, body), "generic").obstacles
    assert one.rewrite == "edgesmith.converters.rewrites.pooling"
    assert "maxima of strided slices" in one.mend
    assert "else use a larger kernel" in one.mend


def test_what_a_later_tensorrt_has_depends_on_the_device(tmp_path: Path) -> None:
    body = "n = Constant <value = int64[1] {16}> () w = HannWindow (l) x = Mul (images, w)"
    path = graph(
        tmp_path, body.replace("(l)", "(n0)").replace("n =", "n0 = Constant <value_int = 16> () n =")
    )
    old, new = explain_graph(path, "orin-nano-8gb"), explain_graph(path, "rtx-gpu")
    assert (old.tensorrt, [one.operator for one in old.obstacles]) == ("10.3.0", ["HannWindow"])
    assert "10.15 does" in old.obstacles[0].what
    if at_least(new.tensorrt, "10.15"):
        assert new.passed
    with pytest.raises(DeviceProfileError, match="cannot run a bundle"):
        explain_graph(path, "jetson-nano")


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_ends_with_status_1(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = graph(tmp_path, 'd = Det (images) ["b"] x = Mul (images, images)')
    with pytest.raises(SystemExit) as caught:
        main(["explain", str(path), *(["--json"] if as_json else [])])
    assert caught.value.code == 1
    shown = capsys.readouterr().out
    if as_json:
        answer = json.loads(shown)
        assert answer["obstacles"][0]["operator"] == "Det"
        assert {"model", "device", "tensorrt", "opset", "operators", "unknown", "slow"} <= set(answer)
    else:
        assert "TensorRT does not have Det" in shown
        assert "1 place stands in the way" in shown


def test_the_table_is_whole(root: Path) -> None:
    assert not TAKEN & REFUSED.keys()
    names = [one.name for one in every_operator()]
    assert len(names) == len(set(names)) > 170
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    foreign = {"QGemm", "QLinearAdd", "Upsample"}  # of onnxruntime, and of opsets before 10
    assert set(names) - foreign <= known
    # Whatever the lint looks at has a word in the table.
    assert set(_SETTINGS) <= {one.name for one in every_operator() if one.limits}
    assert operator("NoSuchThing") is None


def test_each_rewrite_is_there() -> None:
    for one in REWRITES:
        assert importlib.util.find_spec(one.module) is not None, one.module


def test_the_page_is_up_to_date(root: Path) -> None:
    assert (root / "docs" / "operators.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("version", "needed", "enough"),
    [("10.3.0", "10.3", True), ("10.16.2", "10.15", True), ("9.9", "10.3", False)],
)
def test_versions_are_numbers(version: str, needed: str, enough: bool) -> None:
    assert at_least(version, needed) is enough


def test_the_oldest_tensorrt_of_a_device_counts() -> None:
    assert tensorrt_of(load_profile("orin-nano-8gb")) == "10.3.0"
    assert tensorrt_of(load_profile("generic")) == OLDEST
