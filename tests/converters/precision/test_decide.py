"""Modes and budget, with a judge that says what the test wants it to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest

from edgesmith.converters.precision.decide import STEPS, Decider, never_quantized
from edgesmith.converters.precision.trial import Workbench
from edgesmith.sdk.errors import AccuracyBudgetError
from edgesmith.sdk.evaluate.paired import Paired

BACK = "quantizing it costs more accuracy than the budget allows"


def paired(drop: float) -> Paired:
    return Paired(
        metric="top1", exact=80.0, other=80.0 - drop, values={"top1": (80.0, 80.0 - drop)}, drop=drop,
        interval=(drop - 0.1, drop + 0.1), images=100, labelled=True, agreement=99.0,
    )  # fmt: skip


class Judge:
    """Answers with the drops that were given for a name, one a look."""

    def __init__(self, **drops: list[float]) -> None:
        self.drops = drops
        self.seen: list[tuple[str, onnx.ModelProto]] = []

    def __call__(self, graphs: Mapping[str, onnx.ModelProto]) -> Mapping[str, Paired]:
        self.seen += graphs.items()
        return {name: paired(self.drops[name].pop(0)) for name in graphs}


def quantized_layers(graph: onnx.ModelProto) -> set[str]:
    made = {output: node for node in graph.graph.node for output in node.output}
    return {
        node.name
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm")
        and getattr(made.get(node.input[0]), "op_type", "") == "DequantizeLinear"
    }


def weight_types(graph: onnx.ModelProto) -> set[int]:
    return {i.data_type for i in graph.graph.initializer if i.name.endswith("_w")}


@pytest.fixture
def decider_of(bench: Workbench) -> Callable[..., Decider]:
    def make(judge: Judge | None, *, rest: str = "fp32", max_drop: float = 0.5) -> Decider:
        reasons = never_quantized(bench.sites(), ())
        return Decider(bench, reasons, max_drop=max_drop, rest=rest, judge=judge)

    return make


def test_int8_inside_the_budget(decider_of: Callable[..., Decider]) -> None:
    judge = Judge(int8=[0.5])
    decision = decider_of(judge).int8(method="auto", repairs="auto", accept_drop=False)
    assert decision.chosen == "int8"
    assert quantized_layers(decision.graphs["int8"]) == {"stem", "left", "right", "depthwise", "point"}
    assert [(k.node, k.why) for k in decision.kept] == [("last", "it makes the outputs")]
    assert decision.share == pytest.approx(1, abs=0.001)
    assert decision.verdicts["int8"].drop == 0.5
    assert decision.evaluations == 1 + 1


def test_int8_past_the_budget_is_refused_unless_that_is_accepted(decider_of: Callable[..., Decider]) -> None:
    with pytest.raises(AccuracyBudgetError) as caught:
        decider_of(Judge(int8=[0.51])).int8(method="auto", repairs="auto", accept_drop=False)
    assert "INT8 loses 0.51 points of top1 (80.00 to 79.49); the budget is 0.5" in str(caught.value)
    assert 'precision.mode = "auto"' in str(caught.value)
    assert "precision.accept_drop" in str(caught.value)
    assert (caught.value.drop, caught.value.budget) == (0.51, 0.5)
    accepted = decider_of(Judge(int8=[7.0])).int8(method="auto", repairs="auto", accept_drop=True)
    assert accepted.verdicts["int8"].drop == 7.0


def test_what_is_not_int8_is_in_the_rest(decider_of: Callable[..., Decider]) -> None:
    halves = decider_of(None, rest="fp16").int8(method="mse", repairs=[], accept_drop=False)
    wholes = decider_of(None, rest="fp32").int8(method="mse", repairs=[], accept_drop=False)
    assert weight_types(halves.graphs["int8"]) == {onnx.TensorProto.FLOAT16}
    assert weight_types(wholes.graphs["int8"]) == {onnx.TensorProto.FLOAT}
    assert halves.verdicts == {}


def test_auto_takes_the_whole_where_it_holds(decider_of: Callable[..., Decider]) -> None:
    judge = Judge(auto=[0.2])
    decision = decider_of(judge).auto(method="auto", repairs="auto")
    assert decision.chosen == "auto"
    assert [(p.float_layers, p.drop) for p in decision.curve] == [(0, 0.2)]
    assert len(decision.kept) == 1


def test_auto_gives_layers_back_until_the_budget_holds(decider_of: Callable[..., Decider]) -> None:
    judge = Judge(auto=[3.0, 1.0, 0.4])
    decision = decider_of(judge).auto(method="auto", repairs="auto")
    assert [(p.float_layers, p.drop) for p in decision.curve] == [(0, 3.0), (2, 1.0), (4, 0.4)]
    shares = [p.share for p in decision.curve]
    assert shares == sorted(shares, reverse=True)
    assert decision.share == shares[-1]
    back = {k.node for k in decision.kept if k.why == BACK}
    assert len(back) == 4
    (left,) = quantized_layers(decision.graphs["auto"])
    assert {left} | back == {"stem", "left", "right", "depthwise", "point"}
    smaller = quantized_layers(judge.seen[1][1])
    assert len(smaller) == 3
    assert left in smaller
    # Four ways, five layers ranked, three looks.
    assert decision.evaluations == 4 + 5 + 3


def test_auto_turns_to_fp16_where_no_int8_holds(decider_of: Callable[..., Decider]) -> None:
    judge = Judge(auto=[3.0, 2.0, 1.0, 0.9], fp16=[0.0])
    decision = decider_of(judge, rest="fp16").auto(method="auto", repairs="auto")
    assert decision.chosen == "fp16"
    assert decision.share == 0.0
    assert quantized_layers(decision.graphs["fp16"]) == set()
    assert weight_types(decision.graphs["fp16"]) == {onnx.TensorProto.FLOAT16}
    assert {k.why for k in decision.kept} == {"no INT8 stays inside the budget", "it makes the outputs"}
    assert len(decision.kept) == 6
    # Nothing is looked at twice: after all five layers there is no more to give back.
    assert [p.float_layers for p in decision.curve] == [0, 2, 4, 5]
    assert len(judge.seen) == 5


def test_auto_looks_at_no_set_of_layers_twice(bench: Workbench) -> None:
    """Four layers are all given back at the second step: the third would be the same graph."""
    reasons = {**never_quantized(bench.sites(), ()), "stem": "the test keeps it"}
    bench.fixed_float = frozenset(reasons)
    judge = Judge(auto=[3.0, 2.0, 1.0], fp16=[0.0])
    decision = Decider(bench, reasons, max_drop=0.5, rest="fp16", judge=judge).auto(method="mse", repairs=[])
    assert [p.float_layers for p in decision.curve] == [0, 2, 4]
    assert STEPS[:2] == (2, 4)


def test_a_budget_that_nothing_holds_is_refused_with_the_curve(decider_of: Callable[..., Decider]) -> None:
    judge = Judge(auto=[3.0, 2.5, 1.0, 0.9], fp16=[0.7])
    with pytest.raises(AccuracyBudgetError) as caught:
        decider_of(judge, rest="fp16").auto(method="auto", repairs="auto")
    said = str(caught.value)
    for part in (
        "0 layers in float: 3.00",
        "2 layers in float: 2.50",
        "5 layers in float: 0.90",
        "FP16: 0.70",
    ):
        assert part in said
    assert 'precision.mode = "fp32"' in said
    assert caught.value.drop == 0.7


def test_fp16_is_not_taken_where_the_recipe_wants_float32_for_the_rest(
    decider_of: Callable[..., Decider],
) -> None:
    judge = Judge(auto=[3.0, 2.5, 1.0, 0.9])
    with pytest.raises(AccuracyBudgetError, match=r'precision\.rest = "fp16"'):
        decider_of(judge, rest="fp32").auto(method="auto", repairs="auto")
    assert {name for name, _ in judge.seen} == {"auto"}


def test_fp16_alone(decider_of: Callable[..., Decider], bench: Workbench) -> None:
    decision = decider_of(Judge(fp16=[0.1])).fp16()
    assert (decision.chosen, decision.share, decision.evaluations) == ("fp16", 0.0, 1)
    assert weight_types(decision.graphs["fp16"]) == {onnx.TensorProto.FLOAT16}
    with pytest.raises(AccuracyBudgetError, match=r"FP16 loses 0\.60 points"):
        decider_of(Judge(fp16=[0.6])).fp16()


def test_without_a_judge_auto_is_all_that_can_be_int8(decider_of: Callable[..., Decider]) -> None:
    decision = decider_of(None).auto(method="auto", repairs="auto")
    assert decision.verdicts == {}
    assert decision.curve == []
    assert len(quantized_layers(decision.graphs["auto"])) == 5
    assert np.isclose(decision.share, 1, atol=0.001)
