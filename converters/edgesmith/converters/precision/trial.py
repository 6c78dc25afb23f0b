"""One way of quantizing a model: built, repaired, compared with the float model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.calibration.scale_table import ScaleTable
from edgesmith.calibration.sites import Site, sites_of
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.precision.agreement import Agreement, agreement
from edgesmith.converters.precision.bias_correction import AddToBias, Deltas, bias_corrections
from edgesmith.converters.precision.lockstep import image_bytes
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.runners import Outputs, graph_runner, outputs_of
from edgesmith.sdk.manifest import Batch, Nms, Task

Floats = NDArray[np.float32]
BIAS_IMAGES = 128  # the mean error of a channel settles long before
BIAS_BYTES = 1 << 30  # of tensors held alive for both graphs


@dataclass(frozen=True)
class Way:
    """A choice of repairs, method and layers that stay in float."""

    repairs: frozenset[str]
    method: str
    float_layers: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{'+'.join(sorted(self.repairs)) or 'plain'}, {self.method}"


@dataclass(frozen=True, eq=False)
class Trial:
    """What a way came to; ``layer_db`` is each quantized layer's signal-to-noise ratio."""

    way: Way
    graph: onnx.ModelProto
    agreement: Agreement
    layer_db: dict[str, float] = field(default_factory=dict)
    deltas: Deltas = field(default_factory=dict)


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
        room = max(1, BIAS_BYTES // max(1, 2 * image_bytes(exact)))
        self._repair = calibration[: min(BIAS_IMAGES, room)]
        self._search = search
        self._size = (search[0].shape[2], search[0].shape[3])
        self._exact_outputs: list[Outputs] = outputs_of(graph_runner(exact), search, batch)

    def sites(self) -> list[Site]:
        """The quantizable layers of the float graph."""
        return sites_of(ir.serde.deserialize_model(self.exact))

    def try_way(self, way: Way) -> Trial:
        """Build a way, repair it layer by layer, and compare it with the float model on the search images."""
        model, layers = self._inserted(way)
        proto = ir.to_proto(model)
        correct = "bias" in way.repairs
        deltas, ratios = bias_corrections(self.exact, proto, layers, self._repair, correct=correct)
        if correct:
            AddToBias(deltas)(model)
            proto = ir.to_proto(model)
        return Trial(way, proto, self.compare(proto), ratios, deltas if correct else {})

    def without(self, trial: Trial, layers: Collection[str]) -> onnx.ModelProto:
        """The trial's graph with some more layers in float; the other layers' repairs stay as they are."""
        way = replace(trial.way, float_layers=trial.way.float_layers | frozenset(layers))
        model, left = self._inserted(way)
        AddToBias({name: trial.deltas[name] for name in left if name in trial.deltas})(model)
        return ir.to_proto(model)

    def _inserted(self, way: Way) -> tuple[ir.Model, list[str]]:
        """The quantized model, and the layers whose bias can be corrected."""
        model = ir.serde.deserialize_model(self.exact)
        kept = self.fixed_float | way.float_layers
        sites = [site for site in sites_of(model) if site.name not in kept]
        quantizers = quantizers_for(self.table, sites, method=way.method, repairs=way.repairs)
        result = InsertQdq(quantizers, [site.name for site in sites])(model)
        declined = {place.node for place in result.declined}
        layers = [s.name for s in sites if s.name not in declined and s.node.op_type in ("Conv", "Gemm")]
        return result.model, layers

    def compare(self, graph: onnx.ModelProto) -> Agreement:
        """A graph against the float one on the search images."""
        self.evaluations += 1
        outputs = outputs_of(graph_runner(graph), self._search, self.batch)
        return agreement(self._exact_outputs, outputs, task=self.task, nms=self.nms, size=self._size)

    def nearness(self, found: Agreement) -> float:
        """What trials are ranked by: with few images the ratio says more than whole decisions do.

        Detectors are ranked by mAP, unless the float model is sure of nothing in the search images.
        """
        return found.same if self.task == "detect" and found.decisions else found.decibels
