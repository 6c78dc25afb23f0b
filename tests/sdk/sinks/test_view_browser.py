"""The live page as a browser shows it."""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgesmith.sdk import Result

MakeResult = Callable[..., Result]
TOKEN = "a-token-of-good-length"


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


SHOWN = """
const image = document.querySelectorAll("article img")[arguments[0]];
if (!image || !image.naturalWidth) return null;
const canvas = document.createElement("canvas");
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
return [...context.getImageData(70, 50, 1, 1).data].slice(0, 3);
"""


def test_a_browser_shows_the_live_picture_and_the_figures(
    browser: Any, open_view: Any, make_result: MakeResult, tmp_path: Path
) -> None:
    states = {"front": "streaming", "<b>rear</b>": "reconnecting"}
    view = open_view("0.0.0.0:0", token=TOKEN, title="Picker 3", status=lambda: states)
    for n in range(10):
        view.write(make_result(n, color=(10, 160, 20), stages_ms={"preprocess": 3.0, "infer": 20.0}))
        time.sleep(0.02)
    port = urllib.parse.urlsplit(view.url).port
    browser.get(f"http://127.0.0.1:{port}/?token={TOKEN}")
    assert TOKEN not in browser.current_url
    until(lambda: browser.execute_script(SHOWN, 0) is not None)
    red, green, blue = browser.execute_script(SHOWN, 0)
    assert abs(red - 20) < 10
    assert abs(green - 160) < 10
    assert abs(blue - 10) < 10
    view.write(make_result(11, color=(200, 40, 30)))  # the picture is live
    until(lambda: browser.execute_script(SHOWN, 0)[2] > 180, 5)
    text = browser.execute_script("return document.body.innerText")
    for piece in (
        "Picker 3",
        "1 of 2",
        "front",
        "<b>rear</b>",
        "reconnecting",
        "infer 20 ms",
        "dog",
    ):
        assert piece in text, piece
    assert "frames/s" in text
    assert re.search("80 . 60", text)
    assert browser.title == "Picker 3"
    browser.save_screenshot(str(tmp_path / "page.png"))
    shot = cv2.imdecode(np.fromfile(tmp_path / "page.png", np.uint8), cv2.IMREAD_COLOR)
    assert shot is not None
    blues = np.abs(shot.astype(int) - (200, 40, 30)).max(axis=2) < 12
    assert blues.mean() > 0.05  # the picture takes its part of the screen
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    view.close()
    until(lambda: "No figures from the robot" in browser.execute_script("return document.body.innerText"), 8)


def test_more_cameras_than_a_browser_has_connections(
    browser: Any, open_view: Any, make_result: MakeResult
) -> None:
    view = open_view()
    for n in range(8):
        view.write(make_result(n, source=f"camera {n}", color=(20 * n, 90, 30)))
    browser.get(view.url)
    until(lambda: browser.execute_script(SHOWN, 7) is not None)
    assert [abs(browser.execute_script(SHOWN, n)[2] - 20 * n) < 10 for n in range(8)] == [True] * 8
    for n in range(8):
        view.write(make_result(n, source=f"camera {n}", color=(220 - 20 * n, 90, 30)))
    until(lambda: abs(browser.execute_script(SHOWN, 7)[2] - 80) < 10, 5)
    assert "8 of 8" in browser.execute_script("return document.body.innerText")
