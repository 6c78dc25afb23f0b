"""What the training stages came to: the report's section on them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgesmith.converters.report.against_float import processor_name
from edgesmith.converters.training.curves import Curves


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A network after one stage.

    ``accuracy`` in percent by ``metric``, None without labelled images. ``macs`` of one image, ``latency_ms``
    of the float graph in onnxruntime on one core (median), ``size_bytes`` of the graph's file.
    """

    metric: str | None
    accuracy: float | None
    macs: int
    parameters: int
    latency_ms: float
    size_bytes: int


class Width(msgspec.Struct, frozen=True, kw_only=True):
    """A layer's output channels before and after pruning."""

    layer: str
    before: int
    after: int


class KeptWhole(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that kept all its channels, and why; ``channels`` of it and of all that goes with it."""

    layer: str
    channels: int
    why: str


class SparseLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer in 2:4: share of its weights' size that was kept, with and without permuted channels."""

    layer: str
    kept: float
    unpermuted: float


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: ``trained`` (as the model was brought), ``prune``, ``distill`` or ``qat``.

    ``note`` says in words what was done; ``cached`` whether it was taken from an earlier run.
    """

    name: str
    note: str
    figures: Figures | None
    seconds: float
    cached: bool = False
    curves: tuple[Curves, ...] = ()
    widths: tuple[Width, ...] = ()
    whole: tuple[KeptWhole, ...] = ()
    sparse: tuple[SparseLayer, ...] = ()


class CompressionReport(msgspec.Struct, frozen=True, kw_only=True):
    """All stages in order; ``processor`` is what the latencies were measured on."""

    stages: tuple[StageReport, ...]
    processor: str


def compression_of(stages: Sequence[StageReport]) -> CompressionReport | None:
    """The report of some stages, None where there are none."""
    return CompressionReport(stages=tuple(stages), processor=processor_name()) if stages else None
