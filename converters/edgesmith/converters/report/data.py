"""What a report holds."""

from __future__ import annotations

import msgspec

from edgesmith.converters.compiled import CompiledGraph
from edgesmith.converters.parity import Parity
from edgesmith.converters.report.compression import CompressionReport
from edgesmith.converters.report.precision import PrecisionReport
from edgesmith.sdk.manifest import Manifest


class Tensors(msgspec.Struct, frozen=True, kw_only=True):
    """Constants of the graph: how many, and how many numbers in all."""

    count: int
    values: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found out about a conversion; ``report.json`` is this struct.

    ``exported`` compares the final graph with the model that was brought, ``simplified`` with the
    graph before it was simplified. ``images`` says which images were used. ``stages_s`` in seconds.
    ``compiled`` is empty where the compiler was not installed; ``precision`` is None where the graph is
    float32 alone, ``compression`` where nothing was trained.
    """

    manifest: Manifest
    head: str
    notes: tuple[str, ...]
    images: str
    exported: Parity
    simplified: Parity
    metric: str | None
    measured_images: int
    faults: tuple[str, ...]
    operators: dict[str, int]
    weights: Tensors
    sizes_bytes: dict[str, int]
    stages_s: dict[str, float]
    compiled: tuple[CompiledGraph, ...] = ()
    precision: PrecisionReport | None = None
    compression: CompressionReport | None = None

    def json(self) -> bytes:
        """The struct as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)
