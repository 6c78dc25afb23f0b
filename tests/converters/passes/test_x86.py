"""The CPU's graph: the same integers moved by 128, nothing in front of a Q, every layer in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import tensors
from edgesmith.calibration.scale_table import Quantizer
from edgesmith.converters import Recipe
from edgesmith.converters.graph import canonical_graph, proven
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.passes.x86 import X86, TensorRange
from edgesmith.converters.pictures import pictures_of
from edgesmith.converters.precision.decide import never_quantized
from edgesmith.converters.precision.ranges import channel_ranges
from edgesmith.converters.precision.stage import split_of
from edgesmith.converters.precision.trial import Way, Workbench
from edgesmith.converters.sources import load_source

Floats = NDArray[np.float32]
# A convolution behind ReLU, a depthwise one behind ReLU6, a residual sum, and a last layer without limits.
GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 4, 9, 9] x) => (float[1, 4, 9, 9] y)
<float zero = {0.0}, float six = {6.0}>
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  d = Conv <pads = [1, 1, 1, 1], group = 4> (r, w2, b2)
  c = Clip (d, zero, six)
  e = Conv (c, w3, b3)
  s = Add (e, r)
  t = Relu (s)
  f = Conv (t, w4, b4)
  y = Tanh (f)
}
"""
LAYERS = ("node_a", "node_d", "node_e", "node_f")
READ = ("x", "r", "c", "t")


@pytest.fixture(scope="module")
def exact() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    proto = onnx.parser.parse_model(GRAPH)
    for number, shape in enumerate(((4, 4, 3, 3), (4, 1, 3, 3), (4, 4, 1, 1), (4, 4, 1, 1)), 1):
        weight = rng.normal(0, 1.5 / np.prod(shape[1:]) ** 0.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{number}"))
        bias = rng.normal(0.2, 0.3, 4).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"b{number}"))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return onnx.shape_inference.infer_shapes(proto)


