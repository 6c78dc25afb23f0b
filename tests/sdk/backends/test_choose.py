"""Which of a bundle's graphs a CPU runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgesmith.sdk.backends.choose import cpu_variant
from edgesmith.sdk.backends.processor import flags_in, has_integer_products
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.manifest import Manifest

CPUINFO = "processor\t: 0\nflags\t\t: fpu avx2 {}\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: fpu\n"


@pytest.fixture
def manifest(make_bundle: Callable[..., Path]) -> Manifest:
    """A bundle's manifest that names the graph with uint8 activations for the CPU."""
    found = Bundle.open(make_bundle()).manifest
    exact = found.variants["float"]
    variants = {"float": exact, "x86": msgspec.structs.replace(exact, member="model.x86.onnx")}
    return msgspec.structs.replace(found, variants=variants, cpu="x86")


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni"])
def test_with_vnni_the_integers_run(manifest: Manifest, flag: str) -> None:
    assert cpu_variant(manifest, lambda: flags_in(CPUINFO.format(flag))) == "x86"


@pytest.mark.parametrize("text", [CPUINFO.format("avx512f"), "", "Features\t: fp asimd\n"])
def test_without_it_float_runs(manifest: Manifest, text: str) -> None:
    assert not has_integer_products(lambda: flags_in(text))
    assert cpu_variant(manifest, lambda: flags_in(text)) == "float"


def test_what_was_measured_slower_is_not_taken(manifest: Manifest) -> None:
    slower = msgspec.structs.replace(manifest, cpu="float")
    assert cpu_variant(slower, lambda: frozenset({"avx_vnni"})) == "float"
