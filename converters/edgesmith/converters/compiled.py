"""A bundle's graphs through the compile check, and what the report says of it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping

import msgspec
import onnx

from edgesmith.converters import compile_check
from edgesmith.converters.passes.base import WEIGHTED
from edgesmith.sdk.manifest import Batch

log = logging.getLogger(__name__)


class CompiledGraph(msgspec.Struct, frozen=True, kw_only=True):
    """One variant compiled for compute capability 8.6, without a GPU.

    ``outcome`` as in :class:`~edgesmith.converters.compile_check.CompileReport`; ``meant`` counts the layers
    that were quantized, ``float_instead`` names those of them that run otherwise; ``note`` is the message of
    a graph that this compiler alone refuses.
    """

    variant: str
    outcome: str
    version: str = ""
    seconds: float = 0.0
    layers: int = 0
    meant: int = 0
    float_instead: tuple[str, ...] = ()
    note: str = ""


def compiled_graphs(
    graphs: Mapping[str, onnx.ModelProto], *, batch: Batch, size: tuple[int, int] | None
) -> tuple[CompiledGraph, ...]:
    """Compile each graph; a layer that was quantized and falls to float is named in the log.

    Empty where the compiler is not installed.

    Raises:
        UnsupportedOperatorError: TensorRT lacks an operator of a graph.
        ExportError: a graph is refused for another reason.
    """
    if not installed():
        log.info("graphs are not compiled: pip install 'edgesmith[trt-check]'")
        return ()
    found = []
    for name, model in graphs.items():
        meant = quantized_layers(model)
        report = compile_check.compile_check(
            model.SerializeToString(), meant_int8=meant, batch=batch, size=size or (640, 640)
        )
        if report.outcome == "not-installed":
            return ()
        report.require(placement=False)
        for layer in report.float_instead:
            log.warning("variant %s: %s, though it was quantized", name, layer)
        found.append(
            CompiledGraph(
                variant=name,
                outcome=report.outcome,
                version=report.version,
                seconds=round(report.seconds, 3),
                layers=report.layers,
                meant=len(meant),
                float_instead=tuple(str(layer) for layer in report.float_instead),
                note=str(report.errors[0]) if report.errors else "",
            )
        )
    return tuple(found)


def installed() -> bool:
    """Whether the compiler is there."""
    return importlib.util.find_spec(compile_check.PACKAGE) is not None


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the weighted nodes whose data and weight both come out of a DequantizeLinear."""
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and all(made.get(name) == "DequantizeLinear" for name in node.input[:2])
    ]
