"""A line of JSON a frame."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.maps import Segmentation
from edgesmith.sdk.results import Classifications, Detections


def line_of(result: Result) -> dict[str, Any]:
    """``source``, ``frame``, ``captured_ns``, and what the answer is.

    ``detections``, ``classes`` (the best five), ``regions`` of a segmentation with their masks, or of
    ``tensors`` their shapes and ranges, and the ``text`` that a recognizer read.
    """
    frame = result.frame
    line: dict[str, Any] = {
        "source": frame.source_id,
        "frame": frame.sequence,
        "captured_ns": frame.captured_ns,
    }
    if isinstance(result.answer, Detections):
        line["detections"] = result.answer.to_dict()
    elif isinstance(result.answer, Classifications):
        line["classes"] = result.answer.top_k(5).to_dict()
    elif isinstance(result.answer, Segmentation):
        line["regions"] = result.answer.to_dict()
    else:
        line["tensors"] = result.answer.summary()
        if result.answer.text is not None:
            line["text"], line["score"] = result.answer.text
    return line


class JsonLines:
    """A JSON lines file; whole lines reach the file one by one, so it is readable at any moment.

    Args:
        path: the file, emptied where it exists.

    Raises:
        SinkError: it cannot be made.
    """

    reads_image = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._file = self._opened("wb")

    def _opened(self, mode: str) -> Any:
        try:
            return self.path.open(mode, buffering=0)
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        """Append one line.

        Raises:
            SinkError: the disk is full, or the file went away.
        """
        line = memoryview(msgspec.json.encode(line_of(result)) + b"\n")
        begun = 0
        try:
            while begun < len(line):  # an unbuffered file may take a part
                begun += self._file.write(line[begun:])
        except OSError as error:
            if begun:
                self._take_back(begun)
            raise SinkError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _take_back(self, begun: int) -> None:
        """Half a line is worse than none: the next one would be glued to it."""
        with contextlib.suppress(OSError):  # a pipe cannot be cut; the error at hand says more
            end = self._file.seek(-begun, os.SEEK_CUR)
            self._file.truncate(end)

    def reopen(self) -> None:
        """Go on at the end of the file, or in a new one where it was moved away.

        Raises:
            SinkError: the folder is not there, or cannot be written.
        """
        fresh = self._opened("ab")
        self._file.close()
        self._file = fresh

    def close(self) -> None:
        """Close the file."""
        self._file.close()
