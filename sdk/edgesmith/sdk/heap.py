"""The C library's heap in a process that runs for weeks."""

from __future__ import annotations

import ctypes
import logging
import os

log = logging.getLogger(__name__)
# mallopt(3). ctypes knows no constants of headers.
_M_ARENA_MAX = -8
_ARENAS = 2


def limit_arenas(count: int = _ARENAS) -> bool:
    """Let all threads of this process share ``count`` heaps, where glibc would give each its own.

    A loop's frames come and go in a dozen threads, and each thread's heap keeps the largest that it was once:
    memory creeps up for hours though nothing is held. To be called before the threads are started. Nothing
    is done where the environment's ``MALLOC_ARENA_MAX`` decides, or where the C library is another one.

    Returns:
        Whether the limit holds from now on.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    held = bool(library.mallopt(_M_ARENA_MAX, count) == 1)
    if not held:
        log.warning("the C library does not limit its heaps to %d", count)
    return held
