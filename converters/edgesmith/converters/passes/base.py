"""What a pass is: one verb over a graph, which says what it changed and why it let things be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import onnx_ir as ir

# The operators that hold a weight, and that TensorRT quantizes.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Inputs that say where to look, and not what is there: coordinates and indices.
_PLACES = {"GridSample": 1, "Gather": 1, "GatherElements": 1, "GatherND": 1}


def carried(node: ir.Node) -> list[ir.Value]:
    """The inputs whose values go on into the node's outputs: all but places (the grid of a GridSample)."""
    place = _PLACES.get(node.op_type)
    return [v for index, v in enumerate(node.inputs) if v is not None and index != place]


@dataclass(frozen=True)
class Declined:
    """A place that a pass could not change, and the reason."""

    node: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass, how many places changed, and those that were declined."""

    model: ir.Model
    changes: int
    declined: tuple[Declined, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether anything changed."""
        return self.changes > 0


class Pass(ABC):
    """A rewrite: ``result = FoldBatchNorm()(model)``. The graph is changed in place."""

    def requires(self, model: ir.Model) -> None:  # noqa: B027  most passes take any graph
        """Raise where the graph is not fit for this pass."""

    @abstractmethod
    def apply(self, model: ir.Model) -> PassResult:
        """Change the graph."""

    def ensures(self, model: ir.Model) -> None:  # noqa: B027  most passes promise nothing beyond their result
        """Raise where the pass did not do what it promises."""

    def __call__(self, model: ir.Model) -> PassResult:
        self.requires(model)
        result = self.apply(model)
        self.ensures(result.model)
        return result
