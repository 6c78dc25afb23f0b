"""A line of JSON a frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.results import Detections


def line_of(result: Result) -> dict[str, Any]:
    """``source``, ``frame``, ``captured_ns``, and ``detections`` or ``classes`` (the best five)."""
    frame = result.frame
    line: dict[str, Any] = {
        "source": frame.source_id,
        "frame": frame.sequence,
        "captured_ns": frame.captured_ns,
    }
    if isinstance(result.answer, Detections):
        line["detections"] = result.answer.to_dict()
    else:
        line["classes"] = result.answer.top_k(5).to_dict()
    return line


class JsonLines:
    """A JSON lines file; whole lines reach the file one by one, so it is readable at any moment."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        try:
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        """Append one line.

        Raises:
            SinkError: the disk is full, or the file went away.
        """
        try:
            self._file.write(msgspec.json.encode(line_of(result)) + b"\n")
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
