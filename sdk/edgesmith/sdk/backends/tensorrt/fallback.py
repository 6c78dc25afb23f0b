"""No frame before the golden data: an engine is self-tested after a build and after an upgrade.

Where it fails: the engine that passed last, if it still loads and passes here; else, from a DLA, the same
graph on the GPU; else the next variant; else float. Which output diverged, by how much, and what runs now
goes to the log and to the state beside the cache, where ``verify`` and ``build`` find it. An engine that
failed is not tried again before the environment changes (TensorRT, driver, L4T) or it is asked for by
``edgesmith build --fresh``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from edgesmith.sdk.backends.base import Backend
from edgesmith.sdk.backends.tensorrt.build import Progress
from edgesmith.sdk.backends.tensorrt.cache import EngineCache
from edgesmith.sdk.backends.tensorrt.engine import (
    NOT_FOR_TENSORRT,
    calibrated,
    dla_variant,
    engine_key,
    ensure_engine,
)
from edgesmith.sdk.backends.tensorrt.library import Found
from edgesmith.sdk.backends.tensorrt.plan import BuildOptions, Engine
from edgesmith.sdk.backends.tensorrt.state import Divergence, Event, State, StateBook, now
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, BuildError, IncompatibleEngineError
from edgesmith.sdk.manifest import Manifest
from edgesmith.sdk.metrics import usual_budget
from edgesmith.sdk.selftest import SelfTest, backend_test

log = logging.getLogger(__name__)
# From the fastest kind to the safest: a fallback goes to the right.
PREFERENCE = ("auto", "int8", "int8-plain", "fp16", "float")
FLOAT = "float"
OpenEngine = Callable[[Engine], Backend]


class Problem(NamedTuple):
    """Why an engine does not run; ``divergence`` where it computes something else."""

    text: str
    digest: str = ""
    divergence: Divergence | None = None


@dataclass(frozen=True, kw_only=True)
class Device:
    """Everything that opening an engine needs to know of the place where it runs."""

    found: Found
    target: Target
    cache: EngineCache
    open_engine: OpenEngine
    progress: Progress | None = None


def open_checked(
    bundle: Bundle,
    variant: str | None,
    *,
    found: Found,
    target: Target,
    open_engine: OpenEngine,
    options: BuildOptions | None = None,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
) -> Backend:
    """A backend whose engine computes what the bundle says.

    Args:
        bundle: the opened bundle.
        variant: the graph to run; None lets the race's winner run, else the bundle's chosen one. Where it is
            named, only an older engine of the same variant takes its place.
        found, target: TensorRT and the device.
        open_engine: makes a backend of an engine; raises IncompatibleEngineError where it does not load.
        options: how to build; None is as ``edgesmith build`` was told, else the default.
        cache: where engines are kept; None is the user's cache.
        progress: is called with phase, step and number of steps of a build.
        fresh: build anew, and forget that an engine failed.

    Raises:
        BackendError: nothing runs that computes what the bundle says; the message has each reason.
    """
    cache = EngineCache() if cache is None else cache
    device = Device(found=found, target=target, cache=cache, open_engine=open_engine, progress=progress)
    book = StateBook(cache, bundle, target)
    state = book.read()
    options = options or state.options or BuildOptions(sparse=bundle.manifest.sparse)
    wanted = variant or state.choice or bundle.manifest.chosen
    if wanted not in bundle.manifest.variants or wanted in NOT_FOR_TENSORRT:
        # It says what is wrong with the name.
        engine_key(bundle, wanted, found=found, target=target, options=options)
    tried = _attempt(bundle, wanted, device, book, options, fresh=fresh)
    if not isinstance(tried, Problem):
        book.all_well()
        return tried
    exact = variant is not None
    backend, how, others = _instead(bundle, wanted, tried, device, book, options, exact=exact)
    event = Event(
        when=now(),
        wanted=wanted,
        problem=tried.text,
        in_use="" if backend is None else backend.variant,
        how=how,
        digest=tried.digest,
        divergence=tried.divergence,
        others=tuple(others),
    )
    known = state.rollback
    if known is None or (known.wanted, known.digest, known.in_use) != (wanted, tried.digest, event.in_use):
        book.rolled_back(event)
    if backend is None:
        raise BackendError(f"{bundle.path}: no engine computes what the bundle says: {event}")
    log.error("%s: %s", bundle.path.name, event)
    return backend


def rollback_of(bundle: Bundle, *, target: Target, cache: EngineCache | None = None) -> Event | None:
    """What was rolled back for this bundle here, as of its last load; None where what was wanted runs."""
    return StateBook(EngineCache() if cache is None else cache, bundle, target).read().rollback


def fallbacks(manifest: Manifest, wanted: str) -> Iterator[str]:
    """The variants that may take the place of one, in order; float is the last."""
    known = [name for name in PREFERENCE if name in manifest.variants]
    after = known[known.index(wanted) + 1 :] if wanted in known else known
    for name in after:
        if name == FLOAT or why_left_out(manifest, name) is None:
            yield name


def why_left_out(manifest: Manifest, variant: str) -> str | None:
    """Why a variant is no candidate whatever the device: its accuracy is outside the budget or not known."""
    if variant in NOT_FOR_TENSORRT:
        return "for x86 CPUs only"
    if variant in (FLOAT, manifest.chosen):
        return None  # float is what the others are measured against; the chosen one was accepted
    drop = manifest.variants[variant].measured.get("drop")
    if drop is None:
        return "its accuracy was not measured"
    budget = budget_of(manifest)
    return f"loses {drop:.2f} points, {budget:.2f} are allowed" if drop > budget else None


def budget_of(manifest: Manifest) -> float:
    """Points of accuracy (dB of PSNR) that the recipe allows to lose."""
    precision = manifest.provenance.recipe.get("precision")
    value = precision.get("max_drop") if isinstance(precision, dict) else None
    if isinstance(value, int | float):
        return float(value)
    return usual_budget("psnr" if "psnr" in manifest.measured else None)


def self_tested(bundle: Bundle, backend: Backend) -> tuple[SelfTest, Divergence | None]:
    """The golden data through a backend, and the output that is farthest outside its tolerance."""
    test = backend_test(bundle, backend)
    wrong = [check for check in test.outputs if not check.passed]
    if not wrong:
        return test, None if test.passed else Divergence(output="(none)", max_abs=float("inf"), tolerance=0.0)
    worst = max(wrong, key=lambda check: check.max_abs / (check.tolerance or 1e-12))
    return test, Divergence(output=worst.name, max_abs=worst.max_abs, tolerance=worst.tolerance)


def _attempt(
    bundle: Bundle,
    variant: str,
    device: Device,
    book: StateBook,
    options: BuildOptions,
    *,
    fresh: bool = False,
) -> Backend | Problem:
    """The variant's engine, built if needed and self-tested if needed."""
    if calibrated(device.found, options):
        variant = dla_variant(bundle)
    try:
        key = engine_key(bundle, variant, found=device.found, target=device.target, options=options)
    except BuildError as error:
        return Problem(str(error))
    before = None if fresh else book.read().failure(key.digest, book.environment)
    if before is not None:
        return Problem(str(before), key.digest, before.divergence)
    outcome: Backend | Problem = Problem("", key.digest)
    for anew in (fresh,) if fresh else (False, True):
        try:
            engine, built = _ensured(bundle, variant, device, book, options, fresh=anew)
        except BuildError as error:
            if error.lasting:
                book.failed(key.digest, variant, f"it could not be built before: {_first_line(error)}")
            return Problem(_first_line(error), key.digest)
        outcome = _opened(engine, device)
        if not isinstance(outcome, Problem):
            if not built and book.read().has_passed(engine.record, book.environment):
                return outcome
            problem = _judge(bundle, engine, outcome, book)
            if problem is None:
                return outcome
            outcome = problem
        if built:
            book.failed(
                key.digest, variant, outcome.text, engine=engine.record, divergence=outcome.divergence
            )
            return outcome
        # It lay in the cache and fits by its key: something that the key does not know has changed.
        log.warning("%s: building %s anew: %s", bundle.path.name, variant, outcome.text)
    return outcome


