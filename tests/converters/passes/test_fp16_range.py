"""Regions that one layer proposes for the next stay in float32, the features between them do not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgesmith.converters.passes.cast_fp16 import CastFp16
from edgesmith.converters.passes.fp16_range import reasons

TWO_STAGES = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y)
<float[1] half = {0.5}>
{
  ["stem"] a = Conv (x, w)
  ["regions"] b = Conv (a, v)
  ["turn"] t = Transpose <perm = [0, 2, 3, 1]> (b)
  ["size"] u = Mul (t, half)
  ["grid"] g = Sub (u, half)
  ["pool"] c = GridSample (a, g)
  ["relu"] d = Relu (c)
  ["box"] e = Conv (d, w)
  ["decode"] y = Mul (e, half)
}
"""


def two_stages() -> ir.Model:
    model = onnx.parser.parse_model(TWO_STAGES)
    random = np.random.default_rng(0)
    for name, shape in {"w": (3, 3, 1, 1), "v": (2, 3, 1, 1)}.items():
        weight = random.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def test_boxes_that_only_say_where_to_look_keep_float32() -> None:
    found = {
        str(node.name): reason for node, reason in reasons(two_stages().graph, {}, (), decode=True).items()
    }
    assert set(found) == {"size", "grid", "pool", "decode"}
    assert "follows the last layer" in found["size"]
    assert "coordinates need float32" in found["pool"]


def test_layers_on_both_sides_of_the_sampling_run_in_fp16() -> None:
    result = CastFp16()(two_stages())
    types = {str(v.name): v.dtype for node in result.model.graph for v in node.outputs}
    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT
    assert [types[name] for name in "abdeg"] == [half, half, half, half, full]
    # Without the rule for regions the grid would be cast as well.
    assert {str(p.node) for p in result.declined} >= {"size", "grid", "pool"}
