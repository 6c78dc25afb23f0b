"""A live page: pictures with boxes, rates, latencies, drops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.naming import camera_of
from edgesmith.sdk.sinks.view_server import ViewServer
from edgesmith.sdk.sinks.vitals import Vitals, temperatures

log = logging.getLogger(__name__)

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class WebView:
    """The page, its pictures and figures over HTTP.

    ``/`` is the page, ``/stats`` its figures as JSON, ``/stream/N`` the camera's pictures (MJPEG),
    ``/picture/N`` the newest one, ``/health`` 200 while results come and 503 otherwise. Pictures are drawn
    and encoded by those who look, so a page that nobody has open costs nothing, and a slow browser gets
    fewer pictures.

    Args:
        address: ``:8080`` (this machine alone), ``HOST:8080``, or ``0.0.0.0:8080`` for all; port 0 takes a
            free one.
        token: what a browser has to know (``/?token=...`` once, then a cookie). Needed where others than
            this machine can reach the page.
        title: the page's heading.
        max_fps: pictures a second for one browser.
        max_side: longer side of the pictures in pixels.
        quality: of the JPEG, 1..100.
        stale_s: seconds without a result after which a camera counts as stalled.
        status: state by source, of cameras that give no results too (``reconnecting``, ``failed``).

    Raises:
        ConfigError: the address is none, or is open to others without a token.
        SinkError: the port is taken.
    """

    def __init__(
        self,
        address: str = ":8080",
        *,
        token: str | None = None,
        title: str = "edgesmith",
        max_fps: float = 15.0,
        max_side: int = 960,
        quality: int = 80,
        stale_s: float = 5.0,
        status: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        host, port = split_address(address)
        if token is None and host not in _LOCAL:
            raise ConfigError(
                f"view: {address} can be reached by others: set a token of 16 characters or more, "
                f"or use :{port} and a tunnel (ssh -L)"
            )
        if token is not None and len(token) < 16:
            raise ConfigError("view: the token is too short to be safe: 16 characters or more")
        if max_fps <= 0 or max_side < 16 or not 1 <= quality <= 100:
            raise ConfigError(f"view: max_fps {max_fps}, max_side {max_side} (16 or more), quality {quality}")
        self.notes: list[str] = []
        self.title, self.max_fps, self.status = title, max_fps, status
        self.vitals = Vitals(stale_s=stale_s)
        self._max_side, self._quality = max_side, quality
        self._came = threading.Condition()
        self._pictures: dict[str, _Picture] = {}
        self.closed = False
        try:
            self._server = ViewServer(self, host, port, token)
        except OSError as error:
            raise SinkError(f"view: {address}: cannot be served: {error.strerror or error}") from error
        self._server.start()

    @property
    def url(self) -> str:
        """Where the page is, without the token."""
        return self._server.url

    def write(self, result: Result) -> None:
        """Show one result; never waits for a browser."""
        self.vitals.add(result)
        with self._came:
            source = camera_of(result)
            if source not in self._pictures:
                self._pictures[source] = _Picture()
            self._pictures[source].put(result)
            self._came.notify_all()

    def close(self) -> None:
        """End the server and every stream."""
        with self._came:
            self.closed = True
            self._came.notify_all()
        self._server.stop()

    def stats(self) -> dict[str, Any]:
        """What ``/stats`` answers: ``title``, ``uptime_s``, ``temperatures`` (by zone), ``cameras``."""
        cameras = self.vitals.cameras()
        states = dict(self.status()) if self.status is not None else {}
        for number, camera in enumerate(cameras):
            camera["picture"] = number
            camera["state"] = states.pop(camera["source"], camera["state"])
        # Cameras that never gave a result are shown too: a dark tile says more than a missing one.
        cameras += [{"source": source, "state": state, "picture": None} for source, state in states.items()]
        return {
            "title": self.title,
            "uptime_s": self.vitals.uptime_s,
            "temperatures": temperatures(),
            "cameras": cameras,
        }

    def picture(self, number: int, after: int, timeout: float) -> tuple[int, bytes | None] | None:
        """The newest picture of a camera as JPEG and its version, once it is newer than ``after``.

        ``(after, None)`` where none came in time, None where there is no such camera or the page ended.
        """
        with self._came:
            pictures = list(self._pictures.values())
            if not 0 <= number < len(pictures):
                return None
            picture = pictures[number]
            self._came.wait_for(lambda: picture.version > after or self.closed, timeout)
            if self.closed:
                return None
            if picture.version <= after:
                return after, None
        return picture.jpeg(self._max_side, self._quality)


class _Picture:
    """The newest result of a camera; drawn and encoded once, when somebody looks."""

    def __init__(self) -> None:
        self.version = 0
        self._result: Result | None = None
        self._encoding = threading.Lock()
        self._encoded: tuple[int, bytes | None] = (0, None)

    def put(self, result: Result) -> None:
        # One assignment each, result first: a reader that sees the version finds at least that result.
        self._result = result
        self.version += 1

    def jpeg(self, max_side: int, quality: int) -> tuple[int, bytes | None]:
        with self._encoding:
            version, result = self.version, self._result
            if self._encoded[0] != version and result is not None:
                image = result.answer.draw(result.frame.image)
                ratio = max_side / max(image.shape[:2])
                if ratio < 1:
                    size = max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio))
                    image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
                good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
                self._encoded = version, data.tobytes() if good else None
            return self._encoded


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT``; without a host, this machine alone.

    Raises:
        ConfigError: there is no port in it.

    >>> split_address(":8080"), split_address("0.0.0.0:80"), split_address("[::1]:8080")
    (('127.0.0.1', 8080), ('0.0.0.0', 80), ('::1', 8080))
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"view: {address!r} is no address: :8080 or HOST:8080")
    return host.strip("[]") or "127.0.0.1", int(port)
