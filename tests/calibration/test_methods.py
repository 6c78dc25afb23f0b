"""Each method against what its definition says, worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.distribution import Distribution, Window, clipped, error_of
from edgesmith.calibration.methods import METHODS, windows_of
from edgesmith.calibration.statistics import Scratch, TensorStatistics


def distribution_of(values: NDArray[np.floating]) -> Distribution:
    tensor = TensorStatistics("x")
    tensor.add(values.astype(np.float32).reshape(1, 1, 1, -1), Scratch())
    return Distribution.of(tensor)


def squared_error(values: NDArray[np.floating], window: Window) -> float:
    """Mean squared error of the values themselves, not of their histogram."""
    least = -127 if window.symmetric else -128
    integers = np.clip(np.rint(values / window.scale) - window.shift, least, 127)
    return float(np.mean((values - (integers + window.shift) * window.scale) ** 2))


NORMAL = np.random.default_rng(0).normal(0, 1, 200_000)
RELU = np.maximum(NORMAL, 0)
SILU = NORMAL * 4 / (1 + np.exp(-NORMAL * 4))
OUTLIER = np.concatenate([NORMAL, [90.0]])
SHAPES = {"normal": NORMAL, "relu": RELU, "silu": SILU, "outlier": OUTLIER}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_windows_hold_zero_exactly(name: str, symmetric: bool) -> None:
    for method, window in windows_of(distribution_of(SHAPES[name]), symmetric=symmetric).items():
        assert window.low <= 0 <= window.high, method
        assert window.symmetric or not symmetric
        # Zero is an integer of its own: the padding of a convolution stays exact.
        assert float(window.shift).is_integer()
        assert -128 <= -window.shift <= 127


def test_minmax_loses_nothing() -> None:
    window = windows_of(distribution_of(OUTLIER), symmetric=True)["minmax"]
    assert window == Window(-90.0, 90.0)
    window = windows_of(distribution_of(SILU), symmetric=False)["minmax"]
    np.testing.assert_allclose(window, (SILU.min(), SILU.max()), rtol=1e-6)


def test_percentile_leaves_one_in_ten_thousand_outside() -> None:
    window = windows_of(distribution_of(NORMAL), symmetric=True)["percentile"]
    outside = float(np.mean(np.abs(NORMAL) > window.high))
    assert outside == pytest.approx(1e-4, rel=0.3)
    window = windows_of(distribution_of(SILU), symmetric=False)["percentile"]
    assert float(np.mean((window.low > SILU) | (window.high < SILU))) == pytest.approx(1e-4, rel=0.5)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_the_best_of_a_fine_grid_of_its_own(name: str, symmetric: bool) -> None:
    values = SHAPES[name]
    windows = windows_of(distribution_of(values), symmetric=symmetric)
    full = windows["minmax"]
    grid = [Window(full.low * s, full.high * s) for s in np.linspace(0.02, 1, 50)]
    best = min(squared_error(values, w) for w in grid)
    found = squared_error(values, windows["mse"])
    # An outlier of 90 among values of 4 is worth keeping for the squared error alone if clipping costs more.
    assert found <= 1.1 * best


def test_entropy_cuts_off_a_thin_tail_and_keeps_a_flat_one() -> None:
    rng = np.random.default_rng(4)
    thin = distribution_of(np.concatenate([rng.normal(0, 1, 100_000), rng.uniform(-40, 40, 20)]))
    flat = distribution_of(rng.uniform(-40, 40, 100_000))
    assert windows_of(thin, symmetric=True)["entropy"].high < 20
    assert windows_of(flat, symmetric=True)["entropy"].high > 38


@pytest.mark.parametrize("name", SHAPES)
def test_auto_is_the_method_of_least_error(name: str) -> None:
    distribution = distribution_of(SHAPES[name])
    windows = windows_of(distribution, symmetric=True)
    errors = {method: error_of(distribution, windows[method]) for method in METHODS}
    assert error_of(distribution, windows["auto"]) == min(errors.values())


def test_the_error_on_the_histogram_is_that_of_the_values() -> None:
    distribution = distribution_of(SILU)
    for window in windows_of(distribution, symmetric=False).values():
        assert error_of(distribution, window) == pytest.approx(squared_error(SILU, window), rel=0.05)


def test_an_offset_halves_the_step_behind_a_relu() -> None:
    distribution = distribution_of(RELU)
    symmetric = windows_of(distribution, symmetric=True)["minmax"]
    shifted = windows_of(distribution, symmetric=False)["minmax"]
    assert shifted.scale == pytest.approx(symmetric.scale * 127 / 255)
    assert shifted.shift == 128


def test_the_clipped_share() -> None:
    assert clipped(distribution_of(NORMAL), Window(-1.0, 1.0)) == pytest.approx(0.3173, abs=0.005)
    assert clipped(distribution_of(NORMAL), Window(-9.0, 9.0)) == 0.0


def test_a_tensor_of_zeros_has_a_window() -> None:
    distribution = distribution_of(np.zeros(10))
    for symmetric in (True, False):
        for window in windows_of(distribution, symmetric=symmetric).values():
            assert window.scale > 0
