"""The variant ``x86`` of a quantized model: built, compared with the float model, raced against it here.

An x86 CPU with VNNI multiplies and sums bytes in one instruction; one without it does not, and there uint8
rarely beats float. What a race on the one says is not true of the other, so the variant is taken only where
a CPU with VNNI measured it faster, and the runtime takes it only on such CPUs.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.converters.passes.base import Declined
from edgesmith.converters.passes.x86 import X86
from edgesmith.converters.precision.agreement import Agreement
from edgesmith.converters.precision.ranges import channel_ranges
from edgesmith.converters.precision.trial import POINTS, Workbench
from edgesmith.converters.runners import Runner, graph_runner
from edgesmith.sdk.backends.processor import has_integer_products

log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
RANGE_IMAGES = 32
# How much less near to the float model than the INT8 graph it may be: points of agreement for detectors
# and segmenters, dB for others. With a Q behind each layer as well there is more to round.
MARGIN = {"detect": 5.0, "segment": 2.0}
OTHER_MARGIN = 3.0
RACE_S = 3.0
LEAST_ROUNDS, MOST_ROUNDS = 15, 300


@dataclass(frozen=True)
class Race:
    """Two graphs timed in turns on one thread.

    ``float_ms`` and ``x86_ms`` are medians; ``ratio`` is the median over the rounds of x86's time over
    float's, ``spread`` its lower and upper quartile.
    """

    float_ms: float
    x86_ms: float
    ratio: float
    spread: tuple[float, float]
    rounds: int

    @property
    def won(self) -> bool:
        """Faster in three rounds of four, not by chance."""
        return self.spread[1] < 1.0


@dataclass(frozen=True, eq=False)
class X86Variant:
    """The CPU's graph and what is known of it.

    ``wins`` says whether it belongs into the bundle and CPUs with VNNI shall run it; where not, ``reason``
    says why and CPUs run float. ``vnni`` tells whether the race was run on a CPU that has VNNI. ``race`` is
    None where there was nothing to race. ``declined`` are places that stay in float.
    """

    graph: onnx.ModelProto
    agreement: Agreement
    int8: Agreement
    vnni: bool
    race: Race | None
    wins: bool
    reason: str | None
    declined: tuple[Declined, ...] = ()


def x86_variant(
    bench: Workbench, int8: onnx.ModelProto, calibration: Sequence[Floats], *, vnni: bool | None = None
) -> X86Variant:
    """Build the CPU's graph from the INT8 one, and find out whether it is near enough and fast enough.

    Args:
        bench: the float graph, and what graphs are compared on.
        int8: the quantized graph that was decided on, before anything in it is FP16.
        calibration: tensors ``(1, C, H, W)`` of calibration images; some are run for ranges.
        vnni: whether this CPU has VNNI; None looks.

    Raises:
        ExportError: a graph does not run.
    """
    if vnni is None:
        vnni = has_integer_products()
    ranges = channel_ranges(bench.exact, calibration[:RANGE_IMAGES])
    result = X86(ranges)(ir.serde.deserialize_model(int8))
    graph = ir.to_proto(result.model)
    reference = bench.compare(int8)
    if not result.modified:
        return X86Variant(
            graph, reference, reference, vnni, None, False, "no layer of it is in INT8", result.declined
        )  # fmt: skip
    found = bench.compare(graph)
    tensor = np.repeat(calibration[0], bench.batch.min, 0)
    raced = race(bench.exact, graph, tensor)
    reason = _reason(bench, reference, found, raced, vnni)
    log.info("x86: %.2f times float's time; %s", raced.ratio, reason or "taken")
    return X86Variant(graph, found, reference, vnni, raced, reason is None, reason, result.declined)


def race(exact: onnx.ModelProto, x86: onnx.ModelProto, tensor: Floats, *, seconds: float = RACE_S) -> Race:
    """Time both graphs on one thread, in turns, so that what disturbs the machine falls on both alike."""
    runners = {"float": graph_runner(exact, threads=1), "x86": graph_runner(x86, threads=1)}
    spent = in_turns(runners, tensor, seconds=seconds)
    ratios = [b / a for a, b in zip(spent["float"], spent["x86"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Race(
        float_ms=statistics.median(spent["float"]),
        x86_ms=statistics.median(spent["x86"]),
        ratio=statistics.median(ratios),
        spread=(low, high),
        rounds=len(ratios),
    )


def in_turns(runners: Mapping[str, Runner], tensor: Floats, *, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each round by name; the order turns round by round, the first round warms up."""
    for run in runners.values():
        run(tensor)
    spent: dict[str, list[float]] = {name: [] for name in runners}
    began, number = time.perf_counter(), 0
    while number < LEAST_ROUNDS or (number < MOST_ROUNDS and time.perf_counter() - began < seconds):
        for name in list(runners)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter_ns()
            runners[name](tensor)
            spent[name].append((time.perf_counter_ns() - start) / 1e6)
        number += 1
    return spent


def _reason(bench: Workbench, int8: Agreement, found: Agreement, raced: Race, vnni: bool) -> str | None:
    """Why CPUs run float instead, None where they need not."""
    margin = MARGIN.get(bench.task, OTHER_MARGIN)
    near, reference = bench.nearness(found), bench.nearness(int8)
    if near < reference - margin:
        unit = "points of agreement with float" if bench.task in POINTS else "dB of signal to noise"
        return (
            f"with a rounding behind each layer as well it has {near:.1f} {unit}, INT8 has {reference:.1f}: "
            f"more than {margin:g} less"
        )
    if not vnni:
        return (
            f"this CPU has no VNNI ({raced.ratio:.2f} times float's time on it), which says nothing of one "
            "that has it: convert on a CPU with VNNI to have the variant measured"
        )
    if not raced.won:
        low, high = raced.spread
        return (
            f"it takes {raced.ratio:.2f} times float's time ({low:.2f} to {high:.2f} in the middle half of "
            f"{raced.rounds} rounds): not reliably less"
        )
    return None
