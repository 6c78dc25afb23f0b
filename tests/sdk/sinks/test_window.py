from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Result
from edgesmith.sdk.errors import MissingExtraError, SinkError
from edgesmith.sdk.sinks.window import Window, window_toolkit

MakeResult = Callable[..., Result]


class Screen:
    """The calls of OpenCV's window part, and what they showed."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.key = -1

    def fit(self, monkeypatch: pytest.MonkeyPatch) -> Screen:
        monkeypatch.setattr(cv2, "namedWindow", lambda name, _flags: self.shown.setdefault(name, None))
        monkeypatch.setattr(cv2, "resizeWindow", lambda name, w, h: self.sizes.__setitem__(name, (w, h)))
        monkeypatch.setattr(cv2, "imshow", self.shown.__setitem__)
        monkeypatch.setattr(cv2, "waitKey", lambda _ms: self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda name, _which: float(name in self.shown))
        monkeypatch.setattr(cv2, "destroyWindow", self.shown.pop)
        monkeypatch.setattr(cv2, "getBuildInformation", lambda: "\n  GUI:                           QT5\n")
        monkeypatch.setenv("DISPLAY", ":0")
        return self


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen().fit(monkeypatch)


@pytest.mark.skipif(window_toolkit() is not None, reason="this OpenCV has windows")
def test_a_headless_opencv_says_so_in_one_line() -> None:
    with pytest.raises(
        MissingExtraError, match=r"no window support: .*edgesmith\[desktop\].*--view"
    ) as caught:
        Window()
    assert caught.value.extra == "desktop"
    assert "\n" not in str(caught.value)


def test_without_a_screen_it_is_refused(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SinkError, match="DISPLAY is not set"):
        Window()


def test_each_camera_has_a_window_with_its_boxes(screen: Screen, make_result: MakeResult) -> None:
    window = Window(scale=2.0)
    for source in ("front", "rear", "front"):
        window.write(make_result(source=source))
    assert set(screen.shown) == {"edgesmith: front", "edgesmith: rear"}
    assert screen.sizes["edgesmith: front"] == (160, 120)
    assert np.ptp(screen.shown["edgesmith: front"][10:40, 4:7]) > 20
    window.close()
    assert screen.shown == {}


@pytest.mark.parametrize("how", ["q", "escape", "button"])
def test_a_window_that_was_closed_stays_closed(screen: Screen, make_result: MakeResult, how: str) -> None:
    window = Window()
    window.write(make_result())
    if how == "button":
        screen.shown.clear()
    else:
        screen.key = {"q": ord("q"), "escape": 27}[how]
    window.write(make_result())
    screen.key = -1
    window.write(make_result())
    assert window.closed
    assert screen.shown == {}
    assert len(window.notes) == 1
    window.close()


@pytest.mark.parametrize(
    ("text", "toolkit"),
    [
        ("  GUI:                           NONE\n  Media I/O:", None),
        ("  GUI:                           GTK3\n    GTK+: YES (ver 3.24.33)\n", "GTK3"),
        ("  GUI: \n    GTK+:                        YES (ver 2.24)\n", "GTK"),
        ("  GUI: \n    GTK+:                        NO\n", None),
        ("", None),
    ],
)
def test_what_a_build_says_of_its_windows(
    monkeypatch: pytest.MonkeyPatch, text: str, toolkit: str | None
) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"General configuration\n\n{text}\n")
    assert window_toolkit() == toolkit


SHOW = """
import json, time
import cv2, numpy as np
from edgesmith.sdk import Detections, Frame, Result
from edgesmith.sdk.sinks.base import BackgroundSink
from edgesmith.sdk.sinks.window import Window

class Seen(Window):
    def close(self):
        names = sorted(self._open)
        self.before = [cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) for name in names]
        self.rectangles = [cv2.getWindowImageRect(name)[2:] for name in names]
        super().close()
        self.after = len(self._open)

window = Seen(scale=0.5)
sink = BackgroundSink(window, name="window")
for number in range(20):
    for source in ("front", "rear"):
        image = np.full((240, 320, 3), 90, np.uint8)
        sink.write(Result(Frame(image, number, time.monotonic_ns(), None, source), Detections.empty()))
    time.sleep(0.05)
sink.close()
print(json.dumps([window.before, window.rectangles, window.after, sink.stats().errors]))
"""


@pytest.mark.slow
def test_a_real_window_on_a_screen_in_memory(root: Path) -> None:
    python = os.environ.get("EDGESMITH_DESKTOP_PYTHON")
    if not python or shutil.which("xvfb-run") is None:
        pytest.skip(
            "apt install xvfb, and set EDGESMITH_DESKTOP_PYTHON to a Python with opencv-python and msgspec"
        )
    paths = os.pathsep.join([str(root / "sdk"), str(root / "device_profiles")])
    done = subprocess.run(
        ["xvfb-run", "-a", python, "-c", SHOW],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    before, rectangles, after, errors = json.loads(done.stdout.splitlines()[-1])
    assert before == [1.0, 1.0]
    assert rectangles == [[160, 120], [160, 120]]
    assert (after, errors) == (0, 0)
