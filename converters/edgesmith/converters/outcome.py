"""What a conversion gave."""

from __future__ import annotations

import msgspec

from edgesmith.converters.report.compression import StageReport

Number = float  # the report has a field of that name


class KeptFloat(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that stays in float, the module it came from, and why."""

    node: str
    module: str | None
    why: str


class ConvertReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion gave; the keys of ``convert --json``.

    ``float`` and ``chosen`` are the accuracies of the float graph and of the chosen one by ``metric``
    (percent), None without labelled images; ``drop`` is in points with its 95 % ``interval``.
    ``int8_macs_share`` is of all convolutions and matrix products. ``refused`` is None or the reason.
    ``parity`` holds the figures against the model that was brought (after its training stages, where there
    are ``stages``).
    """

    bundle: str | None
    precision: str
    metric: str | None = None
    float: Number | None = None
    chosen: Number | None = None
    drop: Number | None = None
    interval: tuple[Number, Number] | None = None
    int8_macs_share: Number = 0.0
    kept_float: tuple[KeptFloat, ...] = ()
    evaluations: int = 0
    seconds: Number = 0.0
    refused: str | None = None
    task: str
    size_bytes: int = 0
    parity: dict[str, Number] = {}
    stages: tuple[StageReport, ...] = ()
