"""The CPU's graph: the same integers moved by 128, nothing in front of a Q, every layer in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.passes.x86 import X86

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
def ranges(exact: onnx.ModelProto, images: Floats) -> dict[str, tuple[Floats, Floats]]:
    names = ["x", *(node.output[0] for node in exact.graph.node)]
    values = [shown(exact, names, image) for image in images]
    plane = (0, 2, 3)
    return {
        name: (
            np.min([value[name].min(plane) for value in values], 0),
            np.max([value[name].max(plane) for value in values], 0),
        )
        for name in names
    }


def quantized(exact: onnx.ModelProto, ranges: dict[str, Any]) -> ir.Model:
    """Every layer in int8; each tensor with its offset, the depthwise layer's with a factor too."""
    quantizers = {}
    for name in READ:
        low, high = float(ranges[name][0].min()), float(ranges[name][1].max())
        scale = (high - min(low, 0.0)) / 255
        shift = round(min(low, 0.0) / scale) + 128
        quantizers[name] = Quantizer(scale=scale, shift=shift)
    widths = tuple(np.maximum(ranges["r"][1], 0.05).tolist())
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
    x86 = X86({"a": (np.full(4, -9.0), np.full(4, 9.0))})(model).model
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
    exact: onnx.ModelProto, ranges: dict[str, Any], images: Floats
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


def test_every_layer_runs_in_integers(exact: onnx.ModelProto, ranges: dict[str, Any], tmp_path: Path) -> None:
    model = X86(ranges)(quantized(exact, ranges)).model
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == 4
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Mul", "Pad"} & set(kinds)


def test_zero_point_behind_a_relu_is_zero_and_the_relu_goes(
    exact: onnx.ModelProto, ranges: dict[str, Any]
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
    assert zeros["a"] == zeros["s"] == 0
    assert zeros["x"] > 0


def test_a_clip_that_the_integers_do_not_keep_stays(exact: onnx.ModelProto, ranges: dict[str, Any]) -> None:
    wider = {**ranges, "c": (ranges["c"][0], np.full_like(ranges["c"][1], 9.0))}
    model = X86(wider)(quantized(exact, wider)).model
    assert "Clip" in [node.op_type for node in model.graph]


def test_a_second_run_changes_nothing(exact: onnx.ModelProto, ranges: dict[str, Any]) -> None:
    once = X86(ranges)(quantized(exact, ranges)).model
    text = ir.to_proto(once).SerializeToString(deterministic=True)
    again = X86(ranges)(once)
    assert not again.modified
    assert ir.to_proto(again.model).SerializeToString(deterministic=True) == text


def test_a_tensor_without_a_range_is_declined(exact: onnx.ModelProto, ranges: dict[str, Any]) -> None:
    less = {name: value for name, value in ranges.items() if name != "e"}
    (declined,) = X86(less)(quantized(exact, ranges)).declined
    assert declined.node == "node_e"
    assert "e has no range" in declined.reason
