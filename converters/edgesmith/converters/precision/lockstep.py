"""The float graph and the quantized one side by side, layer after layer.

Repairs need what a layer computes when everything before it is quantized and repaired already. Both graphs
are cut behind each quantized layer; the pieces run over all images before the next piece is touched,
so one layer's repair is in place before the following layer is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgesmith.sdk.backends.onnxruntime import UNSOUND_OPTIMIZERS
from edgesmith.sdk.backends.processor import has_integer_products

Floats = NDArray[np.float32]
Live = dict[str, NDArray[Any]]


@dataclass(eq=False)
class LayerOutputs:
    """One quantized layer's outputs over the images, ``(N, C, ...)`` each.

    ``quantized`` comes from the quantized graph with every change so far in it. :meth:`shift` adds a value
    to each channel, as a change of the bias would, :meth:`replace` puts other outputs in their place, as a
    change of the weights would, for all that follows. ``inputs`` is what the quantized layer read, where it
    was asked for.
    """

    name: str
    exact: list[Floats]
    quantized: list[Floats]
    inputs: list[Floats] = field(default_factory=list)
    changed: bool = False

    def shift(self, delta: NDArray[np.float64]) -> None:
        """Add ``delta (C,)`` to the quantized outputs."""
        shaped = delta.astype(np.float32).reshape(_channel_shape(self.quantized[0].ndim))
        self.replace([value + shaped for value in self.quantized])

    def replace(self, outputs: list[Floats]) -> None:
        """Other quantized outputs, one for each image."""
        self.quantized, self.changed = outputs, True


def channel_means(outputs: Sequence[Floats]) -> NDArray[np.float64]:
    """Mean of each channel over images and positions, ``(C,)``."""
    total: NDArray[np.float64] | None = None
    for value in outputs:
        axes = (0, *range(2, value.ndim)) if value.ndim > 3 else tuple(range(value.ndim - 1))
        mean = value.mean(axis=axes, dtype=np.float64)
        total = mean if total is None else total + mean
    assert total is not None
    return np.asarray(total / len(outputs))


def lockstep(
    exact: onnx.ModelProto,
    quantized: onnx.ModelProto,
    layers: Sequence[str],
    tensors: Sequence[Floats],
    *,
    inputs: bool = False,
) -> Iterator[LayerOutputs]:
    """Run both graphs over the input tensors, and stop behind each of the layers, in execution order.

    Args:
        exact: the float graph.
        quantized: the same graph with Q/DQ pairs; node names and the layers' output names are the same.
        layers: names of the quantized layers.
        tensors: inputs ``(1, C, H, W)``.
        inputs: give what each quantized layer reads as well.
    """
    left, right = _Pieces(exact, layers, tensors), _Pieces(quantized, layers, tensors)
    for name in right.order:
        before, _ = left.advance(name)
        after, read = right.advance(name, inputs=inputs)
        step = LayerOutputs(name, before, after, read)
        yield step
        if step.changed:
            right.replace(name, step.quantized)


def image_bytes(graph: onnx.ModelProto, shape: Sequence[int] = ()) -> int:
    """Most bytes of one image's tensors that are alive at once while the graph runs layer by layer.

    ``shape`` is the input's, for a graph of any size.
    """
    sized = onnx.ModelProto()
    sized.CopyFrom(graph)
    del sized.graph.value_info[:]  # of symbolic shapes
    for dim, length in zip(sized.graph.input[0].type.tensor_type.shape.dim, shape, strict=False):
        dim.dim_value = dim.dim_value or length
    inferred = onnx.shape_inference.infer_shapes(sized)
    sizes = {
        v.name: _bytes(v) for v in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    last = {name: number for number, node in enumerate(graph.graph.node) for name in node.input}
    alive = {v.name: sizes.get(v.name, 0) for v in graph.graph.input}
    most = sum(alive.values())
    for number, node in enumerate(graph.graph.node):
        alive.update((name, sizes.get(name, 0)) for name in node.output)
        most = max(most, sum(alive.values()))
        for name in [n for n in alive if last.get(n, -1) <= number]:
            del alive[name]
    return most


def _bytes(value: onnx.ValueInfoProto) -> int:
    dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    return 4 * int(np.prod(dims, dtype=np.int64))


class _Pieces:
    """A graph cut behind each of the layers, and the tensors that later pieces still read."""

    def __init__(self, proto: onnx.ModelProto, layers: Sequence[str], tensors: Sequence[Floats]) -> None:
        self._proto = proto
        self._constants = {i.name: i for i in proto.graph.initializer}
        self._types = _types(proto)
        wanted = set(layers)
        self.order = [node.name for node in proto.graph.node if node.name in wanted]
        self._pieces: dict[str, list[onnx.NodeProto]] = {}
        piece: list[onnx.NodeProto] = []
        for node in proto.graph.node:
            piece.append(node)
            if node.name in wanted:
                self._pieces[node.name], piece = piece, []
        self._last_read = {
            name: number
            for number, part in enumerate([*self._pieces.values(), piece])
            for node in part
            for name in node.input
        }
        self._at = -1
        entry = proto.graph.input[0].name
        self._live: list[Live] = [{entry: tensor} for tensor in tensors]

    def advance(self, name: str, *, inputs: bool = False) -> tuple[list[Floats], list[Floats]]:
        """Run up to and with the layer; its outputs over the images, and what it read where that is asked."""
        self._at += 1
        nodes = self._pieces[name]
        result = nodes[-1].output[0]
        made = {output for node in nodes for output in node.output}
        reads = {name for node in nodes for name in node.input if name}
        feeds = sorted(reads - made - set(self._constants))
        entry = nodes[-1].input[0]
        outputs = [
            o
            for node in nodes
            for o in node.output
            if o == result or self._last_read.get(o, -1) > self._at or (inputs and o == entry)
        ]
        session = self._session(nodes, feeds, outputs, reads)
        found, read = [], []
        for live in self._live:
            values = session.run(outputs, {name: live[name] for name in feeds})
            live.update(zip(outputs, values, strict=True))
            found.append(live[result])
            if inputs:
                read.append(live[entry])
            for old in [n for n in live if self._last_read.get(n, -1) <= self._at]:
                del live[old]
        return found, read

    def replace(self, name: str, values: Sequence[Floats]) -> None:
        """Put other outputs of a layer in the place of those that it gave."""
        result = self._pieces[name][-1].output[0]
        for live, value in zip(self._live, values, strict=True):
            if result in live:
                live[result] = value

    def _session(
        self, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], reads: set[str]
    ) -> Any:
        constants = [self._constants[name] for name in sorted(reads & set(self._constants))]
        graph = onnx.helper.make_graph(
            nodes, "piece", [self._value(n) for n in inputs], [self._value(n) for n in outputs], constants
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version
        )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1
        if not has_integer_products():  # as the runtime does: sums of a matrix product must not saturate
            settings.add_session_config_entry("session.x64quantprecision", "1")
        # Whole-graph layout changes do not pay for pieces of a few nodes.
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        return onnxruntime.InferenceSession(
            model.SerializeToString(),
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(UNSOUND_OPTIMIZERS),
        )

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, self._types.get(name, onnx.TensorProto.FLOAT), None)


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values}


def _channel_shape(rank: int) -> tuple[int, ...]:
    return (1, -1, *[1] * (rank - 2)) if rank > 3 else (*[1] * (rank - 1), -1)
