"""Each rule on a graph that breaks just it."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from edgesmith.calibration.sites import MODULE_KEY
from edgesmith.converters.passes.lint import lint, require_clean
from edgesmith.sdk.errors import ExportError, UnsupportedOperatorError

HEAD = """<ir_version: 9, opset_import: ["" : {opset}, "vendor" : 1]>
g (float[1, 2, 8, 8] x) => (float[1, C, H, W] y)
<float s = {{0.02}}, float s2 = {{0.03}}, int8 z = {{0}}, int8[2, 2, 1, 1] w = {{1, -2, 3, -4}},
 float[2] ws = {{0.1, 0.2}}, int8[2] wz = {{0, 0}}, float[2] b = {{0.5, -0.5}},
 float[2, 2, 1, 1] fw = {{1, 2, 3, 4}}, int8[2, 4, 1, 1] w4 = {{1, 2, 3, 4, 5, 6, 7, 8}},
 float[4] grow = {{1, 1, 2, 2}}, {more}>
{{ {body} }}"""
PAIR = """["q"] q = QuantizeLinear (x, s, z) ["d"] d = DequantizeLinear (q, s, z)"""
WEIGHT = """["wd"] wd = DequantizeLinear <axis = 0> (w, ws, wz)"""
CLEAN = f"""{PAIR} {WEIGHT} ["conv"] c = Conv (d, wd, b) ["relu"] y = Relu (c)"""


def graph(body: str, *, more: str = "float unused = {0}", opset: int = 20) -> ir.Model:
    """The graph, with a module path on its convolutions and without shape inference."""
    proto = onnx.parser.parse_model(HEAD.format(opset=opset, body=body, more=more))
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.metadata_props.add(key=MODULE_KEY, value=f"net.{node.name}")
    return ir.from_proto(proto)


def rules(body: str, *, more: str = "float unused = {0}", opset: int = 20) -> list[tuple[str, str]]:
    """Rule and node of each finding."""
    return [(f.rule, f.node) for f in lint(graph(body, more=more, opset=opset))]


@pytest.mark.parametrize(
    "body",
    [
        CLEAN,
        f'{PAIR} {WEIGHT} ["conv"] c = Conv (d, wd, b) ["sig"] g = Sigmoid (c) ["mul"] y = Mul (c, g)',
        f'{PAIR} ["pool"] p = MaxPool <kernel_shape = [2, 2]> (d) {WEIGHT} ["conv"] y = Conv (p, wd)',
        f'{PAIR} ["cat"] t = Concat <axis = 1> (d, d) ["wd"] wd = DequantizeLinear <axis = 0> (w4, ws, wz)'
        '["conv"] y = Conv (t, wd)',
        # The float branch of a residual reads the pair of the convolution beside it.
        f'{PAIR} {WEIGHT} ["conv"] c = Conv (d, wd, b) ["add"] a = Add (c, d) ["relu"] y = Relu (a)',
    ],
)
def test_clean_graphs(body: str) -> None:
    assert lint(graph(body)) == ()
    require_clean(graph(body))


def test_weight_axis_of_a_convolution() -> None:
    body = CLEAN.replace("<axis = 0>", "<axis = 1>")
    (finding,) = lint(graph(body))
    assert finding.rule == "weight-axis"
    assert finding.node == "wd"
    assert "axis 1 of the weight of conv" in finding.what
    assert "axis 0" in finding.mend
    # ONNX counts the axis from 1 where it is left out.
    assert rules(CLEAN.replace("<axis = 0>", "")) == [("weight-axis", "wd")]
    assert rules(CLEAN.replace("<axis = 0>", "<axis = -4>")) == []


@pytest.mark.parametrize(
    ("layer", "right"),
    [
        ("ConvTranspose (d, wd)", 1),
        ("Gemm (d, wd)", 1),
        ("Gemm <transB = 1> (d, wd)", 0),
        ("MatMul (d, wd)", 1),
    ],
)
def test_weight_axis_of_the_other_layers(layer: str, right: int) -> None:
    more = "int8[2, 2] m = {1, 2, 3, 4}"
    weight = "w" if "Conv" in layer else "m"
    for axis in (0, 1):
        body = f'{PAIR} ["wd"] wd = DequantizeLinear <axis = {axis}> ({weight}, ws, wz) ["layer"] y = {layer}'
        assert rules(body, more=more) == ([] if axis == right else [("weight-axis", "wd")])


def test_zero_points() -> None:
    more = "int8 five = {5}"
    body = CLEAN.replace("QuantizeLinear (x, s, z)", "QuantizeLinear (x, s, five)", 1)
    assert rules(body, more=more) == [("zero-point", "q")]
    (finding,) = lint(graph(body, more=more))
    assert "zero point is 5" in finding.what
    more = "int8[2] odd = {0, 3}"
    assert rules(CLEAN.replace("(w, ws, wz)", "(w, ws, odd)"), more=more) == [("zero-point", "wd")]


def test_unsigned_integers() -> None:
    more = "uint8 u = {0}"
    assert rules(CLEAN.replace("s, z)", "s, u)"), more=more) == [("integer-type", "q"), ("integer-type", "d")]
    # Without a zero point ONNX means unsigned integers.
    assert ("integer-type", "q") in rules(
        CLEAN.replace("QuantizeLinear (x, s, z)", "QuantizeLinear (x, s)", 1)
    )


def test_int32_bias() -> None:
    body = CLEAN.replace("Conv (d, wd, b)", "Conv (d, wd, bd)").replace(
        '["conv"]', '["bd"] bd = DequantizeLinear <axis = 0> (ib, ws) ["conv"]'
    )
    assert rules(body, more="int32[2] ib = {1, 2}") == [("int32-bias", "bd")]


def test_fp16_scales_need_opset_19() -> None:
    body = (
        '["cast"] h = Cast <to = 10> (x) ["q"] q = QuantizeLinear (h, hs, z)'
        '["d"] d = DequantizeLinear (q, hs, z) ["up"] y = Cast <to = 1> (d)'
    )
    more = "float16 hs = {9503}"  # the bits of 0.02
    assert rules(body, more=more, opset=19) == []
    assert rules(body, more=more, opset=18) == [("opset", ""), ("fp16-scale", "q"), ("fp16-scale", "d")]


def test_mixed_float_types() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float16[1, 2, 8, 8] x) => (float[1, 2, 8, 8] y)
        <float s = {0.02}, int8 z = {0}, int8[2, 2, 1, 1] w = {1, -2, 3, -4}, float16[2] ws = {11878, 12902}>
        { ["q"] q = QuantizeLinear (x, s, z) ["d"] d = DequantizeLinear (q, s, z)
          ["wd"] wd = DequantizeLinear <axis = 0> (w, ws) ["conv"] y = Conv (d, wd) }"""
    )
    model = ir.from_proto(proto)
    types = {"d": ir.DataType.FLOAT, "wd": ir.DataType.FLOAT16}
    for node in model.graph:
        if node.name in types:
            node.outputs[0].dtype = types[node.name]
    assert [(f.rule, f.node) for f in lint(model)] == [("float-types", "q"), ("float-types", "conv")]
    assert "input FLOAT16, scale FLOAT" in lint(model)[0].what


