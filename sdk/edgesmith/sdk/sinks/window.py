"""A window on the screen."""

from __future__ import annotations

import os
import re
import sys

import cv2

from edgesmith.sdk.errors import MissingExtraError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.naming import camera_of

_ELSE = "or look in a browser: --view :8080"


class Window:
    """Shows each result in a window a camera; ``q`` or Escape, or its close button, closes it for good.

    OpenCV draws windows from one thread alone, the one that calls :meth:`write`.

    Args:
        title: the window's heading, before the camera's name.
        scale: size of the window in screen pixels per picture pixel.

    Raises:
        MissingExtraError: this OpenCV has no window support.
        SinkError: there is no screen.
    """

    def __init__(self, *, title: str = "edgesmith", scale: float = 1.0) -> None:
        self.notes: list[str] = []
        self.title, self._scale = title, scale
        self.closed = False
        self._open: set[str] = set()
        toolkit = window_toolkit()
        if toolkit is None:
            raise MissingExtraError(
                f"this OpenCV ({cv2.__version__}) has no window support: "
                "pip uninstall opencv-python-headless; "
                f"pip install 'edgesmith[desktop]'; {_ELSE}",
                extra="desktop",
            )
        # Without a screen the toolkit would end the whole process, not raise.
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise SinkError(f"window: there is no screen (DISPLAY is not set): set it, {_ELSE}")

    def write(self, result: Result) -> None:
        """Show one result; nothing once the window was closed.

        Raises:
            SinkError: the screen went away.
        """
        if self.closed:
            return
        name = f"{self.title}: {camera_of(result)}"
        image = result.answer.draw(result.frame.image)
        try:
            if name in self._open and cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1:
                self._end()
                return
            if name not in self._open:
                self._begin(name, image.shape[0], image.shape[1])
            cv2.imshow(name, image)
            if cv2.waitKey(1) & 0xFF in (27, ord("q")):
                self._end()
        except cv2.error as error:
            raise SinkError(f"window: {error.err or error}") from error

    def _begin(self, name: str, rows: int, columns: int) -> None:
        cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(name, max(1, round(columns * self._scale)), max(1, round(rows * self._scale)))
        self._open.add(name)

    def _end(self) -> None:
        self.closed = True
        self.notes.append("window: was closed; the run went on without it")
        self.close()

    def close(self) -> None:
        """Take the windows away."""
        names, self._open = self._open, set()
        for name in names:
            if cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1:
                cv2.destroyWindow(name)
        if names:
            cv2.waitKey(1)  # the toolkit acts only when it is asked for keys


def window_toolkit() -> str | None:
    """What this OpenCV draws windows with (``QT5``, ``GTK3``), or None for a headless build.

    The function is in every build and fails when it is called: the build's own words are read instead.
    """
    text = cv2.getBuildInformation()
    found = re.search(r"^ *GUI:[ \t]*(\w*)", text, re.MULTILINE)
    name = found.group(1) if found else ""
    if not name:  # OpenCV before 4.5.3 has a line a toolkit
        older = re.search(r"^ *(GTK|QT|Cocoa|Win32 UI)\S*:\s+YES", text, re.MULTILINE)
        name = older.group(1) if older else "NONE"
    return None if name.upper() == "NONE" else name