def _first_line(error: Exception) -> str:
    """The message without the builder's log."""
    return str(error).partition("\n")[0]


def _ensured(
    bundle: Bundle, variant: str, device: Device, book: StateBook, options: BuildOptions, *, fresh: bool
) -> tuple[Engine, bool]:
    return ensure_engine(
        bundle,
        variant,
        found=device.found,
        target=device.target,
        options=options,
        cache=device.cache,
        progress=device.progress,
        fresh=fresh,
        keep={verdict.digest for verdict in book.read().passed[:2]},
    )


def _opened(engine: Engine, device: Device) -> Backend | Problem:
    try:
        return device.open_engine(engine)
    except IncompatibleEngineError as error:
        return Problem(str(error), engine.record.key.digest)


def _judge(bundle: Bundle, engine: Engine, backend: Backend, book: StateBook) -> Problem | None:
    """Run the self-test; a backend that fails is closed."""
    digest = engine.record.key.digest
    try:
        _, divergence = self_tested(bundle, backend)
    except BackendError as error:
        backend.close()
        return Problem(f"the self-test could not run: {error}", digest)
    except BaseException:
        backend.close()
        raise
    if divergence is None:
        book.passed(engine.record)
        return None
    backend.close()
    return Problem(f"the self-test failed: {divergence}", digest, divergence)


