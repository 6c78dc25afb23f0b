"""What a report says of a decision on precision; ``report.json`` holds this struct under ``precision``.

Drops are in points and positive where something was lost; sizes in bytes; ratios in dB, None where a layer
is exact.
"""

from __future__ import annotations

import msgspec

from edgesmith.sdk.manifest import Task

Interval = tuple[float, float]


class VariantFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One graph against the float one.

    ``values`` are its figures by name in percent, empty where it was not measured. ``in_bundle`` is False
    for a graph that was measured beside the chosen one and is not shipped; its size may be unknown (None).
    """

    name: str
    chosen: bool
    in_bundle: bool
    size_bytes: int | None
    values: dict[str, float] = {}
    drop: float | None = None
    interval: Interval | None = None
    agreement: float | None = None
    flipped: int | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None


class TrialFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One way of quantizing on the search images: ``same`` in percent, ``decibels`` of the outputs."""

    repairs: tuple[str, ...]
    method: str
    same: float
    decibels: float | None
    flipped: int
    decisions: int
    taken: bool


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the verdict with so many layers given back to float; ``share`` 0..1 of the arithmetic."""

    float_layers: int
    drop: float
    interval: Interval
    share: float


class LayerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One quantized layer, in execution order: its signal-to-noise ratio, and its share of the arithmetic.

    ``returned`` is True where it was given back to float afterwards.
    """

    node: str
    module: str | None
    decibels: float | None
    macs: int
    returned: bool = False


class TensorScales(msgspec.Struct, frozen=True, kw_only=True):
    """One activation: its extremes, the window of each method, what was used.

    ``used`` are the values that the integers cover, divided by the factor of each channel where
    ``factored``; ``outside`` is the share (0..1) of values beyond the symmetric window, by method.
    """

    tensor: str
    reader: str
    low: float
    high: float
    windows: dict[str, Interval]
    outside: dict[str, float]
    used: Interval
    factored: bool


class FloatLayers(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that stay in float for one reason; ``layers`` are module paths, or node names without one."""

    why: str
    layers: tuple[str, ...]


class ScoreHistogram(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of a detector's boxes after suppression, float against chosen, on the search images.

    ``edges`` has one entry more than the counts. ``recommended`` is the threshold for the chosen graph,
    ``f1_there`` and ``f1_same`` (0..1) the agreement with the float model's detections at it and at the
    float model's own ``threshold``.
    """

    edges: tuple[float, ...]
    exact: tuple[int, ...]
    chosen: tuple[int, ...]
    threshold: float
    recommended: float
    f1_same: float
    f1_there: float
    found_exact: int
    found_same: int
    found_there: int


class WorstImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image on which both graphs differ much: in what, told in words."""

    name: str
    difference: str


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one run by graph, measured in turns on this machine's processor, ``threads`` of it."""

    processor: str
    threads: int
    runs: int
    p50_ms: dict[str, float]
    p90_ms: dict[str, float]


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """A decision on precision and all that it rests on.

    ``variants`` begins with the float graph. ``share`` (0..1) of the multiply-accumulates is INT8.
    ``metric`` is None where nothing was measured; ``labelled`` tells a metric against labels from one
    against the float model's own answers. ``images`` counts those of the verdict, ``search_images`` and
    ``calibration_images`` the other two sets. ``repairs`` and ``method`` are None where nothing is INT8.
    ``cpu`` says in words which graph CPUs run and why.
    """

    task: Task
    mode: str
    chosen: str
    budget: float
    share: float
    metric: str | None
    labelled: bool
    images: int
    search_images: int
    calibration_images: int
    faults: tuple[str, ...]
    variants: tuple[VariantFigures, ...]
    repairs: tuple[str, ...] | None
    method: str | None
    trials: tuple[TrialFigures, ...]
    curve: tuple[CurvePoint, ...]
    layers: tuple[LayerFigures, ...]
    scales: tuple[TensorScales, ...]
    kept_float: tuple[FloatLayers, ...]
    warnings: tuple[str, ...]
    scores: ScoreHistogram | None
    worst: tuple[WorstImage, ...]
    latency: Latency
    cpu: str

    @property
    def verdict(self) -> VariantFigures | None:
        """The chosen graph's figures, where it was measured."""
        found = next(v for v in self.variants if v.chosen)
        return found if found.drop is not None else None
