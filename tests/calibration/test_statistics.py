from __future__ import annotations

import numpy as np
import pytest

from edgesmith.calibration.statistics import BINS, Histogram, Scratch, TensorStatistics, by_channel
from edgesmith.sdk.errors import CalibrationError


def counted(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], limit: float
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.histogram(values.astype(np.float64), BINS, (-limit, limit))[0]


def test_a_histogram_counts_every_value() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values, float(np.abs(values).max()), Scratch())
    assert histogram.limit == 8.0  # the power of two above 4.3
    assert histogram.counts.sum() == values.size
    # Values on a border may fall to either side in float32.
    assert np.abs(histogram.counts - counted(values, 8.0)).sum() < 20


def test_a_histogram_that_widens_equals_one_that_was_wide() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(0, size, 10_000).astype(np.float32) for size in (0.01, 1, 100)]
    grown, wide = Histogram(), Histogram(limit=512.0)
    for part in parts:
        grown.add(part, float(np.abs(part).max()), Scratch())
        wide.add(part, float(np.abs(part).max()), Scratch())
    assert grown.limit == 512.0
    assert grown.counts.sum() == 30_000
    # Merging pairs of bins is exact: the same counts as if the range had been known before.
    # (Next to zero a wide bin's border is blurred by float32.)
    assert np.abs(grown.counts - wide.counts).sum() < 100


def test_zeros_alone_are_no_trouble() -> None:
    tensor = TensorStatistics("x")
    tensor.add(np.zeros((1, 2, 3, 3), np.float32), Scratch())
    tensor.add(np.full((1, 2, 3, 3), 5, np.float32), Scratch())
    assert tensor.histogram.counts.sum() == 36
    assert tensor.histogram.limit == 8.0
    assert tensor.channel_largest.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 3, 4, 5), (2, 3, 17, 19), (1, 7, 3), (1, 3)])
def test_channel_extremes(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    images = [rng.normal(0, 1, shape).astype(np.float32) for _ in range(4)]
    tensor = TensorStatistics("x")
    for image in images:
        tensor.add(image, Scratch())
    stacked = np.concatenate(images)
    axes = (0, 2, 3) if len(shape) == 4 else tuple(range(len(shape) - 1))
    np.testing.assert_array_equal(tensor.channel_least, stacked.min(axes))
    np.testing.assert_array_equal(tensor.channel_largest, stacked.max(axes))
    assert tensor.images == 4


def test_sizes_may_vary_from_image_to_image() -> None:
    rng = np.random.default_rng(3)
    # The third is large enough to be kept by channel at once.
    images = [rng.normal(0, 1, (1, 3, 4 + n, 9)).astype(np.float32) for n in (0, 5, 30, 2, 2)]
    tensor = TensorStatistics("x")
    for image in images:
        tensor.add(image, Scratch())
    np.testing.assert_array_equal(
        tensor.channel_least, np.min([by_channel(i, np.minimum).ravel() for i in images], 0)
    )


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_what_is_no_number_is_refused(value: float, kind: str) -> None:
    image = np.zeros((1, 2, 3, 3), np.float32)
    image[0, 1, 2, 2] = value
    with pytest.raises(CalibrationError, match=f"tensor conv7 holds .*{kind}"):
        TensorStatistics("conv7").add(image, Scratch())
