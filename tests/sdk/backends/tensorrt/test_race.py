"""The race of a bundle's variants, on the fake TensorRT and on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgesmith.sdk.backends.tensorrt.race import Conditions, candidates, race
from edgesmith.sdk.backends.tensorrt.state import Race, StateBook
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError

Make = Callable[..., Any]
MS = 1_000_000


class Clock:
    """Time that passes only while an engine runs: ``ms`` by variant, ``slower`` over the runs."""

    def __init__(self, machine: Any, ms: dict[str, float], slower: float = 0.0) -> None:
        self.now, self.runs = 0, 0
        self.order: list[str] = []
        real = machine.open_engine

        def open_engine(engine: Any) -> Any:
            backend = real(engine)
            run = backend.run

            def timed(images: Any) -> Any:
                self.runs += 1
                self.order.append(backend.variant)
                self.now += int(ms[backend.variant] * MS * (1 + slower * self.runs))
                return run(images)

            backend.run = timed
            return backend

        self.open_engine = open_engine

    def __call__(self) -> int:
        return self.now


def raced(machine: Any, bundle: Bundle, clock: Clock, **more: Any) -> Race:
    return race(
        bundle,
        found=machine.found,
        target=machine.target,
        open_engine=clock.open_engine,
        cache=machine.cache,
        clock=clock,
        **{"rounds": 6, **more},
    )


def test_the_fastest_wins_and_runs_from_now_on(trio: Bundle, machine: Make) -> None:
    here = machine()
    result = raced(here, trio, Clock(here, {"int8": 3.0, "fp16": 2.0, "float": 5.0}))
    assert result.winner == "fp16"
    assert [(line.variant, line.p50_ms) for line in result.lines] == [
        ("fp16", 2.0),
        ("int8", 3.0),
        ("float", 5.0),
    ]
    assert result.notes == ("int8 (3.00 ms) is slower here than fp16 (2.00 ms)",)
    assert all(line.plan_bytes and line.build_s is not None for line in result.lines)
    assert here.load(trio).variant == "fp16"
    assert here.load(trio, "int8").variant == "int8"
    assert StateBook(here.cache, trio, here.target).read().race == result


def test_the_turns_are_interleaved(trio: Bundle, machine: Make) -> None:
    here = machine()
    clock = Clock(here, {"int8": 1.0, "fp16": 1.0, "float": 1.0})
    raced(here, trio, clock, rounds=3)
    turns = clock.order[-3 * 3 * 5 :: 5]
    assert turns == ["int8", "fp16", "float", "fp16", "float", "int8", "float", "int8", "fp16"]


def test_what_is_wrong_does_not_race(trio: Bundle, machine: Make) -> None:
    here = machine(wrong=("int8",))
    result = raced(here, trio, Clock(here, {"int8": 1.0, "fp16": 2.0, "float": 5.0}))
    assert result.winner == "fp16"
    (out,) = [line for line in result.lines if line.variant == "int8"]
    assert out.p50_ms is None
    assert out.out.startswith("the self-test failed: output logits is off by")


def test_what_is_outside_the_budget_does_not_race(make_trio: Make, machine: Make) -> None:
    bundle, here = make_trio(fp16=0.8), machine()
    result = raced(here, bundle, Clock(here, {"int8": 4.0, "float": 5.0}))
    assert result.winner == "int8"
    assert {line.variant: line.out for line in result.lines}["fp16"] == "loses 0.80 points, 0.50 are allowed"


def test_what_the_device_cannot_does_not_race(trio: Bundle) -> None:
    names, left_out = candidates(trio.manifest, ("fp32", "fp16"))
    assert names == ["fp16", "float"]
    assert left_out == {"int8": "the device does not compute in int8"}
    assert candidates(trio.manifest, None)[0] == ["int8", "fp16", "float"]


@pytest.mark.parametrize(
    ("watched", "slower", "said"),
    [
        (Conditions(throttled=True), 0.0, "the board throttled"),
        (Conditions(), 0.02, "slower meanwhile, as on a board that throttles"),
    ],
)
def test_a_board_that_throttles_makes_the_race_invalid(
    trio: Bundle, machine: Make, watched: Conditions, slower: float, said: str
) -> None:
    here = machine()
    clock = Clock(here, {"int8": 3.0, "fp16": 2.0, "float": 5.0}, slower)
    result = raced(here, trio, clock, watch=lambda: watched)
    assert result.winner is None
    assert result.throttled
    assert said in result.notes[0]
    assert here.load(trio).variant == "int8"  # the bundle's chosen one, as before


def test_a_change_of_the_power_mode_makes_it_invalid(trio: Bundle, machine: Make) -> None:
    here, modes = machine(), iter(["15W"] + ["MAXN"] * 6)
    result = raced(
        here,
        trio,
        Clock(here, {"int8": 3.0, "fp16": 2.0, "float": 5.0}),
        watch=lambda: Conditions(power_mode=next(modes), clock_mhz=1020.0),
    )
    assert result.winner is None
    assert "the power mode changed meanwhile (15W, MAXN)" in result.notes[0]
    assert result.clock_mhz == 1020.0


def test_nothing_runs(trio: Bundle, machine: Make) -> None:
    here = machine(build_fault="refused")
    with pytest.raises(BackendError, match="no variant runs here: int8: TensorRT"):
        raced(here, trio, Clock(here, {}))


def test_on_a_real_clock(trio: Bundle, machine: Make) -> None:
    here = machine(latency_s={"int8": 0.004, "fp16": 0.0005, "fp32": 0.008})
    result = race(
        trio, found=here.found, target=here.target, open_engine=here.open_engine, cache=here.cache, rounds=3
    )
    assert [line.variant for line in result.lines] == ["fp16", "int8", "float"]
