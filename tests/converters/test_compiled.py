"""The compile check inside a conversion: what the report and the page say of each variant."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from edgesmith.converters import Recipe, compiled, convert
from edgesmith.converters.compile_check import CompileReport, FloatLayer
from edgesmith.converters.compiled import CompiledGraph, compiled_graphs, quantized_layers
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.manifest import Batch

pytest.importorskip("tensorrt_rtx_bindings", reason="no compiler: pip install 'edgesmith[trt-check]'")
PAIRED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 8, 16, 16] x) => (float[1, 8, 14, 14] y)
<float s = {0.05}, int8 z = {0}, int8[8, 8, 3, 3] w, float[8] ws, int8[8] wz>
{
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  v = DequantizeLinear <axis = 0> (w, ws, wz)
  [first] y = Conv (d, v)
}
"""


class Compiled(msgspec.Struct, frozen=True):
    """What of ``report.json`` is looked at here."""

    compiled: tuple[CompiledGraph, ...]


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "installed", lambda: True)


def told(path: Path) -> tuple[tuple[CompiledGraph, ...], str]:
    bundle = Bundle.open(path)
    report = msgspec.json.decode(bundle.read("report.json"), type=Compiled)
    return report.compiled, bundle.read("report.html").decode()


@pytest.mark.slow
def test_each_variant_of_a_conversion_is_compiled(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    convert(recipe_of(precision={"mode": "int8", "accept_drop": True}), tmp_path / "m.edge")
    graphs, page = told(tmp_path / "m.edge")
    assert [g.variant for g in graphs] == ["float", "int8", "fp16", "int8-plain"]
    assert {g.outcome for g in graphs} == {"compiled"}
    assert {g.version for g in graphs} != {""}
    by_name = {g.variant: g for g in graphs}
    assert (by_name["float"].meant, by_name["fp16"].meant) == (0, 0)
    assert by_name["int8"].meant == by_name["int8-plain"].meant > 0
    assert not any(g.float_instead for g in graphs)
    assert f"{by_name['int8'].meant} of {by_name['int8'].meant}" in page
    assert "for compute capability 8.6" in page


def test_a_float_bundle_is_compiled_too(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    convert(recipe_of(), tmp_path / "m.edge")
    graphs, page = told(tmp_path / "m.edge")
    assert [(g.variant, g.outcome, g.meant) for g in graphs] == [("float", "compiled", 0)]
    assert "none meant" in page


def test_without_the_compiler_the_page_says_so(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "installed", lambda: False)
    convert(recipe_of(), tmp_path / "m.edge")
    graphs, page = told(tmp_path / "m.edge")
    assert graphs == ()
    assert "Not compiled: the compiler is not installed" in page


def test_a_layer_that_falls_to_float_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fallen = FloatLayer(node="first", module="stem.conv", runs_in="Float")

    def check(graph: bytes, **asked: object) -> CompileReport:
        assert asked["meant_int8"] == ["first"]
        return CompileReport(outcome="compiled", version="1", layers=3, float_instead=(fallen,))

    monkeypatch.setattr("edgesmith.converters.compile_check.compile_check", check)
    with caplog.at_level(logging.WARNING):
        (found,) = compiled_graphs({"int8": onnx.parser.parse_model(PAIRED)}, batch=Batch(), size=(16, 16))
    assert (found.meant, found.float_instead) == (1, ("first (module stem.conv) runs in Float",))
    assert "variant int8: first (module stem.conv) runs in Float, though it was quantized" in caplog.text


def test_a_layer_with_a_float_weight_was_not_meant() -> None:
    whole = onnx.parser.parse_model(PAIRED)
    assert quantized_layers(whole) == ["first"]
    half = onnx.parser.parse_model(PAIRED.replace("Conv (d, v)", "Conv (x, v)"))
    assert quantized_layers(half) == []
