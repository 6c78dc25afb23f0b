"""Who may ask, and the line that is written about each request."""

from __future__ import annotations

import logging
import secrets
import time
import urllib.parse
from http.cookies import CookieError, SimpleCookie

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgesmith.sdk.serve.metrics import Metrics
from edgesmith.sdk.serve.settings import ServiceSettings, Token

log = logging.getLogger(__name__)
access_log = logging.getLogger("edgesmith.access")
COOKIE = "edgesmith_serve"
NOTE = "edgesmith.note"  # key of the scope: what a handler tells the log of its request
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# What an orchestrator asks before it knows any secret; it says nothing but yes or no.
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class AccessLog:
    """The outermost layer: a line of JSON and a count for each request; the last resort for its errors.

    Neither query nor headers are written: a token may stand in them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and write about it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        note: dict[str, object] = {"status": 0, "bytes": 0}
        scope[NOTE] = note
        identity = _request_id(Headers(scope=scope).get("x-request-id"))

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                note["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identity
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            elif message["type"] == "http.response.body":
                note["bytes"] = int(str(note["bytes"])) + len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            log.exception("request %s failed", identity)
            if note["status"]:
                raise  # half an answer is out: the connection has to end
            await JSONResponse({"error": f"internal error, see the log for {identity}"}, 500)(
                scope, receive, sent
            )
        finally:
            self._write(scope, note, identity, time.monotonic() - started)

    def _write(self, scope: Scope, note: dict[str, object], identity: str, seconds: float) -> None:
        model, interface = str(note.pop("model", "")), str(note.pop("interface", ""))
        self._metrics.requests.labels(model, interface, str(note["status"])).inc()
        if model:
            self._metrics.request_seconds.labels(model, interface).observe(seconds)
        if access_log.isEnabledFor(logging.INFO):
            line = {
                "time": round(time.time(), 3),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"],
                "ms": round(seconds * 1e3, 2),
                "request": identity,
                **({"model": model, "interface": interface} if model else {}),
                **note,
            }
            access_log.info("%s", msgspec.json.encode(line).decode())


class Guard:
    """Lets in who knows the token; without one, this machine's own programs and pages only."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app = app
        self._token = settings.token
        # With a client's certificate, or a token, the name it was called by says nothing more.
        self._local = settings.token is None and (settings.tls is None or settings.tls.client_ca is None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer who may not come."""
        refusal = self._refused(scope) if scope["type"] == "http" else None
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return _no(403, "pages of other sites may not use this service")
        if self._local and _name_of(host) not in _LOCAL_NAMES:
            # A web site whose name was pointed at this machine comes with its own name.
            return _no(421, "this service answers to the name localhost only")
        if self._token is None or scope["path"] in _OPEN:
            return None
        return self._unknown(self._token, scope, headers)

    def _unknown(self, token: Token, scope: Scope, headers: Headers) -> Response | None:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and token.matches(bearer.strip()):
            return None
        if scope["path"] == "/" and scope["method"] == "GET":
            given = urllib.parse.parse_qs(scope["query_string"].decode("latin-1")).get("token")
            if given is not None and token.matches(given[0]):
                # Out of the address line at once: it would stay in the history and on the screen.
                answer = RedirectResponse("/", 303)
                answer.set_cookie(
                    COOKIE, token.key, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
                )
                return answer
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if COOKIE in cookies and token.matches_key(cookies[COOKIE].value):
            return None
        text = "this service needs its token: Authorization: Bearer ..., or open /?token=... in a browser"
        return _no(401, text, {"WWW-Authenticate": "Bearer"})


def note(scope: Scope, **facts: object) -> None:
    """Tell the request's line of the log: the model, its interface, its batch."""
    scope[NOTE].update(facts)


def _no(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    # What else such a client sends is not going to be read.
    return JSONResponse({"error": text}, status, {"Connection": "close", **(headers or {})})


def _name_of(host: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(f"//{host}")
        _ = parts.port  # "localhost:80.example" has no such thing
        return parts.hostname
    except ValueError:
        return None


def _request_id(given: str | None) -> str:
    """The client's own number of its request where it is harmless, else a new one."""
    if given and len(given) <= 64 and given.isascii() and given.replace("-", "").isalnum():
        return given
    return secrets.token_hex(8)
