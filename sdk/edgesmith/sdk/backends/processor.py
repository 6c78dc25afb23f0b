"""What the processor can do, as far as a choice depends on it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

ReadFlags = Callable[[], frozenset[str]]
VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """The feature flags of an x86-64 processor under Linux, read once; empty elsewhere."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return flags_in(text)


def flags_in(text: str) -> frozenset[str]:
    """The flags of the first processor in the text of ``/proc/cpuinfo``."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def has_integer_products(read: ReadFlags = processor_flags) -> bool:
    """Whether the processor multiplies and sums bytes in one instruction (AVX512-VNNI or AVX-VNNI).

    Without it onnxruntime sums pairs of products in 16 bits, where they saturate, unless it is told not to.
    """
    return not VNNI.isdisjoint(read())
