"""uvicorn's HTTP protocol with limits on what a client may do without having said anything useful.

uvicorn waits forever for the rest of a request's head, and for a client that does not take its answer. Here
both have a time, the head has a size, and there is a most of connections.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)
MAX_HEAD_BYTES = 64 << 10
_BUSY_TEXT = b'{"error": "too many connections: come again later"}'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(_BUSY_TEXT), _BUSY_TEXT)
)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. The limits are the class's: :func:`guarded` makes one with others."""

    head_s = 10.0
    send_s = 30.0
    most = 512

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes = False, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Turn away a crowd; the others have a time for their first head."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_BUSY)
            transport.close()
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives its connection."""
        self._end_head()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A head has a size and a time; a body's are the application's."""
        if self._between():
            self._begin_head()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._end_head()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client does not take what it asked for: it has a time."""
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.send_s, self._abort)

    def resume_writing(self) -> None:
        """It took it."""
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
        if self.flow is not None:
            super().resume_writing()

    def _between(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _begin_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._abort)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _abort(self) -> None:
        log.info("a connection from %s took too long and was cut off", self.client)
        self.transport.abort()


def guarded(*, head_s: float, send_s: float, most: int) -> type[GuardedProtocol]:
    """The protocol with these limits; uvicorn makes one object of it a connection."""
    limits = {"head_s": head_s, "send_s": send_s, "most": most}
    return type("GuardedProtocol", (GuardedProtocol,), limits)