def test_all_or_nothing() -> None:
    weight_only = f'{WEIGHT} ["conv"] y = Conv (x, wd, b)'
    activation_only = f'{PAIR} ["conv"] y = Conv (d, fw, b)'
    assert rules(weight_only) == [("half-quantized", "conv")]
    assert rules(activation_only) == [("half-quantized", "conv")]
    assert "its activation is not" in lint(graph(weight_only))[0].what
    assert "its weight is not" in lint(graph(activation_only))[0].what


@pytest.mark.parametrize(
    "between",
    [
        "Relu (d)", "Clip (d, s, s2)", "LeakyRelu (d)", "AveragePool <kernel_shape = [2, 2]> (d)",
        'Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (d, , grow)', "Mul (d, s)",
    ],
)  # fmt: skip
def test_what_a_pair_may_not_pass(between: str) -> None:
    body = f'{PAIR} ["between"] t = {between} {WEIGHT} ["conv"] y = Conv (t, wd, b)'
    (finding,) = lint(graph(body))
    assert (finding.rule, finding.node) == ("float-path", "conv")
    assert f"{between.split()[0]} between stands between" in finding.what


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ("""q2 = QuantizeLinear (r, s2, z) ["d2"] e = DequantizeLinear (q2, s2, z)""", "different scales"),
        ("e = Identity (r)", "float and quantized"),
    ],
)
def test_concat_of_unlike_inputs(second: str, what: str) -> None:
    body = (
        f'{PAIR} r = Neg (x) {second} ["cat"] t = Concat <axis = 1> (d, e)'
        '["wd"] wd = DequantizeLinear <axis = 0> (w4, ws, wz) ["conv"] y = Conv (t, wd)'
    )
    (finding,) = lint(graph(body))
    assert (finding.rule, finding.node) == ("concat-scales", "conv")
    assert what in finding.what
    behind = body.replace("Conv (t, wd)", "Conv (u, wd)").replace(
        '["conv"]', 'tq = QuantizeLinear (t, s, z) u = DequantizeLinear (tq, s, z) ["conv"]'
    )
    assert rules(behind) == []


