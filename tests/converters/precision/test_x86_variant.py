"""The CPU's variant is taken where it is near, fast, and measured with VNNI; else the reason is told."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgesmith.converters.precision import x86_variant as module
from edgesmith.converters.precision.trial import Way, Workbench
from edgesmith.converters.precision.x86_variant import Race, in_turns, race, x86_variant
from edgesmith.converters.runners import Runner

Floats = NDArray[np.float32]
FAST = Race(float_ms=2.0, x86_ms=1.0, ratio=0.5, spread=(0.45, 0.6), rounds=20)
TIED = Race(float_ms=2.0, x86_ms=1.9, ratio=0.95, spread=(0.9, 1.02), rounds=20)


@pytest.fixture
def int8(bench: Workbench) -> onnx.ModelProto:
    return bench.try_way(Way(frozenset({"factor", "offset"}), "minmax")).graph


def timed(monkeypatch: pytest.MonkeyPatch, result: Race) -> None:
    """The race's outcome is given: how fast this machine is does not matter here."""
    monkeypatch.setattr(module, "race", lambda *_args, **_options: result)


def test_fast_and_near_wins_on_a_cpu_with_vnni(
    bench: Workbench, int8: onnx.ModelProto, tensors: list[Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, FAST)
    found = x86_variant(bench, int8, tensors[:16], vnni=True)
    assert found.wins
    assert found.reason is None
    assert found.race == FAST
    assert found.agreement.decibels > found.int8.decibels - module.OTHER_MARGIN
    assert bench.compare(found.graph) == found.agreement
    kinds = {
        init.data_type for init in found.graph.graph.initializer if init.name.endswith("/uint8/zero_point")
    }
    assert kinds == {onnx.TensorProto.UINT8}


def test_a_race_without_vnni_decides_nothing(
    bench: Workbench, int8: onnx.ModelProto, tensors: list[Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, FAST)
    found = x86_variant(bench, int8, tensors[:16], vnni=False)
    assert not found.wins
    assert found.reason is not None
    assert "no VNNI" in found.reason
    assert "convert on a CPU with VNNI" in found.reason


def test_a_tie_is_no_win(
    bench: Workbench, int8: onnx.ModelProto, tensors: list[Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, TIED)
    found = x86_variant(bench, int8, tensors[:16], vnni=True)
    assert not found.wins
    assert found.reason is not None
    assert "0.95 times float's time" in found.reason


def test_a_graph_further_from_float_than_int8_is_refused(
    bench: Workbench, int8: onnx.ModelProto, tensors: list[Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, FAST)
    monkeypatch.setattr(module, "OTHER_MARGIN", -60.0)  # it would have to be 60 dB nearer than INT8
    found = x86_variant(bench, int8, tensors[:16], vnni=True)
    assert not found.wins
    assert found.reason is not None
    assert "dB of signal to noise" in found.reason


def test_without_quantized_layers_there_is_nothing_to_race(bench: Workbench, tensors: list[Floats]) -> None:
    found = x86_variant(bench, bench.exact, tensors[:16])
    assert found.race is None
    assert not found.wins
    assert found.reason is not None
    assert "no layer" in found.reason


def test_both_graphs_are_timed_in_turns(
    bench: Workbench, int8: onnx.ModelProto, tensors: list[Floats]
) -> None:
    found = race(bench.exact, int8, tensors[0], seconds=0.05)
    assert found.rounds >= module.LEAST_ROUNDS
    assert found.float_ms > 0
    assert found.x86_ms > 0
    assert found.spread[0] <= found.ratio <= found.spread[1]


def test_the_order_turns_round_by_round() -> None:
    calls: list[str] = []

    def runner(name: str) -> Runner:
        def run(_images: Floats) -> dict[str, Floats]:
            calls.append(name)
            return {}

        return run

    spent = in_turns({n: runner(n) for n in "ab"}, np.zeros((1, 1), np.float32), seconds=0.0)
    assert len(spent["a"]) == len(spent["b"]) == module.LEAST_ROUNDS
    assert "".join(calls[2:10]) == "abbaabba"
