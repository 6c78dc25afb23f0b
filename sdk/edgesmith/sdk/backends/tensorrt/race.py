"""The device decides: the variants that fit are built, self-tested, timed in turns, and the fastest is kept.

INT8 that loses to FP16 is common: small or depthwise networks spend more on quantizing than they save.
Nothing but a measurement on the device at hand tells.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.backends.base import Backend
from edgesmith.sdk.backends.tensorrt.build import Progress
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.engine import ensure_engine
from edgesmith.sdk.backends.tensorrt.fallback import (
    PREFERENCE,
    OpenEngine,
    self_tested,
    why_left_out,
)
from edgesmith.sdk.backends.tensorrt.library import Found
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions
from edgesmith.sdk.backends.tensorrt.state import Race, RaceLine, StateBook, now
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError
from edgesmith.sdk.manifest import Manifest
from edgesmith.sdk.percentiles import percentiles
from edgesmith.sdk.preprocess import prepared
from edgesmith.sdk.selftest import golden_pictures

log = logging.getLogger(__name__)
ROUNDS, RUNS, WARMUP_RUNS = 40, 5, 10
# All variants slower by this much in the race's last third than in its first: the board slows itself down.
SLOWER = 1.15
Clock = Callable[[], int]
# What integer and half-precision variants need of the hardware, as a device profile names it.
NEEDS = {"int8": "int8", "int8-plain": "int8", "fp16": "fp16"}


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The board at one moment; None where it does not tell."""

    power_mode: str = ""
    clock_mhz: float | None = None
    throttled: bool | None = None


def unknown() -> Conditions:
    """For a machine that tells nothing of itself."""
    return Conditions()