def _instead(
    bundle: Bundle,
    wanted: str,
    problem: Problem,
    device: Device,
    book: StateBook,
    options: BuildOptions,
    *,
    exact: bool,
) -> tuple[Backend | None, str, list[str]]:
    """What runs in place of an engine that does not, more of it in words, and what else did not."""
    others: list[str] = []
    backend = _last_passed(bundle, device, book, book.read(), problem, wanted if exact else None, others)
    if backend is not None:
        return backend, "the engine that passed before", others
    names = [] if exact else list(fallbacks(bundle.manifest, wanted))
    place = ""
    if options.dla is not None:
        # Off the DLA first: what it computed is no verdict on the same graph on the GPU.
        options, place = msgspec.structs.replace(options, dla=None), "on the GPU"
        names.insert(0, wanted)
    for name in names:
        tried = _attempt(bundle, name, device, book, options)
        if not isinstance(tried, Problem):
            return tried, place, others
        others.append(f"{name}: {tried.text}")
    return None, "", others


def _last_passed(
    bundle: Bundle,
    device: Device,
    book: StateBook,
    state: State,
    problem: Problem,
    only: str | None,
    others: list[str],
) -> Backend | None:
    """The engine that passed last, if it is still there, loads, and passes here."""
    for verdict in state.passed:
        if verdict.digest == problem.digest or (only is not None and verdict.variant != only):
            continue
        if verdict.variant not in bundle.manifest.variants:
            continue
        if state.failure(verdict.digest, book.environment) is not None:
            continue
        engine, why = device.cache.stored(verdict.digest, device.target)
        backend = Problem(why) if engine is None else _opened(engine, device)
        if engine is None or isinstance(backend, Problem):
            said = backend.text if isinstance(backend, Problem) else why
            if not others:  # the newest one's reason will do: an upgrade ends them all
                others.append(f"the engine of {verdict.variant} that passed before does not load: {said}")
            continue
        if state.has_passed(engine.record, book.environment):
            return backend
        failed = _judge(bundle, engine, backend, book)
        if failed is None:
            return backend
        others.append(f"the engine of {verdict.variant} that passed before: {failed.text}")
    return None
