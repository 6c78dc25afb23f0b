"""Pairs out, weights back, scales where TensorRT's calibrator would have put them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import sites_of
from edgesmith.converters.passes.insert_qdq import InsertQdq, quantized_weight
from edgesmith.converters.passes.strip_qdq import StripQdq

FLOAT = """<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y)
<float[4, 1, 3, 3] dw = {%s}, float[4, 4, 1, 1] pw = {%s}, float[4] b = {0.1, -0.2, 0.3, 0.0}>
{
  ["first"] c = Conv <group = 4, pads = [1, 1, 1, 1]> (x, dw, b)
  ["act"] a = LeakyRelu (c)
  ["second"] y = Conv (a, pw)
}"""


def floats(count: int, seed: int) -> str:
    return ", ".join(f"{v:.6f}" for v in np.random.default_rng(seed).normal(size=count))


def model_of(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def run(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def float_model() -> ir.Model:
    return model_of(FLOAT % (floats(36, 0), floats(16, 1)))


@pytest.mark.parametrize(
    "quantizers",
    [
        {"x": Quantizer(scale=0.02), "a": Quantizer(scale=0.05)},
        {
            "x": Quantizer(scale=0.02, shift=-9, factor=(1.0, 0.5, 0.25, 2.0)),
            "a": Quantizer(scale=0.05, shift=20),
        },
    ],
    ids=["plain", "factor and shift"],
)
def test_the_stripped_graph_computes_with_the_rounded_weights(quantizers: dict[str, Quantizer]) -> None:
    model = float_model()
    for site in sites_of(model):  # what the float graph would give with the integers' values
        weight, scale = quantized_weight(site, quantizers[site.activation].factor)
        rounded = np.clip(np.rint(weight / scale), -127, 127) * scale
        exact = (
            rounded
            if (f := quantizers[site.activation].factor) is None
            else rounded / np.reshape(f, (4, 1, 1, 1))
        )
        value = site.node.inputs[1]
        assert value is not None
        value.const_value = ir.tensor(exact.astype(np.float32), name=value.name)
    x = np.random.default_rng(3).normal(size=(1, 4, 6, 6)).astype(np.float32)
    expected = run(model, x)

    quantized = InsertQdq(quantizers, ["first", "second"])(float_model()).model
    result = StripQdq()(quantized)
    assert not [n for n in result.model.graph if "Linear" in n.op_type]
    assert result.changes == 4
    assert result.declined == ()
    np.testing.assert_allclose(run(result.model, x), expected, atol=2e-5)
    assert all(value.dtype != ir.DataType.INT8 for value in result.model.graph.initializers.values())


def test_a_plain_pair_leaves_its_scale_with_the_tensor() -> None:
    quantizers = {"x": Quantizer(scale=0.02), "a": Quantizer(scale=0.05)}
    result = StripQdq()(InsertQdq(quantizers, ["first", "second"])(float_model()).model)
    assert result.scales == pytest.approx({"x": 0.02, "a": 0.05})
    assert [n.op_type for n in result.model.graph] == ["Conv", "LeakyRelu", "Conv"]


def test_shift_and_factor_become_the_plain_symmetric_scale() -> None:
    quantizers = {
        "x": Quantizer(scale=0.02, shift=100, factor=(1.0, 0.5, 3.0, 2.0)),
        "a": Quantizer(scale=0.05),
    }
    result = StripQdq()(InsertQdq(quantizers, ["first", "second"])(float_model()).model)
    # x = (q + 100) * 0.02 * factor with q up to 127: the largest magnitude is 227 * 0.02 * 3.
    assert result.scales["x"] * 127 == pytest.approx(227 * 0.02 * 3, rel=1e-5)
    between = {name: scale for name, scale in result.scales.items() if name not in ("x", "a")}
    # Behind the Mul 227 steps, behind the Pad as well, behind the Add the integers themselves.
    assert sorted(between.values()) == pytest.approx([0.02, 227 / 127 * 0.02, 227 / 127 * 0.02])


def test_scales_travel_across_operators_that_only_move_values() -> None:
    model = model_of(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 4, 8, 8] x) => (float[1, 4, 4, 2] y, float[1, 4, 4, 4] z)
        <float s = {0.02}, int8 o = {0}, int64[1] zero = {0}, int64[1] two = {2},
         int64[1] last = {3}>
        {
          r = Relu (x)
          t = Transpose <perm = [0, 1, 3, 2]> (r)
          q = QuantizeLinear (t, s, o)
          d = DequantizeLinear (q, s, o)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
          left, right = Split <axis = 3, num_outputs = 2> (p)
          part = Slice (left, zero, two, last)
          both = Concat <axis = 3> (right, left)
          y = Neg (part)
          z = Neg (both)
        }"""
    )
    result = StripQdq()(model)
    assert result.scales == pytest.approx(
        dict.fromkeys(("r", "t", "p", "left", "right", "part", "both"), 0.02)
    )


