"""The layers that make the answers, and the products that INT8 does not help."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.precision.decide import macs_share, never_quantized
from edgesmith.converters.precision.output_layers import output_layers, vector_products


def sites_in(text: str, **weights: tuple[int, ...]) -> list[Site]:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return sites_of(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model)))


HEADS = """
g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] boxes, float[1, 2, 8, 8] scores)
{
  [stem] a = Conv (x, w)
  [tower] b = Conv (a, v)
  r = Relu (b)
  [box] c = Conv (r, u)
  boxes = Sigmoid (c)
  [score] d = Conv (a, u)
  scores = Sigmoid (d)
}
"""


def test_only_the_last_layer_of_each_branch_makes_outputs() -> None:
    sites = sites_in(HEADS, w=(4, 3, 1, 1), v=(4, 4, 1, 1), u=(2, 4, 1, 1))
    assert output_layers(sites) == {"box", "score"}


def test_a_layer_whose_value_goes_out_and_on_is_no_output_layer() -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] a, float[1, 3, 8, 8] b)
    { [first] a = Conv (x, w) [second] b = Conv (a, w) }"""
    assert output_layers(sites_in(text, w=(3, 3, 1, 1))) == {"second"}


def test_a_layer_that_only_says_where_others_look_makes_an_answer() -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y)
    { [stem] a = Conv (x, w) [regions] b = Conv (a, v) grid = Transpose <perm = [0, 2, 3, 1]> (b)
      c = GridSample (a, grid) [box] y = Conv (c, w) }"""
    sites = sites_in(text, w=(3, 3, 1, 1), v=(2, 3, 1, 1))
    assert output_layers(sites) == {"regions", "box"}


def test_products_of_one_row_stay_in_float_and_those_of_many_do_not() -> None:
    text = """g (float[1, 6] x, float[4, 6] y, float[1, 1, 6] z)
    => (float[1, 5] a, float[4, 5] b, float[1, 1, 5] c)
    { [row] a = Gemm (x, w) [rows] b = Gemm (y, w) [product] c = MatMul (z, w) }"""
    assert vector_products(sites_in(text, w=(6, 5))) == {"row", "product"}


def test_reasons_are_told_and_patterns_match_nodes_and_modules(sites: dict[str, Site]) -> None:
    reasons = never_quantized(list(sites.values()), ["dep*", "nothing"])
    assert reasons == {
        "last": "it makes the outputs", "depthwise": "precision.keep_float names it (dep*)",
    }  # fmt: skip


def test_a_layer_that_no_pair_can_stand_before_is_not_counted_as_int8() -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y)
    { [padded] a = Conv <auto_pad = "SAME_UPPER"> (x, w) [plain] b = Conv (a, w) [out] y = Conv (b, w) }"""
    sites = sites_in(text, w=(3, 3, 1, 1))
    reasons = never_quantized(sites, ())
    assert reasons == {"padded": "its padding is given by auto_pad", "out": "it makes the outputs"}
    assert macs_share(sites, reasons) == 1 / 3


def test_the_share_is_of_the_multiply_accumulates(sites: dict[str, Site]) -> None:
    macs = {name: site.macs for name, site in sites.items()}
    assert macs == {
        "stem": 6 * 144 * 27, "left": 6 * 144 * 54, "right": 6 * 144 * 6, "depthwise": 12 * 144 * 9,
        "point": 8 * 144 * 12, "last": 40,
    }  # fmt: skip
    left = macs_share(list(sites.values()), frozenset({"left"}))
    assert left == pytest.approx(1 - macs["left"] / sum(macs.values()))
    assert macs_share([], {}) == 0.0
