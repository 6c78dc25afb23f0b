"""What hostile or broken clients get: a 4xx with one line, or the door; and the service lives."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesmith.sdk.serve import Service, ServiceSettings, Tls, Token
from edgesmith.sdk.serve.protocol import MAX_HEAD_BYTES

Serve = Callable[..., Any]
Picture = Callable[..., bytes]
TOKEN = "a-secret-of-good-length"
PREDICT = "/models/ball/predict"


def raw(client: Any, data: bytes, seconds: float = 10.0) -> bytes:
    """What comes back for these bytes until the service ends the connection, or says nothing more."""
    with socket.create_connection((client.host, client.port), timeout=seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
        return answer


def head(path: str = PREDICT, method: str = "POST", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_ten_gigabytes_are_refused_before_they_come(serve: Serve) -> None:
    client = serve()
    started = time.monotonic()
    answer = raw(client, head(Content_Length="10737418240") + bytes(1000))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - started < 5


def test_what_really_comes_is_counted(serve: Serve) -> None:
    client = serve(max_body_bytes=100_000)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = raw(client, head(Transfer_Encoding="chunked") + chunk * 40)
    assert answer.startswith(b"HTTP/1.1 413")
    assert client.service._state.budget.used_bytes == 0


def test_a_bomb_is_not_decoded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()

    def decoded(data: bytes) -> None:
        raise AssertionError("a picture was handed to the decoder")

    monkeypatch.setattr("edgesmith.sdk.serve.run.decode_picture", decoded)
    claimed = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00IEND"
    )
    answer = client.post(PREDICT, claimed)
    assert answer.status == 413
    assert "50000 x 50000" in answer.error


def test_all_requests_together_have_a_limit(serve: Serve, picture: Picture) -> None:
    client = serve(max_memory_bytes=1 << 20, max_body_bytes=1 << 20)
    data = picture(size=(700, 700))
    answer = client.post(PREDICT, data)
    assert answer.status == 413
    assert "1,048,576" in answer.error
    assert client.post(PREDICT, picture()).status == 200


def test_bodies_that_are_no_pictures(serve: Serve, picture: Picture) -> None:
    client = serve(max_files=2)
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nabc\r\n'
    kind = "multipart/form-data; boundary=x"
    for body, content_type, status, text in [
        (b"", "image/png", 400, "empty"),
        (b"hello", "text/plain", 415, "text/plain"),
        (b"{}", "application/json", 415, "application/json"),
        (b"hello", "image/png", 415, "JPEG, PNG, WebP or BMP"),
        (picture()[:-30], "image/png", 400, "cut off"),
        (picture(kind=".jpg")[:-2], "image/jpeg", 400, "cut off"),
        (part, "multipart/form-data", 400, "boundary"),
        (part, "multipart/form-data; boundary=" + "x" * 71, 400, "boundary"),
        (part, kind, 400, "cut off"),
        (b"--x--\r\n", kind, 400, "no file"),
        (b"nothing of the kind", kind, 400, "malformed"),
        (part.replace(b'; filename="a"', b"") + b"--x--\r\n", kind, 400, "no filename"),
        (part * 3 + b"--x--\r\n", kind, 413, "more than 2 files"),
        (b"--x\r\n" + b"A: b\r\n" * 50 + b"\r\nabc\r\n--x--\r\n", kind, 400, "malformed"),
        (part + b"--x--\r\n", kind, 415, "JPEG"),
    ]:
        answer = client.post(PREDICT, body, content_type=content_type)
        assert (answer.status, text in answer.error) == (status, True), (body[:40], answer.body)
    for query, text in [
        ("score=2", "0..1"),
        ("score=nan", "0..1"),
        ("score=x", "score"),
        ("top=0", "top is 0"),
        ("format=gif", "gif"),
        ("unknown=1", "unknown"),
        ("score=0.1&score=0.2", "twice"),
        ("deadline_ms=nan", "deadline_ms"),
    ]:
        answer = client.post(f"{PREDICT}?{query}", picture())
        assert (answer.status, text in answer.error) == (400, True), (query, answer.body)
    answer = client.post(PREDICT, picture(), content_encoding="gzip")
    assert answer.status == 415
    assert client.post(PREDICT, picture()).status == 200


def test_no_address_is_ever_fetched(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()

    def called(*args: Any, **options: Any) -> None:
        raise AssertionError("a client's address was fetched")

    monkeypatch.setattr(urllib.request, "urlopen", called)
    for body in (b"http://127.0.0.1:1/a.png", b"file:///etc/passwd", b'{"url": "http://localhost"}'):
        assert client.post(PREDICT, body).status == 415


def test_the_token(serve: Serve, picture: Picture, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    client = serve(token=Token(TOKEN), host="0.0.0.0")
    right = f"Bearer {TOKEN}"
    assert client.post(PREDICT, picture(), authorization=right).status == 200
    for wrong in (None, "Bearer wrong-wrong-wrong-w", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "\xff"):
        answer = client.get("/models", **({"authorization": wrong} if wrong else {}))
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "token" in answer.error
    assert client.get("/metrics").status == 401
    assert client.get("/v2/health/live").status == 200  # what an orchestrator asks says nothing else
    assert client.get("/?token=wrong-wrong-wrong-w").status == 401
    page = client.get(f"/?token={TOKEN}")
    assert (page.status, page.headers["location"]) == (303, "/")
    cookie = page.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert client.get("/models", cookie=cookie.partition(";")[0]).status == 200
    assert client.get("/models", cookie="edgesmith_serve=wrong").status == 401
    assert "GET" in caplog.text
    assert "edgesmith.access" in {record.name for record in caplog.records}
    assert TOKEN not in caplog.text


def test_pages_of_other_sites_are_kept_out(serve: Serve, picture: Picture) -> None:
    client = serve()
    here = f"localhost:{client.port}"
    assert client.post(PREDICT, picture(), origin=f"http://{here}", host=here).status == 200
    for origin in ("http://evil.example", "null", "http://[", f"http://{here}.evil.example"):
        assert client.post(PREDICT, picture(), origin=origin, host=here).status == 403
    for host in ("evil.example", "", "[", f"{here}.evil.example"):
        assert client.get("/models", host=host).status == 421
    assert client.get("/models", host="[::1]:80").status == 200


def test_clients_that_take_their_time_are_cut_off(serve: Serve, picture: Picture) -> None:
    client = serve(head_s=0.5, body_s=0.5)
    started = time.monotonic()
    assert raw(client, b"POST /mod") == b""  # half a head, and nothing more
    assert raw(client, b"") == b""
    answer = raw(client, head(Content_Length="1000") + b"abc")
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 8
    with socket.create_connection((client.host, client.port), timeout=10) as connection:
        for letter in head("/models", "GET")[:-2]:  # a byte now and then
            try:
                connection.sendall(bytes([letter]))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.03)
        else:
            pytest.fail("a head that came byte by byte was waited for")
    assert client.post(PREDICT, picture()).status == 200


def test_a_client_that_does_not_take_its_answer_is_cut_off(serve: Serve) -> None:
    client = serve(send_s=0.5)
    pixels = np.random.default_rng(1).integers(0, 256, (1200, 1200, 3), np.uint8)
    data = cv2.imencode(".jpg", pixels)[1].tobytes()  # noise: the answers are large
    question = head(f"{PREDICT}?format=image", Content_Length=str(len(data))) + data
    with socket.create_connection((client.host, client.port), timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(question * 4)
        deadline = time.monotonic() + 20
        while client.service._server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not client.service._server.server_state.connections
    assert client.get("/models").status == 200


def test_heads_have_a_size(serve: Serve) -> None:
    client = serve()
    answer = raw(
        client, b"GET /models HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: " + b"a" * 2 * MAX_HEAD_BYTES
    )
    assert answer.startswith(b"HTTP/1.1 400")
    many = b"".join(b"X-%d: a\r\n" % n for n in range(20_000))
    assert raw(client, b"GET /models HTTP/1.1\r\nHost: localhost\r\n" + many).startswith(b"HTTP/1.1 400")


def test_there_is_a_most_of_connections(serve: Serve) -> None:
    client = serve(connections=4, head_s=30)
    held = [socket.create_connection((client.host, client.port)) for _ in range(4)]
    try:
        deadline = time.monotonic() + 5
        while len(client.service._server.server_state.connections) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        answer = raw(client, b"")
        assert answer.startswith(b"HTTP/1.1 503")
        assert answer.endswith(b'{"error": "too many connections: come again later"}')
    finally:
        for connection in held:
            connection.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA of our own, the service's certificate, a client's of that CA, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "2")
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("service", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
    stranger = ("-keyout", "stranger.key", "-out", "stranger.crt", "-subj", "/CN=stranger", "-days", "2")
    openssl("req", "-x509", *curve, *stranger)
    return folder


def test_mutual_tls(make_bundle: Any, certificates: Path) -> None:
    tls = Tls(
        certificate=certificates / "service.crt",
        key=certificates / "service.key",
        client_ca=certificates / "ca.crt",
    )
    settings_ = ServiceSettings(port=0, host="0.0.0.0", tls=tls, backend="cpu", watch_s=0)
    with Service({"ball": make_bundle()}, settings_) as service:
        url = service.url.replace("0.0.0.0", "localhost") + "/models"
        assert url.startswith("https://")

        def ask(name: str | None) -> bytes:
            context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
            if name is not None:
                context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
            with urllib.request.urlopen(url, context=context, timeout=10) as answer:
                return bytes(answer.read())

        assert b'"ball"' in ask("client")
        for name in (None, "stranger"):
            with pytest.raises(OSError):  # noqa: PT011 - the handshake or the first read fails, by version
                ask(name)


# -- a thousand requests that nobody would send ------------------------------------------------------

NAMES = [
    "",
    "models",
    "ball",
    "predict",
    "reload",
    "v2",
    "infer",
    "health",
    "ready",
    "..",
    "%2e",
    "metrics",
    "\x00",
    "é",
]
PATHS = st.lists(st.sampled_from(NAMES) | st.text(max_size=8), max_size=6).map("/".join)
PNG_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
BODIES = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=200).map(lambda b: b"\xff\xd8" + b),
    st.binary(max_size=200).map(lambda b: PNG_HEAD + b + b"IEND"),
    st.binary(max_size=200).map(lambda b: b"RIFF" + len(b).to_bytes(4, "little") + b"WEBPVP8X" + b),
    st.binary(max_size=200).map(lambda b: b"BM" + b),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters"]), inner
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Content-Type",
            "Content-Type",
            "Inference-Header-Content-Length",
            "Expect",
            "Cookie",
            "Origin",
            "Authorization",
            "X-Request-Id",
            "Connection",
            "Upgrade",
            "Content-Encoding",
            "Accept",
        ]
    ),
    st.sampled_from(
        ["multipart/form-data; boundary=x", "image/png", "100-continue", "close", "gzip", "-1", "7"]
    )
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    max_size=3,
)
METHODS = st.sampled_from(["POST"] * 9 + ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
FIXED = st.sampled_from(
    [PREDICT, "/models/color/predict?top=3", "/v2/models/ball/infer", "/models/ball/reload", "/v2", "/models"]
)


def fuzz(serve: Serve, examples: int) -> None:
    client = serve()
    seen: dict[int, int] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(METHODS, FIXED | FIXED | PATHS.map(lambda path: "/" + path), HEADERS, BODIES)
    def send(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        line = f"{method} {path} HTTP/1.1".encode("utf-8", "surrogatepass")
        lines = [line, b"Host: localhost", b"Content-Length: %d" % len(body), b"Connection: close"]
        lines += [f"{name}: {value}".encode() for name, value in headers.items()]
        answer = raw(client, b"\r\n".join([*lines, b"", b""]) + body)
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        status = int(answer[9:12])
        seen[status] = seen.get(status, 0) + 1
        assert 200 <= status < 500, (line, headers, body, answer)

    send()
    assert client.get("/models").status == 200
    assert client.service._state.budget.used_bytes == 0
    assert all(served.current.engine.admitted == 0 for served in client.service.models.values())
    assert {200, 400, 404, 405} <= seen.keys(), seen
    assert examples < 1_000 or {413, 415} & seen.keys(), seen


def test_some_strange_requests(serve: Serve) -> None:
    fuzz(serve, 60)


@pytest.mark.slow
def test_two_thousand_strange_requests(serve: Serve) -> None:
    fuzz(serve, 2_000)


def test_random_bytes_on_many_connections(serve: Serve, picture: Picture) -> None:
    client = serve()
    dice = random.Random(5)
    threads = [
        threading.Thread(target=raw, args=(client, dice.randbytes(dice.randrange(1, 3000)), 3.0))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.post(PREDICT, picture()).status == 200