@pytest.fixture(scope="module")
def images() -> Floats:
    return np.random.default_rng(4).normal(0, 1, (8, 1, 4, 9, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def ranges(exact: onnx.ModelProto, images: Floats) -> dict[str, TensorRange]:
    names = ["x", *(node.output[0] for node in exact.graph.node)]
    values = [shown(exact, names, image) for image in images]
    plane = (0, 2, 3)
    return {
        name: TensorRange(
            np.min([value[name].min(plane) for value in values], 0).astype(np.float64),
            np.max([value[name].max(plane) for value in values], 0).astype(np.float64),
        )
        for name in names
    }


def quantized(exact: onnx.ModelProto, ranges: dict[str, TensorRange]) -> ir.Model:
    """Every layer in int8; each tensor with its offset, the depthwise layer's with a factor too."""
    quantizers = {}
    for name in READ:
        low, high = float(ranges[name].low.min()), float(ranges[name].high.max())
        scale = (high - min(low, 0.0)) / 255
        shift = round(min(low, 0.0) / scale) + 128
        quantizers[name] = Quantizer(scale=scale, shift=shift)
    widths = tuple(np.maximum(ranges["r"].high, 0.05).tolist())
    quantizers["r"] = Quantizer(scale=1 / 255, shift=128, factor=widths)
    model = ir.serde.deserialize_model(exact)
    return InsertQdq(quantizers, LAYERS)(model).model


def shown(proto: onnx.ModelProto, names: list[str], image: Floats) -> dict[str, NDArray[Any]]:
    """Inner tensors by name, every operator as it stands."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    own = {output.name for output in proto.graph.output}
    wanted = [name for name in names if name != "x"]
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in own)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    found = dict(zip(wanted, session.run(wanted, {"x": image}), strict=True))
    return {**found, "x": image} if "x" in names else found


def integers_of(model: ir.Model) -> dict[str, str]:
    """Name of the integer tensor that each layer reads, by layer."""
    found = {}
    for node in model.graph:
        if node.name in LAYERS:
            dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
            assert dequantize is not None
            assert dequantize.inputs[0] is not None
            found[node.name] = dequantize.inputs[0].name or ""
    return found


ONE = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 4, 9, 9] x) => (float[1, 4, 9, 9] a) { a = Conv <pads = [1, 1, 1, 1], group = 4> (x, w) }
"""


@pytest.mark.parametrize("factor", [None, (0.5, 2.0, 0.13, 7.0)])
@pytest.mark.parametrize("shift", [-127, -40, 0, 3, 77, 128])
def test_every_quantized_tensor_equals_the_int8_one_plus_128(
    images: Floats, shift: int, factor: tuple[float, ...] | None
) -> None:
    proto = onnx.parser.parse_model(ONE)
    weight = np.random.default_rng(5).normal(0, 1, (4, 1, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    proto.graph.node[0].name = "node_a"
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    InsertQdq({"x": Quantizer(scale=0.0173, shift=shift, factor=factor)}, ["node_a"])(model)
    int8, before = ir.to_proto(model), integers_of(model)["node_a"]
    x86 = X86({"a": TensorRange(np.full(4, -9.0), np.full(4, 9.0))})(model).model
    after = integers_of(x86)["node_a"]
    clipped = 0
    for image in images:
        signed = shown(int8, [before], image)[before].astype(int)
        signed = signed[:, :, 1:-1, 1:-1] if shift else signed
        unsigned = shown(ir.to_proto(x86), [after], image)[after]
        assert unsigned.dtype == np.uint8
        np.testing.assert_array_equal(unsigned.astype(int), signed + 128)
        clipped += int(((signed == -128) | (signed == 127)).sum())
    assert clipped > 0  # both ends saturate alike
    same = [shown(proto, ["a"], images[0])["a"] for proto in (int8, ir.to_proto(x86))]
    np.testing.assert_allclose(same[0], same[1], atol=9 * 2 / 255)


def test_answers_stay_near_those_of_the_int8_graph(
    exact: onnx.ModelProto, ranges: dict[str, TensorRange], images: Floats
) -> None:
    before = quantized(exact, ranges)
    int8 = ir.to_proto(before)
    x86 = ir.to_proto(X86(ranges)(before).model)
    onnx.checker.check_model(x86, full_check=True)
    truth = np.stack([shown(exact, ["y"], image)["y"] for image in images])
    loss = [
        float(np.abs(np.stack([shown(model, ["y"], image)["y"] for image in images]) - truth).mean())
        for model in (int8, x86)
    ]
    assert loss[0] < 0.02
    assert loss[1] < 1.5 * loss[0] + 0.002


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """What onnxruntime makes of a graph, counted by kind."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_every_layer_runs_in_integers(
    exact: onnx.ModelProto, ranges: dict[str, TensorRange], tmp_path: Path
) -> None:
    model = ir.to_proto(X86(ranges)(quantized(exact, ranges)).model)
    kinds = kernels(model, tmp_path)
    # The fifth gives the residual sum back the factor that the depthwise layer's input is divided by.
    assert kinds["QLinearConv"] == 5
    assert kinds["Mul"] == 1  # behind the last layer, whose every channel fills its integers
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Pad"} & set(kinds)


def test_zero_point_behind_a_relu_is_zero_and_the_relu_goes(
    exact: onnx.ModelProto, ranges: dict[str, TensorRange]
) -> None:
    model = X86(ranges)(quantized(exact, ranges)).model
    assert "Relu" not in [node.op_type for node in model.graph]
    zeros = {
        node.inputs[0].name: node.inputs[2].const_value.numpy().max()
        for node in model.graph
        if node.op_type == "QuantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[2] is not None
        and node.inputs[2].const_value is not None
    }
    assert zeros["a/divided"] == zeros["s"] == 0
    assert zeros["x"] > 0


def test_a_clip_that_the_integers_do_not_keep_stays(
    exact: onnx.ModelProto, ranges: dict[str, TensorRange]
) -> None:
    wider = {**ranges, "c": TensorRange(ranges["c"].low, np.full_like(ranges["c"].high, 9.0))}
    model = X86(wider)(quantized(exact, wider)).model
    assert "Clip" in [node.op_type for node in model.graph]


def test_a_second_run_changes_nothing(exact: onnx.ModelProto, ranges: dict[str, TensorRange]) -> None:
    once = X86(ranges)(quantized(exact, ranges)).model
    text = ir.to_proto(once).SerializeToString(deterministic=True)
    again = X86(ranges)(once)
    assert not again.modified
    assert ir.to_proto(again.model).SerializeToString(deterministic=True) == text


def test_a_tensor_without_a_range_is_declined(exact: onnx.ModelProto, ranges: dict[str, TensorRange]) -> None:
    less = {name: value for name, value in ranges.items() if name != "e"}
    (declined,) = X86(less)(quantized(exact, ranges)).declined
    assert declined.node == "node_e"
    assert "e has no range" in declined.reason


# SiLU in front of a dense and of a depthwise layer, a LeakyReLU, a join, and a last layer in float.
SMOOTH = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 4, 9, 9] x) => (float[1, 4, 9, 9] y)
{
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  sa = Sigmoid (a)
  p = Mul (a, sa)
  d = Conv <pads = [1, 1, 1, 1], group = 4> (p, w2, b2)
  sd = Sigmoid (d)
  q = Mul (sd, d)
  e = Conv (q, w3, b3)
  l = LeakyRelu <alpha = 0.1> (e)
  j = Concat <axis = 1> (l, p)
  f = Conv (j, w4, b4)
  sf = Sigmoid (f)
  t = Mul (f, sf)
  y = Conv (t, w5, b5)
}
"""


@pytest.fixture(scope="module")
def smooth() -> onnx.ModelProto:
    """Its depthwise layer reads channels whose ranges differ tenfold."""
    rng = np.random.default_rng(6)
    proto = onnx.parser.parse_model(SMOOTH)
    shapes = ((4, 4, 3, 3), (4, 1, 3, 3), (4, 4, 1, 1), (4, 8, 1, 1), (4, 4, 1, 1))
    for number, shape in enumerate(shapes, 1):
        weight = rng.normal(0, 2.0 / np.prod(shape[1:]) ** 0.5, shape)
        if number == 1:
            weight *= np.array([0.5, 5.0, 1.0, 2.0]).reshape(-1, 1, 1, 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        bias = rng.normal(0.2, 0.3, 4).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"b{number}"))
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return onnx.shape_inference.infer_shapes(proto)


def smooth_int8(smooth: onnx.ModelProto, ranges: dict[str, TensorRange]) -> ir.Model:
    """All but the last layer in int8, the depthwise one's input with a factor and an offset."""
    quantizers = {}
    ends = {name: (float(ranges[name].low.min()), float(ranges[name].high.max())) for name in ("p", "q", "j")}
    for name, (low, high) in {**ends, "x": (-4.0, 4.0)}.items():
        scale = (high - low) / 255
        quantizers[name] = Quantizer(scale=scale, shift=round(low / scale) + 128)
    reach = np.maximum(ranges["p"].high / 0.8, -ranges["p"].low / 0.2)
    quantizers["p"] = Quantizer(scale=1 / 255, shift=round(-0.2 * 255) + 128, factor=tuple(reach.tolist()))
    model = ir.serde.deserialize_model(smooth)
    return InsertQdq(quantizers, ["node_a", "node_d", "node_e", "node_f"])(model).model


def test_silu_and_leaky_relu_run_in_integers(smooth: onnx.ModelProto, images: Floats, tmp_path: Path) -> None:
    ranges = channel_ranges(smooth, images)
    before = smooth_int8(smooth, ranges)
    int8 = ir.to_proto(before)
    x86 = ir.to_proto(X86(ranges)(before).model)
    onnx.checker.check_model(x86, full_check=True)
    kinds = kernels(x86, tmp_path)
    # Four layers; what the first sigmoid and the join read is multiplied by the depthwise layer's factor.
    assert kinds["QLinearConv"] == 6
    assert kinds["QLinearSigmoid"] == kinds["QLinearMul"] == 2  # the last SiLU is read in float alone
    assert kinds["QLinearLeakyRelu"] == kinds["QLinearConcat"] == 1
    truth = np.stack([shown(smooth, ["y"], image)["y"] for image in images])
    noise = [
        float(np.square(np.stack([shown(model, ["y"], image)["y"] for image in images]) - truth).mean())
        for model in (int8, x86)
    ]
    ratio = [10 * np.log10(float(np.square(truth).mean()) / one) for one in noise]
    assert ratio[0] > 25
    assert ratio[1] > ratio[0] - 6


def test_without_the_range_of_its_argument_a_silu_stays_in_float(
    smooth: onnx.ModelProto, images: Floats, tmp_path: Path
) -> None:
    ranges = channel_ranges(smooth, images)
    less = {name: found for name, found in ranges.items() if name != "a"}
    before = smooth_int8(smooth, ranges)
    int8 = ir.to_proto(before)
    result = X86(less)(before)
    assert "node_a" in [place.node for place in result.declined]
    x86 = ir.to_proto(result.model)
    assert kernels(x86, tmp_path)["QLinearSigmoid"] == 1  # that of the other SiLU
    truth = np.stack([shown(smooth, ["y"], image)["y"] for image in images])
    noise = [
        float(np.square(np.stack([shown(model, ["y"], image)["y"] for image in images]) - truth).mean())
        for model in (int8, x86)
    ]
    assert noise[1] < 4 * noise[0]


def test_what_a_silu_rounds_to_zero_is_cut_off(smooth: onnx.ModelProto, images: Floats) -> None:
    ranges = channel_ranges(smooth, images)
    plain = X86({name: TensorRange(r.low, r.high) for name, r in ranges.items()})
    wide = {**ranges, "d": TensorRange(np.full(4, -90.0), ranges["d"].high)}
    scales = []
    for given in (X86(ranges), plain, X86(wide)):
        model = given(smooth_int8(smooth, ranges)).model
        (scale,) = [
            float(node.inputs[1].const_value.numpy())
            for node in model.graph
            if node.op_type == "QuantizeLinear"
            and node.inputs[0] is not None
            and node.inputs[0].name == "d"
            and node.inputs[1] is not None
            and node.inputs[1].const_value is not None
        ]
        scales.append(scale)
    reach = float(ranges["d"].high.max())
    assert scales[0] <= scales[1] <= scales[2] < (reach + 10) / 255 < (reach + 90) / 255


def test_parts_of_a_join_take_its_grid(smooth: onnx.ModelProto, images: Floats) -> None:
    ranges = channel_ranges(smooth, images)
    model = X86(ranges)(smooth_int8(smooth, ranges)).model
    scales = {
        node.inputs[0].name: float(node.inputs[1].const_value.numpy())
        for node in model.graph
        if node.op_type == "QuantizeLinear"
        and node.inputs[0] is not None
        and node.inputs[1] is not None
        and node.inputs[1].const_value is not None
    }
    assert scales["l"] == scales["j"]


@pytest.mark.assets
@pytest.mark.slow
def test_mobilenet_runs_in_integers_as_near_as_int8(
    asset_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = asset_recipe("mobilenet_v1_025")
    source, pictures = load_source(recipe), pictures_of(recipe)
    exact = proven(recipe, canonical_graph(recipe, source, pictures), pictures).model
    split = split_of(recipe)
    inputs = list(tensors(split.calibration.sample(16, 0), recipe.preprocess()))
    table = collect(exact.SerializeToString(), split.calibration.sample(16, 0), recipe.preprocess()).table()
    bench = Workbench(
        exact, table, calibration=inputs, search=list(tensors(split.search, recipe.preprocess())),
        task=recipe.task, nms=None, batch=recipe.batch,
    )  # fmt: skip
    bench.fixed_float = frozenset(never_quantized(bench.sites(), ()))
    int8 = bench.try_way(Way(frozenset({"factor", "offset", "bias"}), "minmax"))
    model = ir.to_proto(X86(channel_ranges(exact, inputs))(ir.serde.deserialize_model(int8.graph)).model)
    kinds = kernels(model, tmp_path)
    assert kinds["QLinearConv"] == 27
    assert not {"Conv", "FusedConv", "Clip", "Pad", "Mul"} & set(kinds)
    assert bench.compare(model).decibels > int8.agreement.decibels - 1


def test_a_clip_whose_limit_the_graph_computes_stays(
    exact: onnx.ModelProto, ranges: dict[str, TensorRange]
) -> None:
    """No integers can be told to keep a limit that is not known yet."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exact)
    position, clip = next((n, node) for n, node in enumerate(proto.graph.node) if node.op_type == "Clip")
    (limit,) = [i for i in proto.graph.initializer if i.name == clip.input[2]]
    limit.name = "given"
    computed = onnx.helper.make_node("Identity", ["given"], [clip.input[2]], name="computed")
    proto.graph.node.insert(position, computed)
    model = X86(ranges)(quantized(proto, ranges)).model
    assert "Clip" in [node.op_type for node in model.graph]
