"""Weights share their ranges between layers, and the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.sites import sites_of
from edgesmith.converters.passes.equalize import Equalize
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.bundle import Bundle

Floats = NDArray[np.float32]
IMAGE = np.random.default_rng(0).normal(0, 1, (1, 3, 9, 9)).astype(np.float32)
SPREAD = np.geomspace(0.01, 10, 6).astype(np.float32)
# A dense layer, a depthwise one, a dense one, a matrix product: a chain of four.
CHAIN = """
g (float[1, 3, 9, 9] x) => (float[1, 5] y)
{
  [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  ra = Relu (a)
  [two] b = Conv <pads = [1, 1, 1, 1], group = 6> (ra, w2, b2)
  rb = LeakyRelu <alpha = 0.2> (b)
  [three] c = Conv <strides = [3, 3]> (rb, w3, b3)
  rc = Relu (c)
  [four] d = Conv <group = 2> (rc, w4)
  [five] e = Conv (d, w5, b5)
  y = ReduceMean <keepdims = 0> (e, plane)
}
"""
SHAPES = {
    "b1": (6,), "w2": (6, 1, 3, 3), "b2": (6,), "b3": (8,), "w4": (4, 4, 3, 3),
    "w5": (5, 4, 1, 1), "b5": (5,),
}  # fmt: skip


@pytest.fixture
def chain(parsed: Callable[..., ir.Model]) -> Callable[[], ir.Model]:
    """Channels of very unequal weights."""
    random = np.random.default_rng(2)
    w1 = random.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32) * SPREAD[:, None, None, None]
    w3 = random.normal(0, 0.3, (8, 6, 1, 1)).astype(np.float32) * SPREAD[None, :, None, None]
    text = CHAIN.replace("(float[1, 5] y)", "(float[1, 5] y) <int64[2] plane = {2, 3}>")
    return lambda: parsed(text, w1=w1, w3=w3, **SHAPES)


def ranges(model: ir.Model) -> dict[str, tuple[Floats, Floats]]:
    """Largest weight of each output and each input channel, by layer."""
    found = {}
    for site in sites_of(model):
        size = np.abs(site.weight).reshape(site.group, -1, *site.weight.shape[1:])
        found[site.name] = size.max(axis=(2, 3, 4)).ravel(), size.max(axis=(1, 3, 4)).ravel()
    return found


def test_the_graph_computes_the_same(
    chain: Callable[[], ir.Model], ran: Callable[[ir.Model, Floats], list[Floats]]
) -> None:
    expected = ran(chain(), IMAGE)[0]
    equalize = Equalize()
    result = equalize(chain())
    assert result.changes == 4
    assert set(equalize.factors) == {"ra", "rb", "rc", "d"}
    np.testing.assert_allclose(ran(result.model, IMAGE)[0], expected, atol=1e-5 * float(np.ptp(expected)))


def test_every_pair_ends_with_equal_ranges(chain: Callable[[], ir.Model]) -> None:
    """Equation 10: r1 = r2 for each channel, through the whole chain at once."""
    model = chain()
    before = ranges(model)
    assert (before["one"][0] / before["two"][1]).max() / (before["one"][0] / before["two"][1]).min() > 100
    Equalize()(model)
    after = ranges(model)
    for first, second in (("one", "two"), ("two", "three"), ("three", "four"), ("four", "five")):
        np.testing.assert_allclose(after[first][0], after[second][1], rtol=5e-3)


def test_factors_are_what_measured_values_are_divided_by(chain: Callable[[], ir.Model]) -> None:
    def shown(model: ir.Model) -> dict[str, Floats]:
        proto = ir.to_proto(model)
        names = [node.output[0] for node in proto.graph.node]
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n != "y")
        return graph_runner(proto, optimised=False)(IMAGE)

    equalize, model = Equalize(), chain()
    exact = shown(chain())
    other = shown(equalize(model).model)
    for name, factor in equalize.factors.items():
        divided = exact[name] / factor.reshape(1, -1, 1, 1)
        np.testing.assert_allclose(other[name], divided, atol=1e-5 * float(np.ptp(divided)))
    np.testing.assert_allclose(other["e"], exact["e"], atol=1e-5 * float(np.ptp(exact["e"])))


def test_a_second_time_changes_nothing(chain: Callable[[], ir.Model]) -> None:
    model = Equalize()(chain()).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    again = Equalize()
    assert not again(model).modified
    assert again.factors == {}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


RELU6 = """
g (float[1, 3, 9, 9] x) => (float[1, 5, 9, 9] y) <float zero = {0.0}, float six = {2.0}>
{
  [one] a = Conv (x, w1, b1)
  r = Clip (a, zero, six)
  [two] y = Conv (r, w2)
}
"""


def test_a_limit_becomes_one_for_each_channel_where_that_is_asked(
    parsed: Callable[..., ir.Model], ran: Callable[[ir.Model, Floats], list[Floats]]
) -> None:
    w1 = np.random.default_rng(3).normal(0, 2, (6, 3, 1, 1)).astype(np.float32) * SPREAD[:, None, None, None]
    made = [parsed(RELU6, w1=w1, b1=(6,), w2=(5, 6, 1, 1)) for _ in range(3)]
    declined = Equalize()(made[0])
    assert not declined.modified
    assert any("a limit for each channel" in place.reason for place in declined.declined)
    result = Equalize(limits=True)(made[1])
    assert result.changes == 1
    kinds = [node.op_type for node in made[1].graph]
    assert kinds == ["Conv", "Relu", "Min", "Conv"]
    expected = ran(made[2], IMAGE)[0]
    np.testing.assert_allclose(ran(made[1], IMAGE)[0], expected, atol=1e-5 * float(np.ptp(expected)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[one] a = Conv (x, w1) r = Relu (a) [two] b = Conv (r, w2) y = Add (b, r)",
            "r is also read by Add",
        ),
        ("[one] a = Conv (x, w1) s = Sigmoid (a) r = Mul (a, s) [two] y = Conv (r, w2)", "made by Mul"),
    ],
)
def test_declined_with_a_reason(parsed: Callable[..., ir.Model], text: str, reason: str) -> None:
    model = parsed(
        f"g (float[1, 3, 9, 9] x) => (float[1, 3, 9, 9] y) {{ {text} }}", w1=(3, 3, 1, 1), w2=(3, 3, 1, 1)
    )
    result = Equalize()(model)
    assert not result.modified
    assert {place.node: place.reason for place in result.declined}["two"].find(reason) >= 0


def test_readers_of_one_tensor_are_scaled_together(
    parsed: Callable[..., ir.Model], ran: Callable[[ir.Model, Floats], list[Floats]]
) -> None:
    text = """g (float[1, 3, 9, 9] x) => (float[1, 3, 9, 9] y)
    { [one] a = Conv (x, w1) r = Relu (a) [two] b = Conv (r, w2) [three] c = Conv (r, w3) y = Add (b, c) }"""
    shapes = {"w1": (6, 3, 1, 1), "w2": (3, 6, 1, 1), "w3": (3, 6, 1, 1)}
    expected = ran(parsed(text, **shapes), IMAGE)[0]
    model = parsed(text, **shapes)
    assert Equalize()(model).changes == 1
    np.testing.assert_allclose(ran(model, IMAGE)[0], expected, atol=1e-5 * float(np.ptp(expected)))
    found = ranges(model)
    np.testing.assert_allclose(found["one"][0], np.maximum(found["two"][1], found["three"][1]), rtol=5e-3)


@pytest.mark.assets
@pytest.mark.slow
def test_a_trained_network_computes_the_same(asset_bundle: Callable[..., object]) -> None:
    bundle = Bundle.open(asset_bundle("resnet20_cifar", precision__mode="fp32"))  # type: ignore[arg-type]
    exact = onnx.load_from_string(bundle.read(bundle.manifest.variants["float"].member))
    result = Equalize()(ir.serde.deserialize_model(exact))
    assert result.changes == 9  # the first layer of each block, which the second alone reads
    image = np.random.default_rng(0).normal(0, 1, (1, 3, 32, 32)).astype(np.float32)
    expected, got = (graph_runner(m)(image)["logits"] for m in (exact, ir.to_proto(result.model)))
    np.testing.assert_allclose(got, expected, atol=1e-4 * float(np.ptp(expected)))
