"""The HTTP side of the live page: who may look, and what is sent."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import importlib.resources
import logging
import secrets
import select
import socket
import socketserver
import threading
import time
import urllib.parse
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol

import msgspec

log = logging.getLogger(__name__)

_COOKIE = "edgesmith_view"
_BOUNDARY = "edgesmith-picture"
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_CLIENTS = 32


class Page(Protocol):
    """What the server shows; see :class:`~edgesmith.sdk.sinks.view.WebView`."""

    title: str
    max_fps: float
    vitals: Any

    def stats(self) -> dict[str, Any]:
        """The figures."""
        ...

    def picture(self, number: int, after: int, timeout: float) -> tuple[int, bytes | None] | None:
        """A camera's newest picture."""
        ...


class ViewServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves one page, a thread a connection, at most 32 of them.

    Raises:
        OSError: the address cannot be bound.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, page: Page, host: str, port: int, token: str | None) -> None:
        self.page, self.token = page, token
        self.html = importlib.resources.files(__package__).joinpath("view.html").read_text(encoding="utf-8")
        # The browser keeps a key made from the token, not the token itself.
        self.key = hashlib.sha256(b"view " + (token or "").encode()).hexdigest()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="view-server", daemon=True
        )

    def server_bind(self) -> None:
        """Bind without the reverse look-up of the own name, which takes seconds without a network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    @property
    def url(self) -> str:
        """``http://HOST:PORT/``."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End: no thread, no connection, no port is left."""
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in a send
            except OSError as error:
                log.debug("view: a connection was gone already: %s", error)
        self._thread.join(2.0)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Turn away a crowd: each connection is a thread."""
        with self._lock:
            if len(self._connections) >= _MAX_CLIENTS:
                log.warning("view: more than %d connections, one was turned away", _MAX_CLIENTS)
                return False
            self._connections.add(request)
        return True

    def shutdown_request(self, request: Any) -> None:
        """A connection ends."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of a picture is no error."""
        log.debug("view: a connection from %s ended early", client_address[0], exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = 10.0  # of one receive or send: who takes no byte for so long is gone
    server_version = "edgesmith"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: their first line may hold the token."""

    def do_GET(self) -> None:
        """Answer one request."""
        parts = urllib.parse.urlsplit(self.path)
        if parts.path == "/health":
            well, body = self.server.page.vitals.health()
            self._json(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, body)
        elif not self._right_host():
            self._text(HTTPStatus.MISDIRECTED_REQUEST, "this page answers to the name localhost only")
        elif self.server.token is not None and not self._known(parts, self.server.token):
            return  # it was answered
        elif parts.path == "/":
            self._page()
        elif parts.path == "/stats":
            self._json(HTTPStatus.OK, self.server.page.stats())
        else:
            kind, _, number = parts.path.lstrip("/").partition("/")
            if kind in ("stream", "picture") and number.isdecimal() and len(number) < 6:
                (self._stream if kind == "stream" else self._picture)(int(number))
            else:
                self._text(HTTPStatus.NOT_FOUND, "there is no such page")

    do_HEAD = do_GET

    def _right_host(self) -> bool:
        """Without a token the page is for this machine; a web site whose name was pointed here is not."""
        if self.server.token is not None:
            return True
        host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return host in _LOCAL_NAMES

    def _known(self, parts: urllib.parse.SplitResult, token: str) -> bool:
        """Whether the request knows the token; otherwise it is answered here."""
        kind, _, bearer = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(bearer.strip(), token):
            return True
        given = urllib.parse.parse_qs(parts.query).get("token")
        if given is not None and _same(given[0], token):
            # Out of the address line at once: it would stay in the history and on the screen.
            self.send_response(HTTPStatus.SEE_OTHER)
            self.send_header("Location", parts.path)
            cookie = f"{_COOKIE}={self.server.key}; HttpOnly; SameSite=Strict; Path=/"
            self.send_header("Set-Cookie", cookie)
            self._headers(0, "text/plain")
            return False
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if _COOKIE in cookies and _same(cookies[_COOKIE].value, self.server.key):
            return True
        self._text(HTTPStatus.UNAUTHORIZED, "this page needs its token: open /?token=...")
        return False

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        body = self.server.html.replace("{{nonce}}", nonce).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
            f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self._headers(len(body), "text/html; charset=utf-8")
        self._body(body)

    def _picture(self, number: int) -> None:
        got = self.server.page.picture(number, 0, 1.0)
        if got is None or got[1] is None:
            self._text(HTTPStatus.NOT_FOUND, "there is no picture of this camera")
            return
        self.send_response(HTTPStatus.OK)
        self._headers(len(got[1]), "image/jpeg")
        self._body(got[1])

    def _stream(self, number: int) -> None:
        """Pictures until the browser leaves.

        Each is followed at once by the head of the next: browsers show a picture when that comes. (Its
        length, not known by then, is not needed.)
        """
        page, version = self.server.page, 0
        if page.picture(number, 0, 0.0) is None:
            self._text(HTTPStatus.NOT_FOUND, "there is no such camera")
            return
        self.close_connection = True
        # A small buffer: what waits in it is old by the time a slow browser shows it.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.send_response(HTTPStatus.OK)
        self._headers(None, f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        if self.command == "HEAD":
            return
        head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
        self.wfile.write(head)
        while (got := page.picture(number, version, 1.0)) is not None:
            if self._gone():
                return
            version, jpeg = got
            if jpeg is None:
                continue
            self.wfile.write(jpeg + b"\r\n" + head)
            time.sleep(1 / page.max_fps)

    def _gone(self) -> bool:
        """Whether the browser has closed its side; it sends nothing else in a stream."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0))

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._text(status, msgspec.json.encode(value).decode(), "application/json")

    def _text(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self._headers(len(body), kind)
        self._body(body)

    def _headers(self, length: int | None, kind: str) -> None:
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _body(self, body: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(body)


def _same(given: str, wanted: str) -> bool:
    """Compared in constant time, so that its length of agreement cannot be measured."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
