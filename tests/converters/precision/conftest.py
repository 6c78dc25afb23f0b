"""Small graphs with seeded weights, and images and ranges for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import Activation, ScaleTable
from edgesmith.calibration.sites import Site, sites_of
from edgesmith.calibration.statistics import Scratch, TensorStatistics
from edgesmith.converters.precision.trial import Workbench
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.manifest import Batch

Floats = NDArray[np.float32]
# Two branches that meet in an Add, a Concat, a depthwise convolution, and a Gemm at the end.
GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 3, 12, 12] images) => (float[1, 5] logits)
{
  [stem] a = Conv <pads = [1, 1, 1, 1]> (images, stem_w, stem_b)
  ra = Relu (a)
  [left] b = Conv <pads = [1, 1, 1, 1]> (ra, left_w, left_b)
  [right] c = Conv (ra, right_w, right_b)
  d = Add (b, c)
  rd = Relu (d)
  e = Concat <axis = 1> (rd, ra)
  [depthwise] f = Conv <pads = [1, 1, 1, 1], group = 12> (e, depthwise_w, depthwise_b)
  rf = Relu (f)
  [point] h = Conv (rf, point_w, point_b)
  rh = Relu (h)
  pooled = GlobalAveragePool (rh)
  flat = Flatten (pooled)
  [last] logits = Gemm (flat, last_w, last_b)
}
"""
SHAPES = {
    "stem": (6, 3, 3, 3), "left": (6, 6, 3, 3), "right": (6, 6, 1, 1), "depthwise": (12, 1, 3, 3),
    "point": (8, 12, 1, 1), "last": (8, 5),
}  # fmt: skip


@pytest.fixture
def graph() -> onnx.ModelProto:
    """Residual, concat, depthwise; the channels of ``stem`` differ a hundredfold in range."""
    model = onnx.parser.parse_model(GRAPH)
    random = np.random.default_rng(3)
    for name, shape in SHAPES.items():
        weight = random.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        bias = random.normal(0, 0.2, shape[1] if name == "last" else shape[0]).astype(np.float32)
        if name == "stem":
            spread = np.geomspace(0.05, 5, 6).astype(np.float32)
            weight, bias = weight * spread[:, None, None, None], bias * spread
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"{name}_w"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"{name}_b"))
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture
def tensors() -> list[Floats]:
    """24 inputs (1, 3, 12, 12), smooth enough that channels have means."""
    random = np.random.default_rng(5)
    return [
        (random.normal(0, 1, (1, 3, 12, 12)) + random.normal(0, 1, (1, 3, 1, 1))).astype(np.float32)
        for _ in range(24)
    ]


@pytest.fixture
def table_of() -> Callable[[onnx.ModelProto, Sequence[Floats]], ScaleTable]:
    """The ranges of what a graph's quantizable layers read, over some inputs."""

    def measure(model: onnx.ModelProto, inputs: Sequence[Floats]) -> ScaleTable:
        names = {site.activation for site in sites_of(ir.serde.deserialize_model(model))}
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        entry = model.graph.input[0].name
        given = {value.name for value in model.graph.output}
        for name in sorted(names - {entry} - given):
            shown.graph.output.append(onnx.ValueInfoProto(name=name))
        run, scratch = graph_runner(shown, optimised=False), Scratch()
        statistics = {name: TensorStatistics(name) for name in sorted(names)}
        for tensor in inputs:
            values = {**run(tensor), entry: tensor}
            for name, one in statistics.items():
                one.add(values[name], scratch)
        return ScaleTable(
            model_sha256="0" * 64,
            data_sha256="0" * 64,
            images=len(inputs),
            activations={name: Activation.of(one) for name, one in statistics.items()},
        )

    return measure


@pytest.fixture
def sites(graph: onnx.ModelProto) -> dict[str, Site]:
    return {site.name: site for site in sites_of(ir.serde.deserialize_model(graph))}


@pytest.fixture
def bench(
    graph: onnx.ModelProto,
    tensors: list[Floats],
    table_of: Callable[[onnx.ModelProto, Sequence[Floats]], ScaleTable],
) -> Workbench:
    """The graph with 16 images to repair with and 8 to compare on; the last layer stays in float."""
    return Workbench(
        graph, table_of(graph, tensors[:16]), calibration=tensors[:16], search=tensors[16:],
        task="classify", nms=None, batch=Batch(min=1, opt=1, max=1), fixed_float=frozenset({"last"}),
    )  # fmt: skip
