"""An engine for a bundle's variant: from the cache where it fits, else built, once on the machine."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Collection
from datetime import datetime, timezone

from edgesmith.sdk.backends.tensorrt.build import Progress, build_engine, emptied
from edgesmith.sdk.backends.tensorrt.cache import ABSENT, EngineCache
from edgesmith.sdk.backends.tensorrt.dla import needs_calibration
from edgesmith.sdk.backends.tensorrt.library import Found
from edgesmith.sdk.backends.tensorrt.plan import (
    DLA_CACHE,
    DLA_GRAPH,
    BuildOptions,
    Engine,
    EngineKey,
    EngineRecord,
    check_header,
    identity,
    key_of,
)
from edgesmith.sdk.backends.tensorrt.target import Target
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BuildError, ConfigError, IncompatibleEngineError

log = logging.getLogger(__name__)
NOT_FOR_TENSORRT = ("x86",)
# Graphs of the bundle whose golden data fits what the old road to the DLA computes, the best first.
DLA_VARIANTS = ("int8-plain", "int8", "auto", "float")


def ensure_engine(
    bundle: Bundle,
    variant: str,
    *,
    found: Found,
    target: Target,
    options: BuildOptions,
    cache: EngineCache,
    progress: Progress | None = None,
    fresh: bool = False,
    keep: Collection[str] = (),
) -> tuple[Engine, bool]:
    """The engine of one variant, and whether it was built just now.

    Processes that ask together build once: the others wait, at most as long as a build may take.

    Args:
        bundle: the opened bundle.
        variant: one of its graphs.
        found: TensorRT.
        target: the device.
        options: how to build.
        cache: where engines are kept.
        progress: is called with phase, step and number of steps.
        fresh: build even where there is one.
        keep: digests of engines that eviction spares.

    Raises:
        BuildError: it cannot be built.
        ConfigError: the bundle has no such variant, or it is not one for TensorRT.
    """
    key = engine_key(bundle, variant, found=found, target=target, options=options)
    if not fresh:
        engine, _ = cache.load(key, target)
        if engine is not None:
            return engine, False
    try:
        waiting = f"{bundle.path.name}: another process is building the engine of {variant}: waiting for it"
        with cache.locked(key.digest, options.timeout_s, waiting=waiting):
            engine, why = cache.load(key, target)
            if engine is not None and not fresh:
                return engine, False
            if why == ABSENT:
                why = cache.why_absent(key, identity(bundle), variant)
            # Minutes on a small board: said unless somebody watches the progress anyway.
            level = logging.WARNING if progress is None or why != ABSENT else logging.INFO
            hint = " (minutes; `edgesmith build` does it beforehand)" if why == ABSENT else ""
            said = (why or "asked for") + hint
            log.log(level, "%s: building the engine of %s: %s", bundle.path.name, variant, said)
            engine = _build(bundle, variant, key, found, target, options, cache, progress)
    except TimeoutError as error:
        raise BuildError(f"{error}, for more than {options.timeout_s:g} s: end it, or wait for it") from error
    cache.evict({key.digest, *keep})
    return engine, True


def engine_key(
    bundle: Bundle, variant: str, *, found: Found, target: Target, options: BuildOptions
) -> EngineKey:
    """The key of a variant's engine on this device.

    Raises:
        ConfigError: the bundle has no such variant, or it is not one for TensorRT.
        BuildError: the bundle lacks what the DLA needs.
    """
    if variant not in bundle.manifest.variants:
        raise ConfigError(
            f"{bundle.path}: no variant {variant!r}; the bundle has {', '.join(bundle.manifest.variants)}"
        )
    if variant in NOT_FOR_TENSORRT:
        raise ConfigError(f"{bundle.path}: variant {variant!r} is for x86 CPUs, TensorRT does not take it")
    return key_of(bundle, variant, target, options, calibrated=calibrated(found, options))


def calibrated(found: Found, options: BuildOptions) -> bool:
    """Whether the engine comes from the stripped graph and the calibration cache."""
    return options.dla is not None and needs_calibration(found.require())


def dla_variant(bundle: Bundle) -> str:
    """The variant whose golden data a calibrated DLA engine is held against."""
    return next((v for v in DLA_VARIANTS if v in bundle.manifest.variants), bundle.manifest.chosen)


def _build(
    bundle: Bundle,
    variant: str,
    key: EngineKey,
    found: Found,
    target: Target,
    options: BuildOptions,
    cache: EngineCache,
    progress: Progress | None,
) -> Engine:
    manifest = bundle.manifest
    old_road = calibrated(found, options)
    graph = bundle.read(DLA_GRAPH if old_road else manifest.variants[variant].member)
    folder = emptied(cache.building(key.digest))
    try:
        built = build_engine(
            graph,
            folder,
            library=found.spec,
            options=options,
            batch=key.batch,
            size=manifest.preprocess.size,
            shared_memory=target.shared_memory,
            calibration=bundle.read(DLA_CACHE) if old_road else None,
            timing=cache.timing(target),
            progress=progress,
        )
        plan = built.plan.read_bytes()
        try:
            check_header(plan, target, version_compatible=options.version_compatible)
        except IncompatibleEngineError as error:
            # An empty plan, for one: TensorRT 10.16 gives such at low levels (seen on small boards).
            text = f"TensorRT {built.version} built {len(plan):,} bytes that are no engine for it: {error}"
            raise BuildError(text, lasting=True) from error
        record = EngineRecord(
            key=key,
            bundle=identity(bundle),
            variant=variant,
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            plan_bytes=len(plan),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=round(built.seconds, 3),
            workspace_bytes=built.workspace_bytes,
            notes=built.notes,
            coverage=built.coverage,
        )
        cache.store(record, built.plan)
        if built.timing is not None:
            cache.store_timing(target, built.timing.read_bytes())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Engine(plan, record)