def test_a_slice_says_nothing_of_the_rest_and_unlike_inputs_share_nothing() -> None:
    model = model_of(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 4] x) => (float[1, 4] y)
        <float s = {0.02}, float s2 = {0.03}, int8 o = {0}, int64[1] zero = {0}, int64[1] two = {2},
         int64[1] one = {1}>
        {
          r = Relu (x)
          part = Slice (r, zero, two, one)
          q = QuantizeLinear (part, s, o)
          d = DequantizeLinear (q, s, o)
          n = Neg (part)
          q2 = QuantizeLinear (n, s2, o)
          d2 = DequantizeLinear (q2, s2, o)
          y = Concat <axis = 1> (d, d2)
        }"""
    )
    assert StripQdq()(model).scales == pytest.approx({"part": 0.02, "n": 0.03})


def test_a_concat_without_scales_of_its_inputs_passes_its_own_back() -> None:
    model = model_of(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 4] x) => (float[1, 8] y)
        <float s = {0.02}, int8 o = {0}>
        {
          a = Relu (x)
          b = Neg (x)
          c = Concat <axis = 1> (a, b)
          q = QuantizeLinear (c, s, o)
          y = DequantizeLinear (q, s, o)
        }"""
    )
    result = StripQdq()(model)
    # The graph's output keeps its name.
    assert [v.name for v in result.model.graph.outputs] == ["y"]
    assert result.scales == pytest.approx({"a": 0.02, "b": 0.02, "y": 0.02})


def test_weights_of_every_axis_come_back() -> None:
    model = model_of(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 2] x) => (float[1, 3] y)
        <int8[2, 3] w = {1, 2, 3, -4, -5, -6}, float[3] s = {0.5, 2, 10}>
        { wd = DequantizeLinear <axis = -1> (w, s)  y = MatMul (x, wd) }"""
    )
    result = StripQdq()(model)
    (weight,) = (v.const_value.numpy() for v in result.model.graph.initializers.values() if v.const_value)
    np.testing.assert_array_equal(weight, np.array([[0.5, 4, 30], [-2, -10, -60]], np.float32))


def test_what_has_no_symmetric_scale_is_declined() -> None:
    model = model_of(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 2] x) => (float[1, 2] y)
        <float s = {0.5}, uint8 z = {128}>
        { q = QuantizeLinear (x, s, z)  ["back"] d = DequantizeLinear (q, s, z)  y = Relu (d) }"""
    )
    result = StripQdq()(model)
    assert result.changes == 0
    assert [(d.node, d.reason) for d in result.declined] == [("back", "its zero point is not 0")]
    assert [n.op_type for n in result.model.graph] == ["QuantizeLinear", "DequantizeLinear", "Relu"]


def test_a_second_run_changes_nothing() -> None:
    quantizers = {"x": Quantizer(scale=0.02, shift=5), "a": Quantizer(scale=0.05)}
    once = StripQdq()(InsertQdq(quantizers, ["first", "second"])(float_model()).model)
    before = ir.to_proto(once.model).SerializeToString()
    twice = StripQdq()(once.model)
    assert not twice.modified
    assert ir.to_proto(twice.model).SerializeToString() == before
