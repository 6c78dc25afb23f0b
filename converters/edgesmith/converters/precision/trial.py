"""One way of quantizing a model: built, repaired, compared with the float model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.passes.fold_factor import FoldFactor
from edgesmith.converters.passes.fold_offset import FoldOffset
from edgesmith.converters.passes.insert_qdq import InsertQdq, Integers, quantized_weight
from edgesmith.converters.precision.adaround import Unrounded, learned_rounding
from edgesmith.converters.precision.agreement import Agreement, agreement
from edgesmith.converters.precision.bias_correction import AddToBias, Deltas, bias_corrections
from edgesmith.converters.precision.equalize import equalized
from edgesmith.converters.precision.lockstep import image_bytes
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.runners import Outputs, graph_runner, outputs_of
from edgesmith.sdk.manifest import Batch, Nms, Task

Floats = NDArray[np.float32]
BIAS_IMAGES = 128  # the mean error of a channel settles long before
BIAS_BYTES = 1 << 30  # of tensors held alive for both graphs
POINTS = frozenset({"detect", "segment"})  # tasks whose nearness is in points of agreement, not in dB


@dataclass(frozen=True)
class Way:
    """A choice of repairs, method and layers that stay in float.

    Repairs: ``factor`` and ``offset`` in front of the rounding, ``smooth`` for dense layers, ``bias``
    (correction, layer by layer), ``fold`` (a factor or an offset goes into the layer before where it can;
    named without ``factor`` and ``offset``, it goes nowhere else), ``equalize`` (weights across layers),
    ``adaround`` (learned rounding of weights). ``residual`` repairs nothing: the identity branches of
    residual sums are read as integers, which saves a board memory traffic and costs accuracy.
    """

    repairs: frozenset[str]
    method: str
    float_layers: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{'+'.join(sorted(self.repairs)) or 'plain'}, {self.method}"


@dataclass(frozen=True, eq=False)
class Trial:
    """What a way came to; ``layer_db`` is each quantized layer's signal-to-noise ratio.

    ``deltas`` are the corrections of biases by layer, ``weights`` integers that were not rounded to nearest.
    """

    way: Way
    graph: onnx.ModelProto
    agreement: Agreement
    layer_db: dict[str, float] = field(default_factory=dict)
    deltas: Deltas = field(default_factory=dict)
    weights: Mapping[str, Integers] = field(default_factory=dict)


def folded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A quantized graph with the factors and offsets in front of its roundings in the layers before them.

    The integers stay the same; what cannot be folded stays where it is.
    """
    model = FoldFactor()(ir.serde.deserialize_model(graph)).model
    return ir.to_proto(FoldOffset()(model).model)


class Workbench:
    """A float graph, its ranges, images to repair with and images to compare on.

    Calibration tensors and search tensors are disjoint; the images of the verdict are not here at all.
    """

    def __init__(
        self,
        exact: onnx.ModelProto,
        table: ScaleTable,
        *,
        calibration: Sequence[Floats],
        search: Sequence[Floats],
        task: Task,
        nms: Nms | None,
        batch: Batch,
        fixed_float: frozenset[str] = frozenset(),
    ) -> None:
        self.exact = exact
        self.table = table
        self.task: Task = task
        self.nms = nms
        self.batch = batch
        self.fixed_float = fixed_float
        self.evaluations = 0
        self._equalized: tuple[onnx.ModelProto, ScaleTable] | None = None
        room = max(
            1, BIAS_BYTES // max(1, 2 * image_bytes(exact, max((t.shape for t in calibration), key=np.prod)))
        )
        self._repair = calibration[: min(BIAS_IMAGES, room)]
        self._search = search
        self._size = (search[0].shape[2], search[0].shape[3])
        self._exact_outputs: list[Outputs] = outputs_of(graph_runner(exact), search, batch)

    def sites(self) -> list[Site]:
        """The quantizable layers of the float graph."""
        return sites_of(ir.serde.deserialize_model(self.exact))

    def try_way(self, way: Way) -> Trial:
        """Build a way, repair it layer by layer, and compare it with the float model on the search images."""
        exact = self._basis(way)[0]
        model, layers = self._inserted(way, {})
        proto = ir.to_proto(model)
        correct = "bias" in way.repairs
        weights: Mapping[str, Integers] = {}
        if "adaround" in way.repairs:
            found = learned_rounding(exact, proto, layers, self._repair, correct=correct)
            weights, deltas, ratios = found.weights, found.deltas, found.ratios
            proto = ir.to_proto(self._inserted(way, weights)[0])
        else:
            deltas, ratios = bias_corrections(exact, proto, list(layers), self._repair, correct=correct)
        proto = _finished(proto, deltas if correct else {}, way)
        return Trial(way, proto, self.compare(proto), ratios, deltas if correct else {}, weights)

    def without(self, trial: Trial, layers: Collection[str]) -> onnx.ModelProto:
        """The trial's graph with some more layers in float; the other layers' repairs stay as they are."""
        way = replace(trial.way, float_layers=trial.way.float_layers | frozenset(layers))
        model, left = self._inserted(way, trial.weights)
        deltas = {name: trial.deltas[name] for name in left if name in trial.deltas}
        return _finished(ir.to_proto(model), deltas, way)

    def _basis(self, way: Way) -> tuple[onnx.ModelProto, ScaleTable]:
        """The float graph that is quantized, and its ranges."""
        if "equalize" not in way.repairs:
            return self.exact, self.table
        if self._equalized is None:
            self._equalized = equalized(self.exact, self.table)
        return self._equalized

    def _inserted(self, way: Way, weights: Mapping[str, Integers]) -> tuple[ir.Model, dict[str, Unrounded]]:
        """The quantized model, and the layers whose bias can be corrected, as they were before rounding."""
        exact, table = self._basis(way)
        model = ir.serde.deserialize_model(exact)
        kept = self.fixed_float | way.float_layers
        sites = [site for site in sites_of(model) if site.name not in kept]
        quantizers = quantizers_for(table, sites, method=way.method, repairs=way.repairs)
        unrounded = {}
        for site in sites:
            if site.node.op_type in ("Conv", "Gemm"):
                quantizer = quantizers[site.activation]
                weight, scale = quantized_weight(site, quantizer.factor)
                unrounded[site.name] = Unrounded(weight / scale, quantizer.offset)
        layers = [site.name for site in sites]
        result = InsertQdq(quantizers, layers, weights, residuals="residual" in way.repairs)(model)
        for place in result.declined:
            unrounded.pop(place.node, None)
        return result.model, unrounded

    def compare(self, graph: onnx.ModelProto) -> Agreement:
        """A graph against the float one on the search images."""
        self.evaluations += 1
        outputs = outputs_of(graph_runner(graph), self._search, self.batch)
        return agreement(self._exact_outputs, outputs, task=self.task, nms=self.nms, size=self._size)

    def nearness(self, found: Agreement) -> float:
        """What trials are ranked by: with few images the ratio says more than whole decisions do.

        Detectors are ranked by mAP, unless the float model is sure of nothing in the search images, and
        segmenters by mean IoU, for an image has many decisions.
        """
        return found.same if self.task in POINTS and found.decisions else found.decibels


def _finished(graph: onnx.ModelProto, deltas: Deltas, way: Way) -> onnx.ModelProto:
    """The graph with its biases corrected, and folded where that was asked."""
    if deltas:
        graph = ir.to_proto(AddToBias(deltas)(ir.serde.deserialize_model(graph)).model)
    return folded(graph) if "fold" in way.repairs else graph
