"""A file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A new name to write to; once what was written is on the disk, it takes the place of ``path``.

    Nothing is left behind where the block, or the disk, fails.

    Args:
        path: the file to make or to replace; readers see the old one or the new one.
        folder: where it lies until it is whole, on the same disk; beside ``path`` unless given.

    Raises:
        OSError: it cannot be written.
    """
    temporary = (folder or path.parent) / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError):
            temporary.unlink()
