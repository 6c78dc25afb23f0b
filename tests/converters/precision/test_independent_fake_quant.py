"""The integers that the inserted Q/DQ pairs stand for, worked out a second time without any of the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images
from edgesmith.calibration.scale_table import Quantizer, ScaleTable
from edgesmith.calibration.sites import sites_of
from edgesmith.converters import Recipe
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.precision.stage import evaluation_of
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk import Bundle
from edgesmith.sdk.evaluate.data import labelled_images, pixels
from edgesmith.sdk.preprocess import prepared

Array = NDArray[Any]
REPAIRS = frozenset({"factor", "offset", "smooth"})
CALIBRATION = 96


def fake_input(x: Array, quantizer: Quantizer) -> Array:
    """What the integers of an activation say, divided by the factor: what meets ``w * factor``."""
    factor = np.ones(1) if quantizer.factor is None else np.asarray(quantizer.factor)
    factor = factor.reshape(1, -1, *[1] * (x.ndim - 2))
    steps: Array = x / (factor * quantizer.scale)
    np.rint(steps, out=steps)
    # clip(steps - shift, -128, 127) + shift
    np.clip(steps, quantizer.shift - 128, quantizer.shift + 127, out=steps)
    steps *= quantizer.scale
    return steps


def fake_weight(node: onnx.NodeProto, weight: Array, quantizer: Quantizer) -> Array:
    """``w * factor``, each output channel rounded to -127..127 of its own scale."""
    exact = weight.astype(np.float64)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if quantizer.factor is not None:
        factor = np.asarray(quantizer.factor)
        assert node.op_type == "Conv"
        group, (out, read) = attributes.get("group", 1), weight.shape[:2]
        for o in range(out):
            first = o // (out // group) * read  # the first input channel of the group of o
            for i in range(read):
                exact[o, i] *= factor[first + i]
    rows = exact if node.op_type == "Conv" or attributes.get("transB", 0) else exact.T
    scale = np.maximum(np.abs(rows.reshape(len(rows), -1)).max(1), 1e-9) / 127
    scale = scale.reshape(-1, *[1] * (rows.ndim - 1))
    rounded: Array = np.clip(np.rint(rows / scale), -127, 127) * scale
    return rounded if rows is exact else rounded.T


class NodeByNode:
    """Runs a float graph one node at a time, with fake integers at the inputs and weights of some nodes."""

    def __init__(self, model: onnx.ModelProto, quantizers: Mapping[str, Quantizer]) -> None:
        """``quantizers`` by node name."""
        self.model = model
        self.quantizers = quantizers
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.weights = {
            node.name: fake_weight(node, self.constants[node.input[1]], quantizers[node.name])
            for node in model.graph.node
            if node.name in quantizers
        }
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def __call__(self, image: Array) -> Array:
        """The graph's first output."""
        values = {**self.constants, self.model.graph.input[0].name: image}
        for node in self.model.graph.node:
            given = [values[name] for name in node.input if name]
            if node.name in self.quantizers:
                given[0] = fake_input(given[0], self.quantizers[node.name]).astype(np.float32)
                given[1] = self.weights[node.name].astype(np.float32)
            values.update(zip(node.output, self._run(node, given), strict=True))
        return values[self.model.graph.output[0].name]

    def _run(self, node: onnx.NodeProto, given: list[Array]) -> list[Array]:
        names = [name for name in node.input if name]
        if node.output[0] not in self._sessions:
            kinds = [onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for array in given]
            inputs = [
                onnx.helper.make_tensor_value_info(name, kind, None)
                for name, kind in dict(zip(names, kinds, strict=True)).items()
            ]
            outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
            graph = onnx.helper.make_graph([node], "one", inputs, outputs)
            one = onnx.helper.make_model(
                graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            self._sessions[node.output[0]] = onnxruntime.InferenceSession(
                one.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        results: list[Array] = self._sessions[node.output[0]].run(
            list(node.output), dict(zip(names, given, strict=True))
        )
        return results


def verdict_tensors(recipe: Recipe, labels: tuple[str, ...]) -> Iterator[NDArray[np.float32]]:
    """The images that conversions are judged on, as the network takes them."""
    data = evaluation_of(recipe)
    assert data is not None
    for item in labelled_images(data, labels):
        yield prepared(recipe.preprocess(), pixels(item))[0]


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "mobilenet_v1_025",
            marks=pytest.mark.xfail(
                strict=True,
                reason="428 of 440 decisions. The first layers agree to 1e-7 of their range; then single "
                "values near the middle of two integers round the other way, and 26 layers make 1 to 2 % "
                "of the logits' spread of it (the integers themselves cost 12 to 22 %)",
            ),
        ),
        "resnet20_cifar",
    ],
)
def test_the_same_decisions_as_the_inserted_pairs(
    name: str, asset_recipe: Callable[..., Recipe], asset_bundle: Callable[..., Path]
) -> None:
    recipe, bundle = asset_recipe(name), Bundle.open(asset_bundle(name))
    data = bundle.read(bundle.manifest.variants["float"].member)
    model = onnx.load_from_string(data)
    assert recipe.data.calibration is not None
    images = Images.open(recipe.resolve(recipe.data.calibration)).sample(CALIBRATION, 0)
    table: ScaleTable = collect(data, images, recipe.preprocess()).table()
    sites = sites_of(ir.serde.deserialize_model(model))
    exact = graph_runner(model)
    quantizers = quantizers_for(table, sites, method="minmax", repairs=REPAIRS)
    assert any(q.factor is not None for q in quantizers.values())
    assert any(q.shift for q in quantizers.values())
    inserted = InsertQdq(quantizers, [site.name for site in sites])(ir.serde.deserialize_model(model))
    assert inserted.changes == len(sites)
    pairs = graph_runner(ir.to_proto(inserted.model))
    again = NodeByNode(model, {site.name: quantizers[site.activation] for site in sites})
    count = same = kept = 0
    for tensor in verdict_tensors(recipe, bundle.manifest.labels):
        found = int(next(iter(pairs(tensor).values())).argmax())
        count += 1
        same += found == int(again(tensor).argmax())
        kept += found == int(next(iter(exact(tensor).values())).argmax())
    assert count >= 400
    assert same >= 0.995 * count, f"{same} of {count}"
    # Integers were at work: some decisions differ from the float graph's.
    assert kept < count