def candidates(manifest: Manifest, precisions: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The variants that race, and by name why the others do not.

    ``precisions``: what the device computes in (``fp32``, ``fp16``, ``int8``); None where that is not known.
    """
    left_out: dict[str, str] = {}
    names = []
    for name in sorted(manifest.variants, key=_rank):
        why = why_left_out(manifest, name)
        needed = NEEDS.get(name) or NEEDS.get(manifest.variants[name].precision)
        if why is None and precisions is not None and needed is not None and needed not in precisions:
            why = f"the device does not compute in {needed}"
        if why is None:
            names.append(name)
        else:
            left_out[name] = why
    return names, left_out


def race(
    bundle: Bundle,
    *,
    found: Found,
    target: Target,
    open_engine: OpenEngine,
    options: BuildOptions | None = None,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    precisions: Sequence[str] | None = None,
    watch: Callable[[], Conditions] = unknown,
    rounds: int = ROUNDS,
    clock: Clock = time.perf_counter_ns,
) -> Race:
    """Build, self-test and time the bundle's variants; the fastest runs from now on where none is asked for.

    Args:
        bundle: the opened bundle.
        found, target, open_engine, options, cache, progress: as for
            :func:`~edgesmith.sdk.backends.tensorrt.fallback.open_checked`.
        precisions: what the device computes in.
        watch: looks at the board: before, between the rounds, after.
        rounds: how often each variant has its turn.
        clock: nanoseconds.

    Returns:
        The race; ``winner`` is None, and nothing changes, where the board throttled meanwhile.

    Raises:
        BackendError: no variant runs.
    """
    cache = EngineCache() if cache is None else cache
    book = StateBook(cache, bundle, target)
    options = options or book.read().options or BuildOptions(sparse=bundle.manifest.sparse)
    names, left_out = candidates(bundle.manifest, precisions)
    lines = {name: RaceLine(variant=name, out=why) for name, why in left_out.items()}
    with contextlib.ExitStack() as stack:
        runners: dict[str, Backend] = {}
        for name in names:
            entry = _entered(bundle, name, found, target, open_engine, options, cache, progress, book, names)
            if isinstance(entry, RaceLine):
                lines[name] = entry
                continue
            backend, lines[name] = entry
            stack.callback(backend.close)
            runners[name] = backend
        if not runners:
            raise BackendError(
                f"{bundle.path}: no variant runs here: "
                + "; ".join(f"{line.variant}: {line.out}" for line in lines.values())
            )
        before = watch()
        times, seen = _timed(runners, _batch(bundle), rounds, clock, watch)
    for name, spent in times.items():
        figures = percentiles([ns / 1e6 for ns in spent])
        lines[name] = msgspec.structs.replace(lines[name], p50_ms=figures["p50"], p90_ms=figures["p90"])
    result = _judged(bundle, lines, times, before, seen)
    book.change(
        lambda state: msgspec.structs.replace(
            state, race=result, choice=result.winner or state.choice, options=options
        )
    )
    return result


def _entered(
    bundle: Bundle,
    name: str,
    found: Found,
    target: Target,
    open_engine: OpenEngine,
    options: BuildOptions,
    cache: EngineCache,
    progress: Progress | None,
    book: StateBook,
    names: Sequence[str],
) -> tuple[Backend, RaceLine] | RaceLine:
    """A variant that is built and passed its self-test, or its line with the reason why it does not run."""
    drop = bundle.manifest.variants[name].measured.get("drop")
    try:
        engine, _ = ensure_engine(
            bundle, name, found=found, target=target, options=options, cache=cache, progress=progress
        )
        backend = open_engine(engine)
    except BackendError as error:
        log.warning("%s: %s does not race: %s", bundle.path.name, name, error)
        return RaceLine(variant=name, drop=drop, out=str(error))
    try:
        _, divergence = self_tested(bundle, backend)
    except BackendError as error:
        backend.close()
        return RaceLine(variant=name, drop=drop, out=f"the self-test could not run: {error}")
    if divergence is not None:
        backend.close()
        book.failed(
            engine.record.key.digest,
            name,
            f"the self-test failed: {divergence}",
            engine=engine.record,
            divergence=divergence,
        )
        log.warning("%s: %s does not race: the self-test failed: %s", bundle.path.name, name, divergence)
        return RaceLine(variant=name, drop=drop, out=f"the self-test failed: {divergence}")
    book.passed(engine.record)
    record = engine.record
    return backend, RaceLine(variant=name, drop=drop, build_s=record.seconds, plan_bytes=record.plan_bytes)


def _timed(
    runners: Mapping[str, Backend],
    batch: NDArray[Any],
    rounds: int,
    clock: Clock,
    watch: Callable[[], Conditions],
) -> tuple[dict[str, list[int]], list[Conditions]]:
    """Nanoseconds of each run by variant: in turns, the first one another each round."""
    for backend in runners.values():
        for _ in range(WARMUP_RUNS):
            backend.run(batch)
    order = list(runners)
    times: dict[str, list[int]] = {name: [] for name in order}
    seen = []
    for _ in range(rounds):
        for name in order:
            for _ in range(RUNS):
                begun = clock()
                runners[name].run(batch)
                times[name].append(clock() - begun)
        order.append(order.pop(0))
        seen.append(watch())
    return times, seen


def _judged(
    bundle: Bundle,
    lines: Mapping[str, RaceLine],
    times: Mapping[str, Sequence[int]],
    before: Conditions,
    seen: Sequence[Conditions],
) -> Race:
    ranked = sorted(times, key=lambda name: lines[name].p50_ms or 0.0)
    notes = []
    modes = {c.power_mode for c in (before, *seen)}
    throttled: bool | None = None
    if any(c.throttled is not None for c in (before, *seen)):
        throttled = any(c.throttled for c in (before, *seen))
    slower = min(_slowdown(spent) for spent in times.values())
    if throttled:
        notes.append("invalid: the board throttled; cool it or lower its power mode, and race again")
    elif slower >= SLOWER:
        throttled = True
        notes.append(
            f"invalid: every variant became {100 * (slower - 1):.0f} % slower meanwhile, as on a board that "
            "throttles; cool it, lock the clocks (sudo jetson_clocks), and race again"
        )
    if len(modes) > 1:
        notes.append(f"invalid: the power mode changed meanwhile ({', '.join(sorted(modes))})")
    winner = None if notes else ranked[0]
    if winner is not None:
        notes += _lost_to(lines, times)
    for note in notes:
        log.warning("%s: %s", bundle.path.name, note)
    clocks = [c.clock_mhz for c in seen if c.clock_mhz is not None]
    order = [*ranked, *(name for name in lines if name not in times)]
    return Race(
        when=now(),
        winner=winner,
        lines=tuple(lines[name] for name in order),
        power_mode=before.power_mode,
        clock_mhz=statistics.median(clocks) if clocks else before.clock_mhz,
        throttled=throttled,
        notes=tuple(notes),
    )


def _slowdown(spent: Sequence[int]) -> float:
    """Median of the last third over that of the first."""
    third = max(1, len(spent) // 3)
    return statistics.median(spent[-third:]) / max(1.0, statistics.median(spent[:third]))


def _lost_to(lines: Mapping[str, RaceLine], times: Mapping[str, Sequence[int]]) -> list[str]:
    """INT8 that brings nothing, in words."""
    halves = [name for name in ("fp16", "float") if name in times]
    if not halves:
        return []
    best = min(halves, key=lambda name: lines[name].p50_ms or 0.0)
    base = lines[best].p50_ms or 0.0
    return [
        f"{name} ({lines[name].p50_ms:.2f} ms) is slower here than {best} ({base:.2f} ms)"
        for name in ("auto", "int8", "int8-plain")
        if name in times and (lines[name].p50_ms or 0.0) > base
    ]


def _batch(bundle: Bundle) -> NDArray[Any]:
    """The batch that the engine is made for, of golden pictures."""
    rows = [prepared(bundle.manifest.preprocess, picture)[0] for picture in golden_pictures(bundle)]
    count = bundle.manifest.batch.opt
    return np.concatenate([rows[n % len(rows)] for n in range(count)])


def _rank(name: str) -> int:
    return PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE)
