from __future__ import annotations

from typing import Any

import pytest

from edgesmith.sdk.loop import pace
from edgesmith.sdk.loop.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def run(watched: Pace, clock: Clock, seconds: float, prepare: float = 0.005) -> None:
    watched.prepared(prepare)
    watched.infer_begins()
    clock.now += seconds
    watched.infer_ends()


def test_nothing_is_held_back_before_anything_is_known(clock: Any) -> None:
    watched = Pace()
    assert watched.hold_s() == 0
    watched.infer_begins()
    assert watched.hold_s() == 0


def test_the_next_frame_is_taken_when_it_will_be_just_ready(clock: Any) -> None:
    watched = Pace()
    for _ in range(40):
        run(watched, clock, 0.1)
    assert watched.hold_s() == 0  # the model is free
    watched.infer_begins()
    assert watched.hold_s() == pytest.approx(0.1 - 0.005 - pace.SLACK_S, abs=1e-3)
    clock.now += 0.05
    assert watched.hold_s() == pytest.approx(0.05 - 0.005 - pace.SLACK_S, abs=1e-3)
    clock.now += 0.1
    assert watched.hold_s() == 0  # it takes longer than it ever did


def test_a_model_of_unsteady_speed_is_not_kept_waiting(clock: Any) -> None:
    watched = Pace()
    for n in range(60):
        run(watched, clock, 0.04 if n % 2 else 0.16)
    watched.infer_begins()
    # Expected at 0.1 give or take 0.06: not later than the short runs end.
    assert watched.hold_s() < 0.04


def test_it_follows_a_model_that_becomes_faster(clock: Any) -> None:
    watched = Pace()
    for seconds in [0.2] * 30 + [0.05] * 60:
        run(watched, clock, seconds)
    watched.infer_begins()
    assert 0.0 < watched.hold_s() < 0.05
