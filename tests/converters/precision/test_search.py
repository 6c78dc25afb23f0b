"""Which way of quantizing is taken, and which layer is named as the one that hurts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from edgesmith.converters.precision.agreement import Agreement
from edgesmith.converters.precision.search import (
    MARGIN,
    REPAIRS,
    WAYS,
    best_way,
    first_way,
    plain_way,
    rank_sensitivity,
)
from edgesmith.converters.precision.trial import Trial, Way, Workbench

Floats = NDArray[np.float32]
ALL = frozenset({"factor", "offset", "bias"})


@dataclass
class ScriptedBench:
    """Gives each way the nearness that is written down."""

    scores: list[float]
    seen: list[Way] = field(default_factory=list)

    def try_way(self, way: Way) -> Trial:
        self.seen.append(way)
        score = self.scores[len(self.seen) - 1]
        return Trial(way, onnx.ModelProto(), Agreement(same=0, decibels=score, flipped=0, decisions=1))

    def nearness(self, found: Agreement) -> float:
        return found.decibels


def searched(scores: list[float], **asked: object) -> tuple[int, ScriptedBench]:
    bench = ScriptedBench(scores)
    given = {"method": "auto", "repairs": "auto", **asked}
    best, tried = best_way(cast(Workbench, bench), **given)  # type: ignore[arg-type]
    assert [trial.way for trial in tried] == bench.seen
    return bench.seen.index(best.way), bench


def test_ways_are_tried_in_their_order_and_the_nearest_is_taken() -> None:
    chosen, bench = searched([10.0, 12.0, 15.0, 3.0])
    assert [(way.repairs, way.method) for way in bench.seen] == list(WAYS)
    assert chosen == 2


@pytest.mark.parametrize(("ahead", "expected"), [(0.5 * MARGIN, 0), (2 * MARGIN, 1)])
def test_a_later_way_must_be_nearer_by_the_margin(ahead: float, expected: int) -> None:
    assert searched([10.0, 10.0 + ahead, 1.0, 1.0])[0] == expected


def test_a_method_of_the_recipes_own_leaves_ways_that_differ_in_repairs() -> None:
    _, bench = searched([1.0] * 4, method="entropy")
    assert [way.method for way in bench.seen] == ["entropy"] * 3
    assert len({way.repairs for way in bench.seen}) == 3


def test_repairs_that_are_named_are_the_only_way() -> None:
    _, bench = searched([1.0], repairs=["smooth", "bias"])
    assert bench.seen == [Way(frozenset({"smooth", "bias"}), "mse")]
    assert first_way(method="auto", repairs="auto") == Way(*WAYS[0])
    assert first_way(method="minmax", repairs=()) == Way(frozenset(), "minmax")


def test_each_name_of_a_repair_makes_a_way(bench: Workbench) -> None:
    """None is without effect here but ``residual``: this graph's one sum is of two layers."""
    plain = bench.try_way(Way(frozenset(), "mse")).agreement.decibels
    alone = {name: bench.try_way(Way(frozenset({name}), "mse")).agreement.decibels for name in REPAIRS}
    assert {name for name, ratio in alone.items() if ratio == plain} == {"residual"}


def test_the_plain_way_leaves_nothing_in_front_of_a_rounding(bench: Workbench) -> None:
    trial = bench.try_way(plain_way())
    front = [node for node in trial.graph.graph.node if "/in/" in node.name]
    assert {node.op_type for node in front} == {"QuantizeLinear", "DequantizeLinear"}
    # The offset of what `point` reads went into the depthwise layer's bias and its ReLU.
    assert [node.op_type for node in trial.graph.graph.node].count("Clip") == 1


def test_folding_changes_no_number(bench: Workbench) -> None:
    names = frozenset({"factor", "offset", "bias"})
    one, other = (bench.try_way(Way(repairs, "mse")) for repairs in (names, names | {"fold"}))
    assert one.deltas.keys() == other.deltas.keys()
    assert other.agreement.decibels == pytest.approx(one.agreement.decibels, abs=0.3)
    kinds = [[node.op_type for node in trial.graph.graph.node].count("Add") for trial in (one, other)]
    assert kinds[1] < kinds[0]


def test_told_of_each_trial(bench: Workbench) -> None:
    told: list[Trial] = []
    best, tried = best_way(bench, method="auto", repairs="auto", told=told.append)
    assert told == tried
    assert best in tried
    assert bench.evaluations == len(WAYS)


def test_repairs_bring_a_graph_of_unequal_channels_nearer(bench: Workbench) -> None:
    plain, repaired = (bench.try_way(Way(names, "mse")) for names in (frozenset[str](), ALL))
    assert repaired.agreement.decibels > plain.agreement.decibels + 3
    assert set(plain.layer_db) == {"stem", "left", "right", "depthwise", "point"}
    assert plain.deltas == {}
    assert set(repaired.deltas) == set(repaired.layer_db)


def spoiled(bench: Workbench, tensor: str) -> Workbench:
    """Ranges that are far too wide for one tensor: what reads it keeps three or four integers."""
    activation = bench.table.activations[tensor]
    wide = {name: (-60 * high, 60 * high) for name, (_, high) in activation.symmetric.items()}
    bench.table = replace(
        bench.table, activations={**bench.table.activations, tensor: replace(activation, symmetric=wide)}
    )
    return bench


@pytest.mark.parametrize(("tensor", "layers"), [("rf", {"point"}), ("images", {"stem"})])
def test_the_layer_that_was_made_bad_is_ranked_first(bench: Workbench, tensor: str, layers: set[str]) -> None:
    trial = spoiled(bench, tensor).try_way(Way(frozenset({"factor"}), "mse"))
    told: list[tuple[int, int]] = []
    ranked = rank_sensitivity(bench, trial, told=lambda done, total: told.append((done, total)))
    assert {ranked[0].node} == layers
    assert ranked[0].loss > 3 * max(abs(s.loss) for s in ranked[1:])
    assert [s.loss for s in ranked] == sorted((s.loss for s in ranked), reverse=True)
    assert {s.node for s in ranked} == set(trial.layer_db)
    assert told[-1] == (5, 5)
    (short,) = rank_sensitivity(bench, trial, most=1)
    assert short == ranked[0]


def test_a_layer_given_back_keeps_the_others_repairs(bench: Workbench) -> None:
    trial = bench.try_way(Way(ALL, "mse"))
    graph = bench.without(trial, {"depthwise"})
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer}
    assert "depthwise_w" in constants
    before = {i.name: onnx.numpy_helper.to_array(i) for i in trial.graph.graph.initializer}
    biases = {name for name in before if name.endswith("corrected_bias")} & set(constants)
    assert biases == {f"{name}/corrected_bias" for name in ("stem", "left", "right", "point")}
    for name in biases:
        np.testing.assert_array_equal(constants[name], before[name])


def test_nearness_of_a_detector_that_is_sure_of_nothing_is_the_ratio(bench: Workbench) -> None:
    bench.task = "detect"
    sure = Agreement(same=40.0, decibels=12.0, flipped=0, decisions=3)
    assert bench.nearness(sure) == 40.0
    assert bench.nearness(replace(sure, same=100.0, decisions=0)) == 12.0
