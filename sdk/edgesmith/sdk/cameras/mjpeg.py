"""HTTP cameras that send one JPEG after the other (``multipart/x-mixed-replace``)."""

from __future__ import annotations

import http.client
import socket
import ssl

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.address import Address, diagnose, read_address
from edgesmith.sdk.cameras.http_auth import authorization
from edgesmith.sdk.cameras.live import LiveCamera
from edgesmith.sdk.cameras.multipart import MultipartReader, Part, boundary_of
from edgesmith.sdk.cameras.options import CAMERA_FROZEN_MS, LiveOptions
from edgesmith.sdk.cameras.request import Request
from edgesmith.sdk.cameras.session import Grab, Link, Session
from edgesmith.sdk.errors import CameraError, CameraLost

CHUNK = 64 << 10


def decode(body: bytes) -> NDArray[np.uint8]:
    """A JPEG's pixels, BGR uint8 ``(H, W, 3)``.

    Raises:
        CameraError: it cannot be decoded.
    """
    try:
        image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise CameraError(f"a picture cannot be decoded: {error.err}", reason="damaged") from error
    if image is None:
        raise CameraError(f"a picture of {len(body):,} bytes cannot be decoded", reason="damaged")
    return np.asarray(image, np.uint8)


def mjpeg_session(address: Address, *, timeout_s: float) -> Session:
    """A stream of JPEGs.

    Args:
        address: of the stream.
        timeout_s: no single wait for the network takes longer.
    """

    def run(link: Link) -> None:
        challenges = _attempt(address, link, timeout_s, None)
        if challenges and not link.closing:
            # Only when asked: a password sent unasked is a password shown to everybody on the way.
            answer = authorization(
                challenges, user=address.user or "", password=address.password or "", target=address.target
            )
            _attempt(address, link, timeout_s, answer or "")

    return run


def _attempt(address: Address, link: Link, timeout_s: float, answer: str | None) -> list[str]:
    """One connection; returns when the link closes, or with the server's questions who is there."""
    connection = _connection(address, timeout_s)
    try:
        _connect(connection, address, timeout_s)
        # Shutting the socket down is what wakes a blocked read; closing it does not.
        link.on_cancel(lambda: _shut(connection.sock))
        return _stream(connection, address, link, answer)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, CameraError):
            raise
        if link.closing:
            return []
        raise _lost(address, error) from error
    finally:
        connection.close()


def _connection(address: Address, timeout_s: float) -> http.client.HTTPConnection:
    if address.url.startswith("https://"):
        return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s)
    return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)


def _connect(connection: http.client.HTTPConnection, address: Address, timeout_s: float) -> None:
    try:
        connection.connect()
    except ssl.SSLError as error:
        raise CameraError(
            f"{address.url}: no encrypted connection: {error.reason or error}: is it plain http://, or is "
            "its certificate unknown to this machine?",
            reason="tls",
        ) from error
    except OSError as error:
        found = diagnose(address, timeout_s)
        raise (found or _lost(address, error)) from error


def _shut(sock: socket.socket | None) -> None:
    if sock is None:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was faster


def _stream(
    connection: http.client.HTTPConnection, address: Address, link: Link, answer: str | None
) -> list[str]:
    # HTTP/1.0-style headers only: no compression, no keep-alive.
    headers = {"Accept": "multipart/x-mixed-replace, image/jpeg", "Connection": "close"}
    if answer:
        headers["Authorization"] = answer
    connection.request("GET", address.target, headers=headers)
    sock = connection.sock
    with connection.getresponse() as response:
        # http.client drops its reference when the response takes the socket over.
        link.on_cancel(lambda: _shut(sock))
        if response.status == 401 and address.user is not None and answer is None:
            return response.headers.get_all("WWW-Authenticate", [])
        _check(response, address, answer)
        boundary = boundary_of(response.headers.get("Content-Type", ""))
        if boundary is None:
            kind = response.headers.get("Content-Type", "nothing")
            raise CameraError(
                f"{address.url} sends {kind}, not multipart/x-mixed-replace: is this the address of the "
                "MJPEG stream, not of a page or a single picture?",
                reason="not-a-stream",
            )
        reader = MultipartReader(boundary)
        damaged = 0
        while not link.closing:
            data = response.read1(CHUNK)
            if not data:
                raise CameraLost(f"{address.url}: the server closed the stream", reason="lost")
            for part in reader.feed(data):
                link.hint("", "")
                link.put(_grab(part))
            if reader.damaged > damaged:
                damaged = reader.damaged
                link.hint("damaged", f"what the server sends is no picture ({damaged} damaged parts)")
                link.fault(f"damaged part {damaged}")
    return []


def _grab(part: Part) -> Grab:
    stamp = part.headers.get("x-timestamp", "")
    try:
        source_ns = int(float(stamp) * 1e9) if stamp else None
    except (ValueError, OverflowError):
        source_ns = None
    return Grab(lambda: decode(part.body), captured_ns=part.began_ns, source_ns=source_ns)


def _check(response: http.client.HTTPResponse, address: Address, answer: str | None) -> None:
    status, where = response.status, f"{address.url} answers {response.status} {response.reason}"
    if status == 200:
        return
    if status in (401, 403):
        if answer:
            why = "the user or password is wrong"
        elif address.user is not None:
            wants = response.headers.get("WWW-Authenticate", "nothing that it names").split(" ")[0]
            why = f"it wants {wants}, and only Basic and Digest (MD5, SHA-256) are known here"
        else:
            why = "it wants http://USER:PASSWORD@HOST"
        raise CameraError(f"{where}: {why}", reason="unauthorized")
    if status in (404, 410):
        raise CameraError(f"{where}: there is no such stream on this camera", reason="not-found")
    if 300 <= status < 400:
        raise CameraError(f"{where}: use the address that it names itself", reason="not-found")
    raise CameraError(f"{where}: the camera has a problem of its own", reason="server")


def _lost(address: Address, error: Exception) -> CameraError:
    if isinstance(error, TimeoutError):
        return CameraLost(f"{address.url}: nothing comes any more", reason="stalled")
    if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.IncompleteRead):
        return CameraError(
            f"{address.url}: the answer is not HTTP ({type(error).__name__})", reason="protocol"
        )
    text = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return CameraLost(f"{address.url}: the connection broke: {text}", reason="lost")


def open_mjpeg(request: Request) -> LiveCamera:
    """An HTTP camera; see ``open_camera``."""
    request.refuse(fps=request.fps)
    options = request.read(LiveOptions)
    address = read_address(request.source, 443 if request.source.lower().startswith("https:") else 80)
    timeout_s = max(options.open_s, options.stall_ns(None) / 1e9)
    session = mjpeg_session(address, timeout_s=timeout_s)
    return request.live(session, options, usual_frozen_ms=CAMERA_FROZEN_MS)
