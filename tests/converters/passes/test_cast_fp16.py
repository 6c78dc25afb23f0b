"""FP16 where it holds the numbers, float32 where it does not, and a graph that ONNX accepts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgesmith.calibration.scale_table import Activation, Quantizer, ScaleTable
from edgesmith.converters.passes.base import PassResult
from edgesmith.converters.passes.cast_fp16 import CastFp16, largest_of
from edgesmith.converters.passes.fp16_range import half_weight
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.sdk.errors import ExportError

HEAD = '<ir_version: 9, opset_import: ["" : 20]>\n'
NETWORK = """g (float[N, 4, 8, 8] x) => (float[N, 6, 64] boxes)
<float[4, 1, 3, 3] dw = {%s}, float[6, 4, 1, 1] pw = {%s}, float[4] b = {0.1, -0.2, 0.3, 0.0},
 int64[3] flat = {0, 6, -1}, float half = {0.5}>
{
  ["first"] c = Conv <group = 4, pads = [1, 1, 1, 1]> (x, dw, b)
  ["sig"] g = Sigmoid (c)
  ["silu"] a = Mul (c, g)
  ["second"] p = Conv (a, pw)
  ["flatten"] f = Reshape (p, flat)
  ["box"] m = Mul (f, half)
  ["size"] boxes = Exp (m)
}"""


def floats(count: int, seed: int) -> str:
    return ", ".join(f"{v:.6f}" for v in np.random.default_rng(seed).normal(size=count))


def model_of(text: str, *counts: int) -> ir.Model:
    """The graph, with as many seeded numbers as are asked for in place of each ``%s``."""
    for seed, count in enumerate(counts):
        text = text.replace("%s", floats(count, seed), 1)
    proto = onnx.parser.parse_model(HEAD + text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def network() -> ir.Model:
    return model_of(NETWORK, 36, 24)


def picture() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(2, 4, 8, 8)).astype(np.float32)


def run(model: ir.Model, x: NDArray[np.floating], name: str = "x") -> list[NDArray[np.floating]]:
    """What the graph computes, node by node as it is written."""
    options = onnxruntime.SessionOptions()
    # Above this level onnxruntime quantizes biases, and reads FP16 scales wrongly while doing so.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(v) for v in session.run(None, {name: x})]


def types(model: ir.Model) -> dict[str, str]:
    """Float type of each named value."""
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return {str(v.name): v.dtype.name for v in values if v.dtype is not None}


def read(node: ir.Node, index: int) -> ir.Value:
    """An input that is there."""
    value = node.inputs[index]
    assert value is not None
    return value


def number(value: ir.Value) -> float:
    """A scalar constant."""
    assert value.const_value is not None
    return float(value.const_value.numpy())


def kept(result: PassResult) -> dict[str, str]:
    return {place.node: place.reason for place in result.declined}


def test_numerics_types_and_interface() -> None:
    expected = run(network(), picture())
    result = CastFp16()(network())
    (got,) = run(result.model, picture())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[0], rtol=2e-2)
    assert not np.array_equal(got, expected[0])
    found = types(result.model)
    assert found["x"] == "FLOAT"
    assert found["c"] == found["a"] == found["p"] == "FLOAT16"
    assert found["boxes"] == "FLOAT"
    assert [n.op_type for n in result.model.graph] == [
        "Cast", "Conv", "Sigmoid", "Mul", "Conv", "Reshape", "Cast", "Mul", "Exp",
    ]  # fmt: skip
    weights = {name: v.dtype for name, v in result.model.graph.initializers.items()}
    assert weights["dw"] == weights["pw"] == weights["b"] == ir.DataType.FLOAT16
    assert weights["half"] == ir.DataType.FLOAT


def test_what_follows_the_last_layer_stays_in_float() -> None:
    result = CastFp16()(network())
    assert set(kept(result)) == {"box", "size"}
    assert "follows the last layer" in kept(result)["box"]
    # Moving numbers about loses nothing: the Cast comes behind it.
    assert types(result.model)["f"] == "FLOAT16"
    everything = CastFp16(decode_in_float=False)(network())
    assert set(kept(everything)) == {"size"}
    assert "Exp" in kept(everything)["size"]
    assert types(everything.model)["m"] == "FLOAT16"


def test_a_projection_over_distance_bins_is_no_layer() -> None:
    model = model_of(
        """g (float[1, 4, 8] x) => (float[1, 8, 1] y)
        <float[4, 4] w = {%s}, float[4, 1] bins = {0, 1, 2, 3}>
        {
          ["t"] t = Transpose <perm = [0, 2, 1]> (x)
          ["layer"] a = MatMul (t, w)
          ["softmax"] s = Softmax (a)
          ["project"] y = MatMul (s, bins)
        }""",
        16,
    )
    assert set(kept(CastFp16()(model))) == {"softmax", "project"}


def test_float16_interface_on_request() -> None:
    result = CastFp16(float_io=False)(network())
    found = types(result.model)
    assert found["x"] == "FLOAT16"
    assert found["boxes"] == "FLOAT"  # made by a node that stays in float
    (got,) = run(result.model, picture().astype(np.float16))
    np.testing.assert_allclose(got, run(network(), picture())[0], rtol=2e-2)
    wide = CastFp16(float_io=False, decode_in_float=False)(
        model_of("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    )
    assert types(wide.model) == {"x": "FLOAT16", "y": "FLOAT16"}


@pytest.mark.parametrize("reach", [20000.0, 1e-4])
def test_a_measured_range_that_fp16_cannot_hold(reach: float) -> None:
    model = model_of(
        """g (float[1, 4, 8, 8] x) => (float[1, 4, 4, 4] y)
        <float[4, 4, 1, 1] w = {%s}, float[4, 4, 1, 1] w2 = {%s}, float[4, 4, 1, 1] w3 = {%s}>
        {
          ["first"] a = Conv (x, w)
          ["big"] c = Conv (a, w2)
          ["relu"] r = Relu (c)
          ["pool"] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
          ["third"] y = Conv (p, w3)
        }""",
        16,
        16,
        16,
    )
    result = CastFp16({"r": reach, "a": 3.0})(model)
    # Its maker up to the layer, and its readers as far as the magnitude goes.
    assert set(kept(result)) == {"big", "relu", "pool", "third"}
    assert f"{reach:g}" in kept(result)["relu"]
    assert types(result.model)["a"] == "FLOAT16"
    assert types(result.model)["c"] == types(result.model)["r"] == "FLOAT"


def test_overflow_is_real_and_the_kept_node_prevents_it() -> None:
    text = """g (float[1, 2] x) => (float[1, 2] y)
    <float[2, 2] w = {300, 0, 0, 300}, float[2, 2] w2 = {0.001, 0, 0, 0.001}>
    { ["up"] a = MatMul (x, w) ["down"] y = MatMul (a, w2) }"""
    x = np.array([[1000, -2]], np.float32)
    # onnxruntime's CPU keeps float32 between two products; the reference evaluator rounds each result.
    with np.errstate(over="ignore", invalid="ignore"):
        (broken,) = ReferenceEvaluator(ir.to_proto(CastFp16()(model_of(text)).model)).run(None, {"x": x})
    assert not np.isfinite(broken).all()
    result = CastFp16({"a": 3e5})(model_of(text))
    (got,) = ReferenceEvaluator(ir.to_proto(result.model)).run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(got), np.array([[300, -0.6]]), rtol=1e-3)
    assert set(kept(result)) == {"up", "down"}


def test_constants_out_of_range() -> None:
    model = model_of(
        """g (float[1, 4] x) => (float[1, 4] y)
        <float huge = {1e6}, float tiny = {1e-12}, float low = {0}, float most = {3.4e38}, float fine = {2.0}>
        {
          ["huge"] a = Mul (x, huge)
          ["tiny"] b = Max (a, tiny)
          ["clip"] c = Clip (b, low, most)
          ["fine"] y = Mul (c, fine)
        }"""
    )
    result = CastFp16()(model)
    assert set(kept(result)) == {"huge", "tiny"}
    assert "1e+06" in kept(result)["huge"]
    assert "loses precision" in kept(result)["tiny"]
    got = run(result.model, np.array([[0.001, 0.01, -1, 0.02]], np.float32))[0]
    np.testing.assert_allclose(got, [[2000, 20000, 0, 40000]], rtol=1e-3)


def test_asked_for_nodes_stay() -> None:
    result = CastFp16(keep=["first"])(network())
    assert kept(result)["first"] == "it was asked to stay in float"
    assert types(result.model)["c"] == "FLOAT"
    assert types(result.model)["p"] == "FLOAT16"


QUANTIZERS = {
    "x": Quantizer(scale=0.02),
    "a": Quantizer(scale=0.03, shift=40),
}


def quantized() -> ir.Model:
    return InsertQdq(QUANTIZERS, ["first", "second"])(network()).model


def test_pairs_take_the_type_of_their_tensor_and_of_their_layer() -> None:
    expected = run(quantized(), picture())[0]
    result = CastFp16()(quantized())
    got = run(result.model, picture())[0]
    # FP16 moves a few values to the next integer step.
    assert np.mean(np.abs(got - expected) / expected) < 0.01
    nodes = {node.name: node for node in result.model.graph}
    for node in nodes.values():
        if node.op_type == "QuantizeLinear":
            assert read(node, 1).dtype == read(node, 0).dtype
        if node.op_type == "DequantizeLinear":
            assert read(node, 1).dtype == node.outputs[0].dtype == ir.DataType.FLOAT16
    # The first Q reads the float32 input itself: no Cast in front of it, and the scale that its DQ rounded.
    first, back = nodes["first/in/QuantizeLinear"], nodes["first/in/DequantizeLinear"]
    assert read(first, 0).name == "x"
    assert read(first, 1).dtype == ir.DataType.FLOAT
    assert number(read(first, 1)) == number(read(back, 1)) != 0.02


def test_a_kept_layer_beside_an_fp16_one_gets_a_pair_half_of_its_own() -> None:
    model = model_of(
        """g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[4, 4, 1, 1] w = {%s}, float[4, 4, 1, 1] w2 = {%s}, float[4, 4, 1, 1] w3 = {%s}>
        { ["one"] a = Conv (x, w)  ["two"] b = Conv (x, w2)  s = Add (a, b)  ["three"] y = Conv (s, w3) }""",
        16,
        16,
        16,
    )
    q = InsertQdq({"x": Quantizer(scale=0.02), "s": Quantizer(scale=0.1)}, ["one", "two", "three"])(
        model
    ).model
    result = CastFp16(keep=["two"])(q)
    found = types(result.model)
    makers = {}
    for node in result.model.graph:
        if node.op_type == "Conv":
            pair = read(node, 0).producer()
            assert pair is not None
            makers[node.name] = (
                pair.op_type,
                found[str(read(node, 0).name)],
                found[str(node.outputs[0].name)],
            )
    assert makers == {
        "one": ("DequantizeLinear", "FLOAT16", "FLOAT16"),
        "two": ("DequantizeLinear", "FLOAT", "FLOAT"),
        "three": ("DequantizeLinear", "FLOAT16", "FLOAT16"),
    }
    run(result.model, picture()[:1])


def test_tiny_weight_channels_are_rounded_anew_not_lost() -> None:
    integers = np.array([[127, -60], [127, 3], [100, -127], [0, 0]], np.int8)
    scale = np.array([1e-2, 3e-7, 1e-8, 1e-12], np.float32)
    new, half = half_weight(integers, scale, 0)
    assert (half > 0).all()
    wanted = integers * scale[:, None].astype(np.float64)
    got = new * half[:, None].astype(np.float64)
    # Rounding alone: at most half a step of the new scale, which is at most one FP16 number larger.
    assert (np.abs(got - wanted)[1:] <= 0.5001 * half[1:, None].astype(np.float64)).all()
    assert (half[1:].astype(np.float64) <= scale[1:] + np.finfo(np.float16).smallest_subnormal).all()
    np.testing.assert_array_equal(new[0], integers[0])
    assert abs(got[1, 0] / wanted[1, 0] - 1) < 0.005  # without it: 0.7 % from FP16's gain alone


def test_a_dead_channel_does_not_break_the_graph() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    weights[2] = 0
    text = ", ".join(f"{v:.6f}" for v in weights.ravel())
    model = model_of(
        f"""g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 4, 1, 1] w = {{{text}}}>
        {{ ["one"] y = Conv (x, w) }}"""
    )
    result = CastFp16()(InsertQdq({"x": Quantizer(scale=0.02)}, ["one"])(model).model)
    got = run(result.model, picture()[:1])[0]
    assert np.isfinite(got).all()
    assert (got[:, 2] == 0).all()
    assert (got[:, 1] != 0).any()


def test_an_activation_scale_that_fp16_cannot_hold_keeps_the_layer() -> None:
    model = model_of(
        """g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 4, 1, 1] w = {%s}>
        { ["one"] y = Conv (x, w) }""",
        16,
    )
    result = CastFp16()(InsertQdq({"x": Quantizer(scale=1e-6)}, ["one"])(model).model)
    assert "scale" in kept(result)["one"]
    assert types(result.model)["y"] == "FLOAT"


@pytest.mark.parametrize(
    ("make", "largest"),
    [(network, {}), (network, {"c": 30000.0}), (quantized, {}), (quantized, {"p": 30000.0})],
)
def test_a_second_run_changes_nothing(make: Callable[[], ir.Model], largest: dict[str, float]) -> None:
    once = CastFp16(largest)(make())
    assert once.modified
    before = ir.to_proto(once.model).SerializeToString()
    twice = CastFp16(largest)(once.model)
    assert twice.changes == 0
    assert kept(twice) == kept(once)
    assert ir.to_proto(twice.model).SerializeToString() == before


def test_operators_that_take_float32_only_and_bodies_of_branches() -> None:
    model = model_of(
        """g (float[1, 2, 4, 4] x, bool which) => (float[1, 2, 8, 8] y, float[1, 2, 8, 8] z)
        <float[4] grow = {1, 1, 2, 2}, float[2, 2, 1, 1] w = {1, 2, 3, 4}>
        {
          ["conv"] c = Conv (x, w)
          ["up"] u = Resize <mode = "nearest"> (c, , grow)
          ["conv2"] y = Conv (u, w)
          ["if"] z = If (which) <then_branch = t () => (float[1, 2, 8, 8] a) { a = Neg (u) },
                                 else_branch = e () => (float[1, 2, 8, 8] b) { b = Relu (u) }>
        }"""
    )
    result = CastFp16()(model)
    assert result.model.graph.initializers["grow"].dtype == ir.DataType.FLOAT  # ONNX has float32 scales there
    assert types(result.model)["u"] == "FLOAT16"
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": picture()[:1, :2, :4, :4], "which": np.array(True)}
    y, z = session.run(None, feed)
    assert y.dtype == z.dtype == np.float32


def test_opset_18_is_refused() -> None:
    model = ir.from_proto(onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) { y = Relu (x) }'
    ))  # fmt: skip
    with pytest.raises(ExportError, match="needs opset 19"):
        CastFp16()(model)


def test_ranges_come_from_the_table() -> None:
    activation = Activation(
        low=-30000.0,
        high=2.0,
        channel_low=(-30000.0,),
        channel_high=(2.0,),
        symmetric={},
        asymmetric={},
        clipped={},
    )
    table = ScaleTable(model_sha256="", data_sha256="", images=1, activations={"a": activation})
    assert largest_of(table) == {"a": 30000.0}
    assert "silu" in kept(CastFp16(largest_of(table))(network()))