def test_nothing_between_a_layer_and_its_activation() -> None:
    body = (
        f'{PAIR} {WEIGHT} ["conv"] c = Conv (d, wd, b) ["q2"] q2 = QuantizeLinear (c, s, z)'
        '["d2"] e = DequantizeLinear (q2, s, z) ["relu"] y = Relu (e)'
    )
    (finding,) = lint(graph(body))
    assert (finding.rule, finding.node) == ("before-activation", "q2")
    assert "between conv and its Relu" in finding.what
    inside = (
        f'{PAIR} {WEIGHT} ["conv"] c = Conv (d, wd, b) ["sig"] g = Sigmoid (c)'
        '["q2"] q2 = QuantizeLinear (g, s, z) ["d2"] e = DequantizeLinear (q2, s, z) ["mul"] y = Mul (c, e)'
    )
    (finding,) = lint(graph(inside))
    assert (finding.rule, finding.node) == ("before-activation", "q2")
    assert "SiLU" in finding.what


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_opset(opset: int) -> None:
    (finding,) = lint(graph("y = Relu (x)", opset=opset))
    assert finding.rule == "opset"
    assert f"opset {opset}" in str(finding)


def test_activation_scales_by_channel() -> None:
    body = CLEAN.replace("QuantizeLinear (x, s, z)", "QuantizeLinear <axis = 1> (x, ws, wz)", 1).replace(
        "DequantizeLinear (q, s, z)", "DequantizeLinear <axis = 1> (q, ws, wz)"
    )
    assert rules(body) == [("per-channel-activation", "q")]


def test_two_pairs_on_one_tensor() -> None:
    body = (
        f'{PAIR} {WEIGHT} ["conv"] c = Conv (d, wd, b) ["q2"] q2 = QuantizeLinear (x, s, z)'
        '["d2"] e = DequantizeLinear (q2, s, z) ["conv2"] f = Conv (e, wd, b) y = Add (c, f)'
    )
    (finding,) = lint(graph(body))
    assert (finding.rule, finding.node) == ("duplicate-pair", "q2")
    assert "x is quantized by q already" in finding.what


@pytest.mark.parametrize(
    ("body", "more", "rule"),
    [
        ("y = QLinearConv (x, s, z, w, s, z, s, z)", "float u = {0}", "integer-operator"),
        ("y, a, b1 = DynamicQuantizeLinear (x)", "float u = {0}", "integer-operator"),
        ("y = vendor.Fancy (x)", "float u = {0}", "custom-operator"),
        ("y = Det (x)", "float u = {0}", "operator"),
        ("y = ScatterND <reduction = \"add\"> (x, k, x)", "int64[1] k = {1}", "operator-setting"),
        ("y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", "float u = {0}", "operator-setting"),
        ("y = Resize <antialias = 1, mode = \"linear\"> (x, , grow)", "float u = {0}", "operator-setting"),
        (
            'y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, , grow)', "float u = {0}",
            "operator-setting",
        ),
        ("y = Cast <to = 4> (x)", "float u = {0}", "operator-setting"),
        ("y, i = TopK (x, k)", "int64[1] k = {3841}", "topk-limit"),
    ],
)  # fmt: skip
def test_operators_that_tensorrt_lacks(body: str, more: str, rule: str) -> None:
    (finding,) = lint(graph(f'["here"] {body}', more=more))
    assert (finding.rule, finding.node) == (rule, "here")
    assert finding.mend


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("y, i = TopK (x, k)", "int64[1] k = {3840}"),
        ("y = ScatterND (x, k, x)", "int64[1] k = {1}"),
        ("i = NonZero (x) y = Identity (x)", "float u = {0}"),  # TensorRT has it
        ("y = Cast <to = 10> (x)", "float u = {0}"),
    ],
)
def test_operators_that_it_takes(body: str, more: str) -> None:
    assert lint(graph(body, more=more)) == ()


def test_bodies_of_branches_are_read() -> None:
    body = """k = ReduceMax <keepdims = 0> (x) o = Greater (k, s)
    y = If (o) <then_branch = t () => (float[N] u) { ["inner"] u = Det (x) },
                else_branch = e () => (float[N] v) { v = Relu (x) }>"""
    assert rules(body) == [("operator", "inner")]


def test_a_refusal_names_node_and_module() -> None:
    with pytest.raises(
        ExportError, match=r"Conv conv \(module net\.conv\): its weight is quantized"
    ) as caught:
        require_clean(graph(f'{WEIGHT} ["conv"] y = Conv (x, wd, b)'))
    assert not isinstance(caught.value, UnsupportedOperatorError)
    assert "[half-quantized]" in str(caught.value)


def test_a_refusal_for_an_operator() -> None:
    with pytest.raises(UnsupportedOperatorError, match="Det here: TensorRT does not have Det") as caught:
        require_clean(graph('["here"] y = Det (x)'))
    assert caught.value.operator == "Det"


def test_only_the_first_findings_are_shown() -> None:
    many = " ".join(f'["det{n}"] o{n} = Det (x)' for n in range(8))
    with pytest.raises(ExportError) as caught:
        require_clean(graph(f"{many} y = Relu (x)"))
    assert "det4" in str(caught.value)
    assert "det5" not in str(caught.value)
    assert "and 3 more" in str(caught.value)
