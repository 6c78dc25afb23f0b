from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Classifications, Detections, Result
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.sinks.base import BackgroundSink, show_states
from edgesmith.sdk.sinks.jsonl import JsonLines
from edgesmith.sdk.sinks.view import WebView
from edgesmith.sdk.sinks.vitals import temperatures

MakeResult = Callable[..., Result]
HEAD = b"Content-Type: image/jpeg\r\n\r\n"
TOKEN = "a-token-of-good-length"
# The client of these tests hangs up in the middle of streams.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


def get(view: WebView, path: str, method: str = "GET", **headers: str) -> Answer:
    parts = urllib.parse.urlsplit(view.url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def threads(name: str) -> int:
    return sum(name in t.name for t in threading.enumerate())


def pixels(jpeg: bytes) -> Any:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_the_figures_are_those_of_the_results(open_view: Any, make_result: MakeResult) -> None:
    view = open_view(title="Picker 3", status=lambda: {"rear": "reconnecting"})
    now = time.monotonic_ns()
    for n in range(30):
        result = make_result(n, dropped=n % 2, stages_ms={"infer": 20.0})
        object.__setattr__(result, "done_ns", result.frame.captured_ns + (n + 1) * 1_000_000)
        view.write(result)
        time.sleep(0.01)
    stats = json.loads(get(view, "/stats").body)
    front, rear = stats["cameras"]
    assert stats["title"] == "Picker 3"
    assert (front["source"], front["state"], front["frames"], front["dropped"]) == (
        "front",
        "streaming",
        30,
        15,
    )
    assert front["age_ms"]["p50"] == pytest.approx(15.5)
    assert front["age_ms"]["p99"] == pytest.approx(29.71)
    assert front["stages_ms"]["infer"]["p90"] == 20.0
    assert front["size"] == [60, 80]
    assert front["found"] == {"dog": 1}
    elapsed = (time.monotonic_ns() - now) / 1e9
    assert 29 / elapsed <= front["fps"] < 110
    assert rear == {"source": "rear", "state": "reconnecting", "picture": None}


def test_the_states_of_cameras_are_handed_to_the_page_alone(open_view: Any, tmp_path: Path) -> None:
    view = open_view()
    lines = JsonLines(tmp_path / "a.jsonl")
    behind = BackgroundSink(view)
    show_states([lines, behind], lambda: {"rear": "failed"})
    assert json.loads(get(view, "/stats").body)["cameras"][0]["state"] == "failed"
    assert not hasattr(lines, "status")
    behind.close()
    lines.close()


def test_a_picture_has_the_box_and_keeps_to_the_size(open_view: Any, make_result: MakeResult) -> None:
    view = open_view(max_side=320)
    box = Detections(
        np.array([[100, 100, 500, 400]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32), ("dog",)
    )
    view.write(make_result(size=(480, 640), answer=box, color=(200, 30, 30)))
    image = pixels(get(view, "/picture/0").body)
    assert image.shape == (240, 320, 3)
    assert np.abs(image[120, 150].astype(int) - (200, 30, 30)).max() < 12
    assert np.abs(image[120, 49:52].astype(int) - (200, 30, 30)).max() > 60  # the box's edge


def test_a_stream_gives_the_newest_picture_at_once_and_in_order(
    open_view: Any, make_result: MakeResult
) -> None:
    view = open_view(max_fps=1000)
    view.write(make_result(color=(0, 0, 0), answer=Detections.empty()))
    stream = Stream(view)
    levels = []
    for level in range(10, 250, 20):
        levels.append(int(pixels(stream.next()).mean()))
        view.write(make_result(color=(level, level, level), answer=Detections.empty()))
    levels.append(int(pixels(stream.next()).mean()))
    stream.close()
    assert np.abs(np.array(levels) - [0, *range(10, 250, 20)]).max() <= 2


class Stream:
    """Reads a multipart stream; a picture is complete when the head of the next has come."""

    def __init__(self, view: WebView, path: str = "/stream/0") -> None:
        parts = urllib.parse.urlsplit(view.url)
        self.socket = socket.create_connection(("127.0.0.1", parts.port or 0), timeout=5)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self.data = b""
        head = self._to(b"\r\n\r\n")
        assert b"200 OK" in head
        assert b"multipart/x-mixed-replace; boundary=edgesmith-picture" in head
        assert self._to(HEAD) == b"--edgesmith-picture\r\n"

    def _to(self, end: bytes) -> bytes:
        while end not in self.data:
            got = self.socket.recv(65536)
            assert got, "the stream ended"
            self.data += got
        part, _, self.data = self.data.partition(end)
        return part

    def next(self) -> bytes:
        return self._to(b"\r\n--edgesmith-picture\r\n" + HEAD)

    def close(self) -> None:
        self.socket.close()


def test_a_browser_that_does_not_read_slows_nobody(open_view: Any, make_result: MakeResult) -> None:
    view = open_view(max_fps=1000, quality=95)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    view.write(make_result(image=noise))
    stuck, quick = Stream(view), Stream(view)
    sink = BackgroundSink(view, capacity=2, name="view")
    seen = 0
    slowest = 0.0
    for n in range(60):
        began = time.monotonic()
        sink.write(make_result(n, image=noise))
        slowest = max(slowest, time.monotonic() - began)
        if n % 3 == 0:
            quick.next()
            seen += 1
        time.sleep(0.005)
    assert slowest < 0.3
    assert seen == 20
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 3
    stuck.close()
    quick.close()
    until(lambda: threads("process_request_thread") == 0)  # no thread is left behind


def test_nobody_looks_nothing_is_drawn(open_view: Any, make_result: MakeResult) -> None:
    class Counted(Classifications):
        drawn = 0

        def draw(self, image: Any) -> Any:
            Counted.drawn += 1
            return image

    view = open_view()
    answer = Counted(np.zeros(1, np.int32), np.ones(1, np.float32))
    for n in range(50):
        view.write(make_result(n, answer=answer))
    assert Counted.drawn == 0
    get(view, "/picture/0")
    get(view, "/picture/0")
    assert Counted.drawn == 1  # once for all who look


def test_health_follows_the_results(open_view: Any, make_result: MakeResult) -> None:
    view = open_view(stale_s=0.3)
    assert (get(view, "/health").status, json.loads(get(view, "/health").body)["state"]) == (503, "starting")
    view.write(make_result())
    answer = get(view, "/health")
    assert (answer.status, json.loads(answer.body)["state"]) == (200, "ok")
    time.sleep(0.35)
    answer = get(view, "/health")
    assert (answer.status, json.loads(answer.body)["state"]) == (503, "stalled")
    assert json.loads(get(view, "/stats").body)["cameras"][0]["state"] == "stalled"


def test_the_page_is_for_this_machine_alone_unless_told_otherwise(open_view: Any) -> None:
    view = open_view()
    assert view.url.startswith("http://127.0.0.1:")
    for host in ("localhost", "127.0.0.1:8080", "[::1]:80"):
        assert get(view, "/", Host=host).status == 200
    # A web site that points its own name here would read the pictures with the visitor's browser.
    for path in ("/", "/stats", "/stream/0"):
        assert get(view, path, Host="evil.example").status == 421
    with pytest.raises(ConfigError, match="can be reached by others: set a token"):
        WebView("0.0.0.0:0")
    with pytest.raises(ConfigError, match="too short"):
        WebView("0.0.0.0:0", token="1234")


def test_with_a_token_everything_but_health_needs_it(
    open_view: Any,
    make_result: MakeResult,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    view = open_view("0.0.0.0:0", token=TOKEN)
    view.write(make_result())
    for path in ("/", "/stats", "/picture/0", "/stream/0", "/nothing", "/?token=wrong", "/?token="):
        answer = get(view, path)
        assert answer.status == 401, path
        assert b"token" in answer.body
    assert get(view, "/stats", Cookie="edgesmith_view=guess").status == 401
    assert get(view, "/stats", Cookie='edgesmith_view="\xff; ;=').status == 401
    assert get(view, "/stats", Authorization="Bearer wrong").status == 401
    assert get(view, "/stats", Authorization=f"Bearer {TOKEN}").status == 200
    assert get(view, "/health").status == 200
    entered = get(view, f"/?token={TOKEN}")
    assert (entered.status, entered.headers["Location"]) == (303, "/")
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert get(view, "/stats", Cookie=cookie.partition(";")[0], Host="robot.local").status == 200
    said = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in said + view.url + repr(vars(view))


def test_what_is_not_there_is_not_found(open_view: Any, make_result: MakeResult) -> None:
    view = open_view()
    for path in ("/picture/0", "/stream/0", "/picture/-1", "/picture/x", "/stream/" + "9" * 99, "/../secret"):
        assert get(view, path).status == 404, path
    assert get(view, "/", method="POST").status == 501
    view.write(make_result())
    head = get(view, "/picture/0", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert "nonce-" in get(view, "/").headers["Content-Security-Policy"]


def test_a_crowd_is_turned_away_and_leaves_no_thread(open_view: Any, make_result: MakeResult) -> None:
    view = open_view()
    view.write(make_result())
    streams = [Stream(view) for _ in range(32)]
    with pytest.raises((OSError, http.client.HTTPException)):
        get(view, "/health")
    for stream in streams:
        stream.close()
    until(lambda: threads("process_request_thread") == 0)
    assert get(view, "/health").status == 200


def test_a_port_that_is_taken_is_one_clear_error(open_view: Any) -> None:
    view = open_view()
    port = urllib.parse.urlsplit(view.url).port
    with pytest.raises(SinkError, match=f":{port}: cannot be served: Address already in use"):
        WebView(f":{port}")
    for wrong in ("8080", "a:b", ":99999"):
        with pytest.raises(ConfigError, match="is no address"):
            WebView(wrong)


def test_after_the_end_the_port_is_free_and_no_thread_left(make_result: MakeResult) -> None:
    view = WebView(":0")
    view.write(make_result())
    stream = Stream(view)
    port = urllib.parse.urlsplit(view.url).port
    view.close()
    assert threads("view-server") == 0
    WebView(f":{port}").close()
    stream.close()
    until(lambda: threads("process_request_thread") == 0)


def test_temperatures_are_read_where_there_are_any(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(
        [("CPU-therm", "47500"), ("GPU-therm", "51250"), ("CV0-therm", None), ("off", "-256000")]
    ):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(name + "\n")
        if value is not None:
            (zone / "temp").write_text(value + "\n")
    assert list(temperatures(tmp_path).items()) == [("GPU-therm", 51.25), ("CPU-therm", 47.5)]
    assert temperatures(tmp_path / "none") == {}
