"""Which backend runs a bundle on this machine."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgesmith.sdk.backends.base import Backend, Options
from edgesmith.sdk.backends.processor import ReadFlags, has_integer_products, processor_flags
from edgesmith.sdk.backends.tensorrt.target import no_driver
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, ConfigError
from edgesmith.sdk.manifest import Manifest

log = logging.getLogger(__name__)

# In the order that ``auto`` tries them. Each module has `open_NAME(bundle, variant, options)` and
# `NAME_unavailable()`, which gives the reason why this machine cannot have it, or None.
BACKENDS: dict[str, str] = {
    "tensorrt": "edgesmith.sdk.backends.tensorrt.run",
    "cuda": "edgesmith.sdk.backends.onnxruntime",
    "cpu": "edgesmith.sdk.backends.onnxruntime",
}
# Only where it is asked for: TensorRT inside of onnxruntime builds without our cache and self-test.
BY_NAME: dict[str, str] = {"tensorrt-ep": "edgesmith.sdk.backends.onnxruntime"}
X86 = "x86"  # the variant with uint8 activations


@dataclass(frozen=True)
class Chosen:
    """A backend, and those that ``auto`` tried before it: each with the reason why it was not taken."""

    backend: Backend
    passed_over: tuple[tuple[str, str], ...] = ()


def open_backend(
    bundle: Bundle, *, backend: str = "auto", variant: str | None = None, options: Options
) -> Backend:
    """The backend of :func:`choose_backend` alone."""
    return choose_backend(bundle, backend=backend, variant=variant, options=options).backend


def choose_backend(
    bundle: Bundle, *, backend: str = "auto", variant: str | None = None, options: Options
) -> Chosen:
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
        if backend not in BACKENDS and backend not in BY_NAME:
            known = ", ".join(["auto", *BACKENDS, *BY_NAME])
            raise ConfigError(f"no backend {backend!r}; there are {known}")
        reason = unavailable(backend)
        if reason is not None:
            raise BackendError(f"backend {backend!r} cannot run here: {reason}")
        return Chosen(_opened(backend, bundle, variant, options))
    reasons: list[tuple[str, str]] = []
    for name in BACKENDS:
        reason = not_at_hand(name)
        if reason is None:
            try:
                opened = _opened(name, bundle, variant, options)
            except BackendError as error:
                log.warning("%s; trying the next backend", error)
                reason = str(error)
            else:
                told = "; ".join(f"{other}: {why}" for other, why in reasons)
                log.info("backend %s; not taken: %s", name, told or "none")
                return Chosen(opened, tuple(reasons))
        reasons.append((name, reason))
    told = "; ".join(f"{other}: {why}" for other, why in reasons)
    raise BackendError(f"no backend can run this bundle here. {told}")


def order_here() -> list[tuple[str, str | None]]:
    """The backends in the order that ``auto`` tries them, each with the reason why it cannot run, or None."""
    return [(name, not_at_hand(name)) for name in BACKENDS]


def not_at_hand(name: str) -> str | None:
    """As :func:`unavailable`, without loading TensorRT where there is no GPU: it takes seconds and 100 MB."""
    if name == "tensorrt" and no_driver():
        return "there is no CUDA driver on this machine (libcuda.so.1)"
    return unavailable(name)


def unavailable(name: str) -> str | None:
    """Why this machine cannot have the backend, or None."""
    check: Callable[[], str | None] = _function(name, "{}_unavailable")
    return check()


def _function(name: str, pattern: str) -> Any:
    module = importlib.import_module({**BACKENDS, **BY_NAME}[name])
    return getattr(module, pattern.format(name.replace("-", "_")))


def _opened(name: str, bundle: Bundle, variant: str | None, options: Options) -> Backend:
    opener: Callable[[Bundle, str | None, Options], Backend] = _function(name, "open_{}")
    if name == "tensorrt":
        # Without a name the device decides: the winner of its race, see backends/tensorrt/race.py.
        return opener(bundle, variant, options)
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
