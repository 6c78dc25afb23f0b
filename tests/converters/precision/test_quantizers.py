"""From ranges to quantizers: what the integers cover, and that zero is one of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Activation, Quantizer, ScaleTable
from edgesmith.calibration.sites import Site
from edgesmith.converters.precision.quantizers import (
    LEAST_FACTOR,
    SMOOTH_LIMIT,
    by_channel,
    quantizers_for,
    smoothed,
)

Floats = NDArray[np.float32]
METHODS = ("minmax", "percentile", "entropy", "mse", "auto")


def activation(low: list[float], high: list[float]) -> Activation:
    reach = max(map(abs, [*low, *high]))
    return Activation(
        low=min(low), high=max(high), channel_low=tuple(low), channel_high=tuple(high),
        symmetric=dict.fromkeys(METHODS, (-reach, reach)),
        asymmetric=dict.fromkeys(METHODS, (min(*low, 0.0), max(*high, 0.0))),
        clipped=dict.fromkeys(METHODS, 0.0),
    )  # fmt: skip


def integers(quantizer: Quantizer, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Before the clipping, of one value a channel."""
    assert quantizer.factor is not None
    return np.asarray(np.rint(values / (np.array(quantizer.factor) * quantizer.scale)) - quantizer.shift)


channels = st.lists(
    st.tuples(st.floats(0, 1e4, width=32), st.floats(0, 1e4, width=32)), min_size=1, max_size=8
).filter(lambda ranges: max(map(max, ranges)) > 1e-3)


@given(channels, st.booleans())
def test_by_channel_covers_every_channels_extremes_and_holds_zero(
    ranges: list[tuple[float, float]], centred: bool
) -> None:
    low, high = np.array([-a for a, _ in ranges]), np.array([b for _, b in ranges])
    quantizer = by_channel(activation(low.tolist(), high.tolist()), centred=centred)
    least, most = (-128, 127) if centred else (-127, 127)
    for values in (low, high):
        steps = integers(quantizer, values)
        # The window's ends may lie half a step outside the last integer.
        assert (steps >= least - 1).all()
        assert (steps <= most + 1).all()
    zero = integers(quantizer, np.zeros(len(ranges)))
    assert ((zero + quantizer.shift) * quantizer.scale == 0.0).all()
    assert (zero >= -128).all()
    assert (zero <= 127).all()
    assert centred or quantizer.shift == 0


@pytest.mark.parametrize(("centred", "used"), [(True, 255), (False, 127)])
def test_by_channel_gives_each_channel_after_a_relu_the_whole_window(centred: bool, used: int) -> None:
    high = np.array([0.01, 1.0, 6.0])
    quantizer = by_channel(activation([0.0, 0.0, 0.0], high.tolist()), centred=centred)
    span = integers(quantizer, high) - integers(quantizer, np.zeros(3))
    assert span.tolist() == [used] * 3


def test_by_channel_shares_the_window_between_both_signs() -> None:
    """SiLU's dip: one share below zero serves all channels, and wastes little of the upper side."""
    low, high = np.array([-0.28, -0.28, -0.28]), np.array([5.0, 10.0, 20.0])
    quantizer = by_channel(activation(low.tolist(), high.tolist()), centred=True)
    span = integers(quantizer, high) - integers(quantizer, low)
    assert (span > 225).all()
    plain = by_channel(activation(low.tolist(), high.tolist()), centred=False)
    assert (integers(plain, high) == 127).all()


def test_a_channel_that_hardly_moves_is_not_blown_up() -> None:
    quantizer = by_channel(activation([0.0, 0.0], [1e-9, 1.0]), centred=True)
    assert quantizer.factor is not None
    assert quantizer.factor[0] == pytest.approx(LEAST_FACTOR * quantizer.factor[1])
    assert by_channel(activation([0.0], [0.0]), centred=True).factor == (1.0,)


def test_smoothing_moves_range_into_the_weights(sites: dict[str, Site]) -> None:
    """Xiao et al. 2022, equation 4: a channel of much range and small weights is divided by more."""
    layers = [sites["left"], sites["right"]]
    high = [1.0, 1.0, 1.0, 1.0, 1.0, 1000.0]
    quantizer = smoothed(activation([0.0] * 6, high), layers, centred=False)
    assert quantizer.factor is not None
    factor = np.array(quantizer.factor)
    assert factor[5] == factor.max() > 2 * np.median(factor)
    assert quantizer.scale * 127 == pytest.approx((np.array(high) / factor).max())
    assert quantizer.scale * 127 < 1000 / 2
    assert factor.max() <= SMOOTH_LIMIT
    assert factor.min() >= 1 / SMOOTH_LIMIT
    centred = smoothed(activation([0.0] * 6, high), layers, centred=True)
    assert centred.shift == 128
    assert centred.factor == quantizer.factor


@pytest.mark.parametrize(
    ("repairs", "with_factor", "with_shift"),
    [
        ((), set(), False),
        (("bias",), set(), False),
        (("factor",), {"e"}, False),
        (("factor", "offset"), {"e"}, True),
        (("smooth",), {"images", "ra", "rf"}, False),
        (("factor", "smooth"), {"images", "ra", "e", "rf"}, False),
        (("fold",), set(), True),
        (("fold", "factor"), {"e"}, False),
    ],
)
def test_each_repair_reaches_the_tensors_that_it_is_for(
    graph: onnx.ModelProto,
    tensors: list[Floats],
    sites: dict[str, Site],
    table_of: Callable[..., ScaleTable],
    repairs: tuple[str, ...],
    with_factor: set[str],
    with_shift: bool,
) -> None:
    found = quantizers_for(table_of(graph, tensors), list(sites.values()), method="mse", repairs=repairs)
    assert set(found) == {"images", "ra", "e", "rf", "flat"}
    assert {name for name, one in found.items() if one.factor is not None} == with_factor
    # After a ReLU half of a symmetric window is never used: the offset is what uses it.
    everywhere = {"images", "ra", "e", "rf", "flat"}
    # What reads `ra` pads or concatenates, `e` is a Concat's, `flat` a pooling's: `rf` alone can be folded.
    reached = {"rf"} if repairs == ("fold",) else everywhere
    assert {name for name, one in found.items() if one.shift} == (reached if with_shift else set())


def test_the_method_is_asked_of_the_table(
    graph: onnx.ModelProto, tensors: list[Floats], sites: dict[str, Site], table_of: Callable[..., ScaleTable]
) -> None:
    table = table_of(graph, tensors)
    by_method = {
        method: quantizers_for(table, [sites["left"]], method=method, repairs=())["ra"].scale
        for method in METHODS
    }
    assert by_method["minmax"] == pytest.approx(table.activations["ra"].high / 127)
    assert by_method["mse"] < by_method["minmax"]
