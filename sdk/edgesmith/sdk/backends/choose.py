"""Which backend runs a bundle on this machine."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable

from edgesmith.sdk.backends.base import Backend, Options
from edgesmith.sdk.backends.processor import ReadFlags, has_integer_products, processor_flags
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, ConfigError
from edgesmith.sdk.manifest import Manifest

log = logging.getLogger(__name__)

# In the order that ``auto`` tries them. Each module has `open_NAME(bundle, variant, options)` and
# `NAME_unavailable()`, which gives the reason why this machine cannot have it, or None.
BACKENDS: dict[str, str] = {
    "cuda": "edgesmith.sdk.backends.onnxruntime",
    "cpu": "edgesmith.sdk.backends.onnxruntime",
}
X86 = "x86"  # the variant with uint8 activations


def open_backend(
    bundle: Bundle, *, backend: str = "auto", variant: str | None = None, options: Options
) -> Backend:
    """Load one variant of the bundle.

    ``auto`` takes the first backend that this machine has and that really runs: one that is
    installed but falls back to something else is passed over with one line in the log.

    Raises:
        ConfigError: there is no such backend or variant.
        BackendError: the backend that was asked for does not run here.
    """
    if variant is not None and variant not in bundle.manifest.variants:
        known = ", ".join(bundle.manifest.variants)
        raise ConfigError(f"{bundle.path}: no variant {variant!r}; the bundle has {known}")
    if backend != "auto":
        if backend not in BACKENDS:
            raise ConfigError(f"no backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
        reason = unavailable(backend)
        if reason is not None:
            raise BackendError(f"backend {backend!r} cannot run here: {reason}")
        return _opened(backend, bundle, variant, options)
    reasons = []
    for name in BACKENDS:
        reason = unavailable(name)
        if reason is None:
            try:
                return _opened(name, bundle, variant, options)
            except BackendError as error:
                log.warning("%s; trying the next backend", error)
                reason = str(error)
        reasons.append(f"{name}: {reason}")
    raise BackendError("no backend can run this bundle here. " + "; ".join(reasons))


def unavailable(name: str) -> str | None:
    """Why this machine cannot have the backend, or None."""
    check: Callable[[], str | None] = getattr(importlib.import_module(BACKENDS[name]), f"{name}_unavailable")
    return check()


def _opened(name: str, bundle: Bundle, variant: str | None, options: Options) -> Backend:
    opener: Callable[[Bundle, str, Options], Backend] = getattr(
        importlib.import_module(BACKENDS[name]), f"open_{name}"
    )
    manifest = bundle.manifest
    usual = cpu_variant(manifest) if name == "cpu" else manifest.chosen
    return opener(bundle, variant or usual, options)


def cpu_variant(manifest: Manifest, read: ReadFlags = processor_flags) -> str:
    """The variant that this CPU runs: the manifest's, or float where that one needs what this CPU lacks.

    ``x86`` was measured faster than float on a CPU with VNNI; without it nothing says that it is.
    """
    usual = manifest.cpu or manifest.chosen
    if usual == X86 and "float" in manifest.variants and not has_integer_products(read):
        return "float"
    return usual
