from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.sdk.percentiles import Spread, percentiles

VALUES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=200)


@given(VALUES)
def test_a_spread_is_within_half_a_percent_of_a_value_of_that_rank(values: list[float]) -> None:
    spread = Spread()
    for value in values:
        spread.add(value)
    ordered = np.sort(values)
    assert spread.count == len(values)
    for name, found in spread.percentiles().items():
        exact = ordered[int(float(name[1:]) / 100 * (len(values) - 1))]
        assert found == pytest.approx(exact, rel=0.00501)


def test_a_spread_does_not_grow_with_what_it_counts() -> None:
    spread = Spread()
    for value in np.random.default_rng(1).lognormal(3, 1, 20_000):
        spread.add(float(value))
    assert len(spread._buckets) < 1500
    exact = np.random.default_rng(1).lognormal(3, 1, 20_000).tolist()
    assert spread.percentiles() == pytest.approx(percentiles(exact), rel=0.006)


def test_nothing_measured_is_zeros_and_a_time_of_zero_is_no_error() -> None:
    spread = Spread()
    assert spread.percentiles() == percentiles([]) == {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    spread.add(0.0)
    assert spread.percentiles()["p99"] == pytest.approx(0.0, abs=2e-6)
