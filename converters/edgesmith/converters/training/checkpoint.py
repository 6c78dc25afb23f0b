"""The state of a training run on disk: written whole or not at all, read without running code in it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from edgesmith.sdk.errors import DataError

log = logging.getLogger(__name__)
State = dict[str, Any]
SCHEMA = 1


def save(path: Path, state: State) -> None:
    """Write to a name beside it, then rename: a kill leaves the state before.

    Raises:
        DataError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            torch.save({"schema": SCHEMA, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: the checkpoint cannot be written: {error.strerror or error}") from error


def load(path: Path, key: str) -> State | None:
    """The state, None where there is none or it is of another run (another ``key``).

    Raises:
        DataError: the file is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # What the restricted unpickler raises on a damaged file is of many kinds.
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: not a sound checkpoint ({why}): delete it to train from the start"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA or state.get("key") != key:
        log.warning("%s is of another run: training begins anew", path)
        return None
    return state
