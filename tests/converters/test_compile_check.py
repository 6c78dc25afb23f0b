"""What TensorRT's compiler says of a graph, read on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import MODULE_KEY
from edgesmith.converters import compile_check as checking
from edgesmith.converters.compile_check import (
    CompileError,
    CompileReport,
    FloatLayer,
    compile_check,
    layer_types,
)
from edgesmith.converters.passes.cast_fp16 import CastFp16
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.sdk.errors import ExportError, UnsupportedOperatorError
from edgesmith.sdk.manifest import Batch

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec(checking.PACKAGE) is None, reason="the extra trt-check is not installed"
)
HEAD = '<ir_version: 9, opset_import: ["" : 20]>\n'
NETWORK = """g (float[N, 16, 8, 8] images) => (float[N, 8, 64] y)
<float[16, 16, 3, 3] w1 = {%s}, float[8, 16, 1, 1] w2 = {%s}, int64[3] flat = {0, 8, -1}>
{
  ["stem/Conv"] a = Conv <pads = [1, 1, 1, 1]> (images, w1)
  ["stem/Relu"] b = Relu (a)
  ["head/Conv"] c = Conv (b, w2)
  ["flat"] y = Reshape (c, flat)
}"""


def model_of(text: str, *counts: int) -> onnx.ModelProto:
    """The graph, with seeded numbers for each ``%s``; ``a.b/Op`` comes from module ``a.b``."""
    for seed, count in enumerate(counts):
        draws = np.random.default_rng(seed).normal(size=count)
        text = text.replace("%s", ", ".join(f"{v:.5f}" for v in draws), 1)
    proto = onnx.parser.parse_model(HEAD + text)
    for node in proto.graph.node:
        if "/" in node.name:
            node.metadata_props.add(key=MODULE_KEY, value=node.name.partition("/")[0])
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def network() -> onnx.ModelProto:
    return model_of(NETWORK, 16 * 16 * 9, 8 * 16)


LAYERS = ["stem/Conv", "head/Conv"]


def quantized() -> ir.Model:
    quantizers = {"images": Quantizer(scale=0.02), "b": Quantizer(scale=0.1, shift=128)}
    return InsertQdq(quantizers, LAYERS)(ir.from_proto(network())).model


@needs_builder
def test_a_float_graph_compiles_and_shows_its_layers() -> None:
    report = compile_check(network().SerializeToString(), meant_int8=["stem/Conv"])
    assert report.outcome == "compiled"
    assert report.compiled
    assert report.layers >= 2
    assert report.seconds > 0
    assert report.version
    assert report.int8 == ()
    assert report.float_instead == (FloatLayer(node="stem/Conv", module="stem", runs_in="Float"),)
    with pytest.raises(ExportError, match=r"1 layers .*stem/Conv \(module stem\) runs in Float"):
        report.require()
    report.require(placement=False)


@needs_builder
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_quantized_layers_run_in_int8(half: bool) -> None:
    model = quantized()
    if half:
        model = CastFp16()(model).model
    report = compile_check(
        ir.to_proto(model).SerializeToString(), meant_int8=LAYERS, batch=Batch(min=1, opt=2, max=4)
    )
    assert report.int8 == tuple(LAYERS)
    assert report.float_instead == ()
    report.require()


@needs_builder
def test_a_pair_in_front_of_a_resize_only_is_found_out() -> None:
    integers = ", ".join(str(n) for n in np.random.default_rng(0).integers(-127, 128, 256))
    proto = model_of(
        f"""g (float[1, 16, 8, 8] x) => (float[1, 16, 16, 16] y)
        <float s = {{0.02}}, int8 z = {{0}}, int8[16, 16, 1, 1] w = {{{integers}}}, float ws = {{0.1}},
         float[4] grow = {{1, 1, 2, 2}}>
        {{
          q = QuantizeLinear (x, s, z)
          d = DequantizeLinear (q, s, z)
          u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (d, , grow)
          wd = DequantizeLinear (w, ws)
          ["neck.conv/Conv"] y = Conv (u, wd)
        }}"""
    )
    report = compile_check(proto.SerializeToString(), meant_int8=["neck.conv/Conv"])
    assert report.compiled
    assert report.int8 == ()
    assert report.float_instead == (FloatLayer(node="neck.conv/Conv", module="neck.conv", runs_in="Float"),)


@needs_builder
def test_an_unsupported_operator_is_named_with_its_module() -> None:
    proto = model_of('g (float[1, 8, 8] x) => (float[1] y) { ["pose.head/Det"] y = Det (x) }')
    report = compile_check(proto.SerializeToString())
    assert report.outcome == "refused"
    (error,) = report.errors
    assert error == CompileError(
        code="UNSUPPORTED_NODE", node="pose.head/Det", operator="Det", module="pose.head",
        text="this operator is not supported",
    )  # fmt: skip
    with pytest.raises(UnsupportedOperatorError, match=r"Det pose\.head/Det in module pose\.head") as caught:
        report.require()
    assert (caught.value.operator, caught.value.module) == ("Det", "pose.head")


@needs_builder
def test_an_error_of_the_build_is_read_from_its_log() -> None:
    proto = model_of(
        """g (float[1, 8400] x) => (float[1, 5000] v, int64[1, 5000] i)
        <int64[1] k = {5000}> { ["nms.top/TopK"] v, i = TopK (x, k) }"""
    )
    report = compile_check(proto.SerializeToString())
    (error,) = report.errors
    assert (error.code, error.node, error.operator, error.module) == (
        "BUILD",
        "nms.top/TopK",
        "TopK",
        "nms.top",
    )
    assert error.text == "K exceeds the maximum value allowed (3840)."
    with pytest.raises(ExportError, match=r"TopK nms\.top/TopK in module nms\.top: K exceeds"):
        report.require()


@needs_builder
def test_type_errors_come_without_the_noise() -> None:
    proto = onnx.parser.parse_model(
        HEAD
        + """g (float16[1, 3, 4, 4] x) => (float16[1, 2, 4, 4] y)
        <float[2, 3, 1, 1] w = {1, 1, 1, 1, 1, 1}> { ["a/Conv"] y = Conv (x, w) }"""
    )
    (error,) = compile_check(proto.SerializeToString()).errors
    assert error.text == (
        "IConvolutionLayer `input` and `kernel` must be of same type. "
        "`input` type is Half but `kernel` is of type Float."
    )


@needs_builder
def test_an_operator_that_only_this_builder_lacks_is_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    proto = model_of('g (float[1, 8] x) => (int64[2, K] y) { ["a/NonZero"] y = NonZero (x) }')
    report = compile_check(proto.SerializeToString())
    assert report.errors[0].tensorrt_only
    report.require()
    assert "TensorRT itself has this operator" in caplog.text


@needs_builder
def test_open_height_and_width() -> None:
    proto = model_of("g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }")
    report = compile_check(proto.SerializeToString(), batch=Batch(min=1, opt=2, max=3), size=(96, 128))
    assert report.compiled


def test_not_installed_says_so_and_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, checking.PACKAGE, None)
    report = compile_check(network().SerializeToString(), meant_int8=LAYERS)
    assert report == CompileReport(outcome="not-installed")
    assert not report.compiled
    report.require()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], CompileReport]:
    """A compile check whose builder's process runs the given Python code instead."""

    def check(code: str) -> CompileReport:
        script = tmp_path / "python"
        script.write_text(f"#!{sys.executable}\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(sys, "executable", str(script))
        return compile_check(network().SerializeToString(), timeout=20 if "sleep" not in code else 0.5)

    return check


def test_a_crash_of_the_builder_is_a_refusal_not_our_end(stand_in: Callable[[str], CompileReport]) -> None:
    report = stand_in(f"import os; os.kill(os.getpid(), {signal.SIGSEGV.value})")
    assert report.outcome == "refused"
    assert report.errors[0].text == "the builder crashed (SIGSEGV)"
    with pytest.raises(ExportError, match="SIGSEGV"):
        report.require()


def test_a_builder_that_hangs_is_stopped(stand_in: Callable[[str], CompileReport]) -> None:
    assert stand_in("import time; time.sleep(60)").errors[0].text == "the builder was stopped after 0.5 s"


def test_a_builder_that_fails_says_why(stand_in: Callable[[str], CompileReport]) -> None:
    assert "ZeroDivisionError" in stand_in("1 / 0").errors[0].text


def test_a_package_that_does_not_load_counts_as_not_installed(
    stand_in: Callable[[str], CompileReport],
) -> None:
    report = stand_in("import sys; sys.stderr.write('libtensorrt_rtx.so: missing'); sys.exit(3)")
    assert report == CompileReport(outcome="not-installed", warnings=("libtensorrt_rtx.so: missing",))


def test_what_is_no_graph_and_what_is_no_node() -> None:
    with pytest.raises(ExportError, match="not an ONNX model"):
        compile_check(b"abcdefgh")
    with pytest.raises(ExportError, match="no node named nothing"):
        compile_check(network().SerializeToString(), meant_int8=["nothing"])


def line(name: str, kind: str, reads: str, *nodes: str) -> str:
    """A line of the layer dump."""
    tensor = (
        f"{{ Name: t, Dimensions: [1,3], Strides: [3,1], Datatype: {reads}, Format: (Linear) Row major }}"
    )
    constants = "[ { Name: c, Dimensions: [3], Datatype: Int8, Format: (Linear) } ]"
    meta = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensor if reads else ''}], Constants: {constants}, "
        f"Outputs: [ {{ Name: o, Datatype: Float }}], TacticName: , StreamId: 0, Metadata: {meta}"
    )


def test_reading_the_layer_dump() -> None:
    dump = "\n".join(
        [
            line("k0", "kgen", "Float", "a/Conv", "a/Relu", "b/Conv/in/QuantizeLinear"),
            line("c0", "correlation", "Int8", "a/Conv", "a/Conv/DequantizeLinear"),
            line("c1", "runtime_fusion", "Half", "b/Conv", "b/Relu"),
            line("s0", "signal", ""),
            line("p0", "maxpool", "Float", "pool/MaxPool", "a/Conv"),
            line("k1", "kgen", "Int8", "fc/Gemm"),
            "not a layer, LayerType: correlation",
        ]
    )
    types = layer_types(dump)
    assert types["a/Conv"] == ("Int8",)
    assert types["b/Conv"] == ("Half",)
    assert types["fc/Gemm"] == ("Int8",)  # no other layer does its work
    assert "pool/MaxPool" not in types
