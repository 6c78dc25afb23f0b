"""One pair directly in front of each layer, whatever stands between: what the compiler makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import sites_of
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.passes.lint import require_clean
from edgesmith.converters.precision.output_layers import vector_products

Floats = NDArray[np.float32]
Parsed = Callable[..., ir.Model]
Q = Quantizer(scale=0.02)
WEIGHT = (16, 16, 3, 3)
HEAD = "g (float[1, 16, 16, 16] x) => (float[1, C, H, W] y)"
# What stands between the first layer, `a`, and the last, which reads `t`.
BETWEEN = {
    "concat": "b = Relu (a) c = Sigmoid (a) t = Concat <axis = 1> (b, c)",
    "concat of unequal ranges": "b = Relu (a) c = Mul (a, ten) t = Concat <axis = 1> (b, c)",
    "max pool": "b = Relu (a) t = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)",
    "resize": 'b = Relu (a) t = Resize <mode = "nearest"> (b, , two)',
    "split": "b = Relu (a) t, u = Split <axis = 1, num_outputs = 2> (b)",
    "silu": "s = Sigmoid (a) t = Mul (a, s)",
    "hard swish": "t = HardSwish (a)",
    "leaky": "t = LeakyRelu <alpha = 0.1> (a)",
}
CHANNELS = {"concat": 32, "concat of unequal ranges": 32, "split": 8}


def between(parsed: Parsed, name: str) -> ir.Model:
    text = HEAD.replace("C, H, W", "16, h, w") + " <float ten = {10.0}, float[4] two = {1.0, 1.0, 2.0, 2.0}>"
    text += f"{{ [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) {BETWEEN[name]}"
    text += " [two] z = Conv <pads = [1, 1, 1, 1]> (t, w2, b2) y = Relu (z) }"
    model = parsed(text, w1=WEIGHT, b1=(16,), w2=(16, CHANNELS.get(name, 16), 3, 3), b2=(16,))
    result = InsertQdq({"x": Q, "t": Q}, ["one", "two"])(model)
    assert (result.changes, result.declined) == (2, ())
    require_clean(model)
    return model


@pytest.mark.parametrize("name", BETWEEN)
def test_the_pair_stands_behind_whatever_is_between(parsed: Parsed, name: str) -> None:
    """Nothing of an activation function is taken apart, and nothing in between is quantized by itself."""
    model = between(parsed, name)
    nodes = {node.name: node for node in model.graph}
    quantizes = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert [node.inputs[0].name for node in quantizes if node.inputs[0] is not None] == ["x", "t"]
    first = nodes["one"].outputs[0]
    assert {use.node.op_type for use in first.uses()}.isdisjoint({"QuantizeLinear"})
    entry = nodes["two"].inputs[0]
    assert entry is not None
    producer = entry.producer()
    assert producer is not None
    assert producer.op_type == "DequantizeLinear"


@pytest.mark.slow
@pytest.mark.parametrize("name", BETWEEN)
def test_the_compiler_keeps_both_layers_in_int8(
    parsed: Parsed, placed: Callable[..., dict[str, str]], name: str
) -> None:
    assert placed(between(parsed, name), ["one", "two"]) == {"one": "Int8", "two": "Int8"}


BLOCK = """
g (float[1, 16, 16, 16] x) => (float[1, 16, 16, 16] y)
{
  [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)
  rs = Relu (s)
  [c1] a = Conv <pads = [1, 1, 1, 1]> (rs, w1)
  ra = Relu (a)
  [c2] b = Conv <pads = [1, 1, 1, 1]> (ra, w2)
  [sum] d = Add (b, rs)
  rd = Relu (d)
  [c3] e = Conv <pads = [1, 1, 1, 1]> (rd, w3)
  y = Relu (e)
}
"""
LAYERS = ("stem", "c1", "c2", "c3")


def block(parsed: Parsed, text: str = BLOCK, quantizer: Quantizer = Q, *, residuals: bool = True) -> ir.Model:
    model = parsed(text, **{f"w{number}": WEIGHT for number in range(4)})
    quantizers = {"x": Q, "rs": quantizer, "ra": Q, "rd": quantizer}
    result = InsertQdq(quantizers, LAYERS, residuals=residuals)(model)
    assert (result.changes, result.declined) == (4, ())
    require_clean(model)
    return model


def read_by_sum(model: ir.Model) -> list[str]:
    (node,) = [node for node in model.graph if node.name == "sum"]
    producers = [value.producer() for value in node.inputs if value is not None]
    return [maker.name or "" for maker in producers if maker is not None]


def test_the_identity_branch_shares_the_pair_of_the_blocks_first_layer(parsed: Parsed) -> None:
    model = block(parsed)
    assert read_by_sum(model) == ["c2", "c1/in/DequantizeLinear"]
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 4
    without = block(parsed, residuals=False)
    assert read_by_sum(without)[0] == "c2"
    assert "Dequantize" not in read_by_sum(without)[1]


@pytest.mark.parametrize(
    "quantizer", [Quantizer(scale=0.02, shift=128), Quantizer(scale=0.02, factor=(0.5,) * 16)]
)
def test_with_arithmetic_in_front_the_branch_has_a_pair_of_its_own(
    parsed: Parsed,
    ran: Callable[[ir.Model, Floats], list[Floats]],
    bare: Callable[[ir.Model], ir.Model],
    quantizer: Quantizer,
) -> None:
    model = block(parsed, quantizer=quantizer)
    assert read_by_sum(model)[1].startswith("sum/identity/back/")
    image = np.random.default_rng(0).normal(0, 1, (1, 16, 16, 16)).astype(np.float32)
    expected = ran(bare(block(parsed, quantizer=quantizer, residuals=False)), image)[0]
    np.testing.assert_allclose(ran(bare(model), image)[0], expected, atol=1e-5 * float(np.ptp(expected)))
    # Each of its values is off by half a step of the integers at most: it is rounded, and nothing else.
    exactly = ran(block(parsed, quantizer=quantizer, residuals=False), image)[0]
    assert float(np.abs(ran(model, image)[0] - exactly).max()) > 0


def test_a_branch_of_two_layers_or_without_a_range_stays_as_it_is(parsed: Parsed) -> None:
    text = BLOCK.replace(
        "[sum] d = Add (b, rs)", "i = Conv <pads = [1, 1, 1, 1]> (rs, w3) [sum] d = Add (b, i)"
    )
    model = parsed(text, **{f"w{number}": WEIGHT for number in range(4)})
    result = InsertQdq({"x": Q, "rs": Q, "ra": Q, "rd": Q}, LAYERS, residuals=True)(model)
    assert [(place.node, place.reason) for place in result.declined] == [
        ("sum", "i has no range: the sum reads floats")
    ]


@pytest.mark.slow
def test_the_compiler_keeps_a_residual_block_in_int8(
    parsed: Parsed, placed: Callable[..., dict[str, str]]
) -> None:
    assert placed(block(parsed), LAYERS) == dict.fromkeys(LAYERS, "Int8")


DEPTHWISE = """
g (float[1, 16, 16, 16] x) => (float[1, 16, 16, 16] y)
{ [one] a = Conv (x, w1) t = Relu (a) [two] y = Conv <pads = [1, 1, 1, 1], group = 16> (t, w2) }
"""


@pytest.mark.slow
def test_a_depthwise_layer_runs_in_int8(parsed: Parsed, placed: Callable[..., dict[str, str]]) -> None:
    model = parsed(DEPTHWISE, w1=(16, 16, 1, 1), w2=(16, 1, 3, 3))
    InsertQdq({"x": Q, "t": Q}, ["one", "two"])(model)
    assert placed(model, ["one", "two"]) == {"one": "Int8", "two": "Int8"}


def test_transposed_convolutions_are_no_sites_and_vector_products_are_named(parsed: Parsed) -> None:
    text = """g (float[1, 16, 8, 8] x) => (float[1, 5] y) <int64[2] plane = {2, 3}>
    {
      [up] a = ConvTranspose <strides = [2, 2]> (x, w1)
      [conv] c = Conv (a, w2)
      m = ReduceMean <keepdims = 0> (c, plane)
      [last] y = Gemm (m, w3)
    }"""
    model = parsed(text, w1=(16, 16, 2, 2), w2=(16, 16, 1, 1), w3=(16, 5))
    sites: Sequence[object] = sites_of(model)
    assert [site.name for site in sites_of(model)] == ["conv", "last"]
    assert len(sites) == 2
    assert vector_products(sites_of(model)) == {"last"}
