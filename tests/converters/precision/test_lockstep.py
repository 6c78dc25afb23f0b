"""Two graphs side by side, cut behind each layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.calibration.sites import Site
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.precision.lockstep import channel_means, image_bytes, lockstep
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.runners import graph_runner

Floats = NDArray[np.float32]
LAYERS = ("stem", "left", "right", "depthwise", "point", "last")
OUTPUTS = {"stem": "a", "left": "b", "right": "c", "depthwise": "f", "point": "h", "last": "logits"}


def showing(model: onnx.ModelProto) -> onnx.ModelProto:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in OUTPUTS.values() if n != "logits")
    return shown


@pytest.fixture
def quantized(
    graph: onnx.ModelProto, tensors: list[Floats], sites: dict[str, Site], table_of: Callable[..., ScaleTable]
) -> onnx.ModelProto:
    chosen = quantizers_for(
        table_of(graph, tensors), list(sites.values()), method="minmax", repairs={"factor", "offset"}
    )
    return ir.to_proto(InsertQdq(chosen, LAYERS)(ir.serde.deserialize_model(graph)).model)


def test_the_pieces_together_are_the_whole_graph(
    graph: onnx.ModelProto, quantized: onnx.ModelProto, tensors: list[Floats]
) -> None:
    whole = [graph_runner(showing(model), optimised=False) for model in (graph, quantized)]
    seen = []
    for step in lockstep(graph, quantized, LAYERS, tensors[:4]):
        seen.append(step.name)
        for tensor, exact, other in zip(tensors, step.exact, step.quantized, strict=False):
            expected = [run(tensor)[OUTPUTS[step.name]] for run in whole]
            np.testing.assert_allclose(exact, expected[0], rtol=1e-4, atol=1e-5)
            # A fused sum may round to the neighbouring integer somewhere: one step of one input.
            assert np.abs(other - expected[1]).mean() < 1e-3 * np.abs(expected[1]).mean()
    assert tuple(seen) == LAYERS


def test_a_shift_is_seen_by_every_layer_behind_it(graph: onnx.ModelProto, tensors: list[Floats]) -> None:
    """Both are the float graph, so a shift must act as a change of the bias does."""
    delta = np.linspace(-0.5, 0.5, 6)
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    bias = next(i for i in changed.graph.initializer if i.name == "stem_b")
    values = onnx.numpy_helper.to_array(bias) + delta.astype(np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "stem_b"))
    expected = graph_runner(showing(changed), optimised=False)
    for step in lockstep(graph, graph, LAYERS, tensors[:3]):
        if step.name == "stem":
            before = [value.copy() for value in step.exact]
            step.shift(delta)
            np.testing.assert_array_equal(step.exact, before)
        for tensor, value in zip(tensors, step.quantized, strict=False):
            np.testing.assert_allclose(value, expected(tensor)[OUTPUTS[step.name]], rtol=1e-3, atol=1e-4)


def test_what_a_quantized_layer_reads(
    graph: onnx.ModelProto, quantized: onnx.ModelProto, tensors: list[Floats]
) -> None:
    """Whatever piece it was made in: `left` and `right` read the same tensor, `right` an earlier piece's."""
    entries = {node.name: node.input[0] for node in quantized.graph.node if node.name in LAYERS}
    shown = onnx.ModelProto()
    shown.CopyFrom(quantized)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(set(entries.values())))
    expected = graph_runner(shown, optimised=False)(tensors[0])
    for step in lockstep(graph, quantized, LAYERS, tensors[:1], inputs=True):
        np.testing.assert_allclose(step.inputs[0], expected[entries[step.name]], atol=0.1)
        assert np.abs(step.inputs[0] - expected[entries[step.name]]).mean() < 1e-3
    assert [s.inputs for s in lockstep(graph, quantized, LAYERS[:1], tensors[:1])] == [[]]


def test_without_a_shift_the_same_graph_stays_the_same(graph: onnx.ModelProto, tensors: list[Floats]) -> None:
    for step in lockstep(graph, graph, ("left", "point"), tensors[:2]):
        np.testing.assert_array_equal(step.exact, step.quantized)


def test_channel_means_of_maps_matrices_and_vectors() -> None:
    maps = [np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.zeros((1, 2, 3, 4), np.float32)]
    assert channel_means(maps).tolist() == [5.5 / 2, 17.5 / 2]
    rows = [np.array([[[1.0, 2.0], [3.0, 6.0]]], np.float32)]
    assert channel_means(rows).tolist() == [2.0, 4.0]
    assert channel_means([np.array([[1.0, 5.0]], np.float32)]).tolist() == [1.0, 5.0]


def test_image_bytes_counts_what_is_alive_together(graph: onnx.ModelProto) -> None:
    plane = 4 * 12 * 12
    # At the Add: ra (read again by the Concat), b, c and their sum, six channels each.
    # At the depthwise convolution: e (12) and f (12). At the Concat: rd, ra and e.
    assert image_bytes(graph) == plane * 24


def test_image_bytes_of_a_chain_does_not_grow_with_its_length() -> None:
    def chain(length: int) -> onnx.ModelProto:
        body = "\n".join(f"x{n + 1} = Relu (x{n})" for n in range(length))
        return onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 20]> g (float[1, 4, 8, 8] x0) => '
            f"(float[1, 4, 8, 8] x{length}) {{ {body} }}"
        )

    assert image_bytes(chain(2)) == image_bytes(chain(20)) == 2 * 4 * 4 * 64
