"""Names that topics and files can hold, and packages that a sink needs."""

from __future__ import annotations

import importlib
import re
from typing import Any

from edgesmith.sdk.errors import MissingExtraError
from edgesmith.sdk.loop.result import Result


class SourceNames:
    """One short name a source: letters, digits and ``_``, beginning with a letter, no two alike.

    >>> names = SourceNames()
    >>> names["/dev/video0"], names["rtsp://10.0.0.7/door"], names["dev-video0"], names["/dev/video0"]
    ('dev_video0', 'rtsp_10_0_0_7_door', 'dev_video0_2', 'dev_video0')
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __getitem__(self, source: str) -> str:
        if source not in self._names:
            plain = slug(source)
            name, taken, number = plain, set(self._names.values()), 1
            while name in taken:
                number += 1
                name = f"{plain}_{number}"
            self._names[source] = name
        return self._names[source]


def camera_of(result: Result) -> str:
    """The name of the camera: what its topics and tiles are called.

    The frame's own source says more for a folder of pictures: the path of each.
    """
    return result.camera or result.frame.source_id


def slug(text: str) -> str:
    """The text in letters, digits and ``_``, at most 60 of them, beginning with a letter."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[-60:].lstrip("_")
    return name if name[:1].isalpha() else f"camera_{name}".rstrip("_")


def need(module: str, *, extra: str, sink: str) -> Any:
    """A package that one sink alone needs.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there and lacks one of its own
        raise MissingExtraError(
            f"the {sink} sink needs {module.partition('.')[0]}: pip install 'edgesmith[{extra}]'", extra=extra
        ) from error
