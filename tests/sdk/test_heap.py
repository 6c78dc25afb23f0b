"""The C library's heap: a process of its own for each, since a limit stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

# Ten threads that allocate at the same time, and how many heaps that makes.
SCRIPT = """
import ctypes, threading
from edgesmith.sdk.heap import limit_arenas
print(limit_arenas())
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
together = threading.Barrier(10)
def work():
    together.wait()
    for _ in range(200):
        library.malloc(50_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.malloc_stats()
"""


def told(**environment: str) -> tuple[str, int]:
    kept = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip(), done.stderr.count("\nArena ") + done.stderr.startswith("Arena ")


def test_threads_share_two_heaps() -> None:
    held, heaps = told()
    assert held == "True"
    assert 1 <= heaps <= 2


def test_the_environment_decides() -> None:
    assert told(MALLOC_ARENA_MAX="4") == ("False", 4)
