from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from edgesmith.sdk.cameras import CameraState, open_camera
from edgesmith.sdk.cameras.testpattern import pattern_image, read_number
from edgesmith.sdk.errors import CameraError, CameraFormatError, CameraLost

Until = Callable[[Callable[[], bool], float], bool]
QUICK = {"first_s": 0.02, "longest_s": 0.05, "seed": 1}


def jpeg(number: int, size: tuple[int, int] = (160, 120)) -> bytes:
    return cv2.imencode(".jpg", pattern_image(number, size))[1].tobytes()


class Handler(BaseHTTPRequestHandler):
    """Streams that behave as their path says; numbers go on across connections."""

    protocol_version = "HTTP/1.1"
    numbers: dict[str, int]
    gone: threading.Event

    def log_message(self, format: str, *args: object) -> None:
        return

    def head(self, kind: str = "multipart/x-mixed-replace; boundary=cut", **more: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()

    def part(self, body: bytes, *, stated: bool = True) -> None:
        length = f"Content-Length: {len(body)}\r\n" if stated else ""
        data = (
            f"--cut\r\nContent-Type: image/jpeg\r\nX-Timestamp: 1.5\r\n{length}\r\n".encode() + body + b"\r\n"
        )
        if self.path == "/chunked":
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self.wfile.write(data)

    def next(self) -> int:
        number = self.numbers.get(self.path, 0)
        self.numbers[self.path] = number + 1
        return number

    def stream(self, count: int = 100_000, size: tuple[int, int] = (160, 120)) -> None:
        for _ in range(count):
            if self.gone.wait(0.01):
                return
            self.part(jpeg(self.next(), size), stated=self.path != "/unstated")

    def do_GET(self) -> None:
        self.close_connection = True
        try:
            getattr(self, f"give_{self.path.strip('/').partition('?')[0]}")()
        except OSError:
            return  # the camera left

    def give_good(self) -> None:
        self.head()
        self.stream()

    give_unstated = give_good

    def give_chunked(self) -> None:
        self.head(**{"Transfer-Encoding": "chunked"})
        self.stream()

    def give_secret(self) -> None:
        wanted = "Basic " + base64.b64encode(b"robot:geheim/@").decode()
        if self.headers.get("Authorization") == wanted:
            self.give_good()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()

    def give_digest(self) -> None:
        # As an old camera asks: RFC 2069, whose answer is plain to check.
        def md5(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()

        wanted = md5(f"{md5('robot:camera:geheim/@')}:n0nce:{md5('GET:/digest')}")
        if f'response="{wanted}"' in self.headers.get("Authorization", ""):
            self.give_good()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Digest realm="camera", nonce="n0nce"')
            self.end_headers()

    def give_bearer(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()

    def give_missing(self) -> None:
        self.send_error(404)

    def give_ill(self) -> None:
        self.send_error(503)

    def give_page(self) -> None:
        self.head("text/html")
        self.wfile.write(b"<html>")

    def give_drops(self) -> None:
        self.head()
        self.stream(5)

    def give_stalls(self) -> None:
        self.head()
        self.stream(5)
        self.gone.wait(5)

    def give_garbage(self) -> None:
        self.head()
        rng = np.random.default_rng(1)
        while not self.gone.wait(0.005):
            self.wfile.write(rng.bytes(20_000))

    def give_sours(self) -> None:
        self.head()
        self.stream(5)
        while not self.gone.wait(0.01):
            self.part(b"\xff\xd8 torn")

    def give_undecodable(self) -> None:
        self.head()
        for _ in range(3):
            self.part(b"\xff\xd8 no picture at all \xff\xd9")
        self.stream()

    def give_switches(self) -> None:
        self.head()
        self.stream(20)
        self.stream(size=(320, 240))

    def give_frozen(self) -> None:
        self.head()
        while not self.gone.wait(0.01):
            self.part(jpeg(7))


@pytest.fixture
def server() -> Iterator[str]:
    gone = threading.Event()
    handler = type("Fresh", (Handler,), {"numbers": {}, "gone": gone})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{httpd.server_address[1]}"
    gone.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["good", "unstated", "chunked"])
def test_pictures_come_in_order_and_fresh(server: str, path: str) -> None:
    camera = open_camera(f"http://{server}/{path}")
    numbers = []
    for frame in camera.frames():
        numbers.append(read_number(frame.image))
        assert numbers[-1] == frame.sequence
        time.sleep(0.03)  # slower than the stream: the newest is given, the others are counted
        if len(numbers) == 10:
            break
    camera.close()
    status = camera.status()
    assert numbers == sorted({n for n in numbers if n is not None})
    assert frame.source_ns == 1_500_000_000
    assert status.frames == status.delivered + status.dropped > 15
    assert status.size == (160, 120)


@pytest.mark.parametrize("path", ["secret", "digest"])
def test_a_password_is_sent_and_not_shown(server: str, path: str) -> None:
    camera = open_camera(f"http://robot:geheim%2F%40@{server}/{path}")
    assert next(camera.frames()).source_id == camera.name == f"http://{server}/{path}"
    camera.close()


@pytest.mark.parametrize(
    ("path", "reason", "message"),
    [
        ("secret", "unauthorized", "answers 401 Unauthorized: it wants http://USER:PASSWORD@HOST"),
        ("digest", "unauthorized", "it wants http://USER:PASSWORD@HOST"),
        ("missing", "not-found", "answers 404 Not Found: there is no such stream"),
        ("ill", "server", "answers 503"),
        ("page", "not-a-stream", "sends text/html, not multipart"),
        ("garbage", "damaged", r"no picture within 0\.6 s: what the server sends is no picture"),
    ],
)
def test_each_answer_has_its_own_error(server: str, path: str, reason: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(CameraError, match=message) as caught:
        open_camera(f"http://{server}/{path}", open_s=0.6)
    assert caught.value.reason == reason
    assert time.monotonic() - started < 2


def test_a_wrong_password_says_so(server: str) -> None:
    for path in ("secret", "digest"):
        with pytest.raises(CameraError, match="the user or password is wrong"):
            open_camera(f"http://robot:wrong@{server}/{path}")
    with pytest.raises(CameraError, match="it wants Bearer, and only Basic and Digest"):
        open_camera(f"http://robot:geheim@{server}/bearer")


def test_encryption_where_there_is_none_says_so(server: str) -> None:
    with pytest.raises(CameraError, match="is it plain http://") as caught:
        open_camera(f"https://{server}/good")
    assert caught.value.reason == "tls"


def test_a_server_that_speaks_no_http_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(4096)
                    peer.sendall(bytes(range(256)) * 4 + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CameraError, match="the answer is not HTTP") as caught:
            open_camera(f"http://127.0.0.1:{listener.getsockname()[1]}/x")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert caught.value.reason == "protocol"


def test_a_stream_that_breaks_off_comes_back(server: str) -> None:
    camera = open_camera(f"http://{server}/drops", backoff=QUICK)
    numbers = []
    for frame in camera.frames():
        numbers.append(read_number(frame.image))
        if camera.status().reconnects >= 3:
            break
    camera.close()
    assert numbers == sorted({n for n in numbers if n is not None})


def test_a_stream_that_stalls_or_sours_is_told_apart(server: str, until: Until) -> None:
    for path, reason in (("stalls", "stalled"), ("sours", "damaged")):
        camera = open_camera(f"http://{server}/{path}", stall_ms=300, reconnect=False)
        with pytest.raises(CameraLost, match=r"no picture for 0\.3 s") as caught:
            list(camera.frames())
        assert caught.value.reason == reason
        camera.close()


def test_what_cannot_be_decoded_is_dropped_never_a_black_frame(server: str) -> None:
    camera = open_camera(f"http://{server}/undecodable")
    for frame in camera.frames():
        assert read_number(frame.image) is not None
        if frame.sequence > 6:
            break
    camera.close()
    status = camera.status()
    assert status.frames == status.delivered + status.dropped


def test_a_change_of_size_goes_on_unless_a_size_was_asked_for(server: str) -> None:
    camera = open_camera(f"http://{server}/switches")
    shapes = []
    for frame in camera.frames():
        shapes.append(frame.image.shape[:2])
        if shapes[-1] == (240, 320):
            break
    camera.close()
    assert shapes[0] == (120, 160)


def test_a_size_that_was_asked_for_is_kept_to(server: str) -> None:
    with pytest.raises(CameraFormatError, match="gives 160x120 pictures, and 320x240 was asked for"):
        open_camera(f"http://{server}/good", size=(320, 240))
    camera = open_camera(f"http://{server}/switches", size=(160, 120))
    with pytest.raises(CameraFormatError, match="gives 320x240"):
        list(camera.frames())
    assert (camera.state, camera.status().reason) == (CameraState.FAILED, "format")


def test_the_same_jpeg_again_and_again_is_a_frozen_camera(server: str, until: Until) -> None:
    camera = open_camera(f"http://{server}/frozen", frozen_ms=300, backoff=QUICK)
    assert until(lambda: camera.status().reason == "frozen", 5)
    time.sleep(0.3)
    # Reconnecting brings the same picture: it stays withheld.
    delivered = camera.status().delivered
    time.sleep(0.3)
    assert camera.status().delivered == delivered
    assert camera.state in (CameraState.STALLED, CameraState.RECONNECTING)
    camera.close()


def test_closing_wakes_a_blocked_read(server: str) -> None:
    camera = open_camera(f"http://{server}/stalls", stall_ms=60_000)
    time.sleep(0.15)
    started = time.monotonic()
    camera.close()
    assert time.monotonic() - started < 0.4
    assert camera.status().abandoned == 0
