"""The page at ``/`` as a browser shows it."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgesmith.sdk.serve import Token

TOKEN = "a-secret-of-good-length"


def until(what: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.03)


# A file that a hand lets go over the page: bytes in base64, a name, a kind.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
const options = { bubbles: true, cancelable: true, dataTransfer: carried };
for (const kind of ["dragenter", "dragover", "drop"]) {
  document.getElementById("well").dispatchEvent(new DragEvent(kind, options));
}
"""
PIXEL = """
const [x, y] = arguments, canvas = document.getElementById("shown");
return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
"""


def drop(browser: Any, data: bytes, name: str = "a.png", kind: str = "image/png") -> None:
    browser.execute_script(DROP, base64.b64encode(data).decode(), name, kind)


def text_of(browser: Any) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def test_a_picture_is_dropped_in_and_boxes_are_seen(
    browser: Any, serve: Callable[..., Any], picture: Callable[..., bytes], tmp_path: Path
) -> None:
    client = serve(token=Token(TOKEN), host="0.0.0.0")
    browser.get(f"http://127.0.0.1:{client.port}/?token={TOKEN}")
    assert TOKEN not in browser.current_url
    until(lambda: "ball" in text_of(browser))
    assert "Drop a picture here" in text_of(browser)
    drop(browser, picture((120, 120, 120), (320, 480)))
    until(lambda: "objects" in text_of(browser))
    assert "2 objects" in text_of(browser)
    assert "0.46" in text_of(browser)
    # The tiny detector's third box, 12,4 to 28,30 of 32, is drawn in the colour of its class: not grey.
    answer = client.post(
        "/models/ball/predict", picture((120, 120, 120), (320, 480)), authorization=f"Bearer {TOKEN}"
    ).json
    x1, _, _, y2 = answer["detections"][0]["box"]
    edge = browser.execute_script(PIXEL, round(x1), round(y2) - 20)
    assert max(edge) - min(edge) > 80, edge
    assert browser.execute_script(PIXEL, 470, 310) == [120, 120, 120]
    shot = tmp_path / "page.png"
    browser.save_screenshot(str(shot))
    seen = cv2.imdecode(np.fromfile(shot, np.uint8), cv2.IMREAD_COLOR)
    assert seen is not None
    assert (np.abs(seen.astype(int) - 120).max(axis=2) < 3).mean() > 0.1
    # Another threshold asks again.
    browser.execute_script(
        "const s = document.getElementById('score'); s.value = 0.6; s.dispatchEvent(new Event('change'))"
    )
    until(lambda: "No objects" in text_of(browser))
    # The classifier lists its classes.
    browser.execute_script(
        "const m = document.getElementById('model'); m.value = 'color'; m.dispatchEvent(new Event('change'))"
    )
    until(lambda: "3 classes" in text_of(browser))
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def test_what_goes_wrong_is_told(
    browser: Any, serve: Callable[..., Any], picture: Callable[..., bytes]
) -> None:
    client = serve(max_pixels=1000)
    browser.get(f"http://127.0.0.1:{client.port}/")
    until(lambda: "ball" in text_of(browser))
    drop(browser, b"hello", "letter.txt", "text/plain")
    until(lambda: "letter.txt is no picture" in text_of(browser))
    drop(browser, picture())
    until(lambda: "1,000 in all may be sent" in text_of(browser))
    client.service.stop()
    drop(browser, picture())
    until(lambda: "does not answer" in text_of(browser))
    browser.get_log("browser")  # the refusals above are in it
