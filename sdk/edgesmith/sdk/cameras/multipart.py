"""Pictures out of an HTTP multipart stream, as careless servers send it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

LARGEST_PART = 32 << 20  # bytes; a 4K JPEG at full quality is below a third of it
LARGEST_HEAD = 16 << 10
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True)
class Part:
    """One picture.

    Attributes:
        body: a whole JPEG.
        began_ns: ``time.monotonic_ns`` when its header was complete.
        headers: names in lower case.
    """

    body: bytes
    began_ns: int
    headers: dict[str, str] = field(default_factory=dict)


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a ``Content-Type`` names, or None where it is not multipart."""
    kind, *parameters = content_type.split(";")
    if not kind.strip().lower().startswith("multipart/"):
        return None
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "boundary":
            # Some servers name it with the dashes that only belong into the stream.
            return value.strip().strip('"').lstrip("-").encode("latin-1") or None
    return None


class MultipartReader:
    """Bytes in, whole JPEGs out; what is none is passed over and counted in ``damaged``.

    Memory is bounded by ``largest``: a stream without boundaries is thrown away as it comes. A part is
    ended by its ``Content-Length`` where that is right, else by the next boundary.
    """

    def __init__(self, boundary: bytes, *, largest: int = LARGEST_PART) -> None:
        self.damaged = 0
        self._mark = b"--" + boundary.lstrip(b"-")
        self._largest = largest
        self._buffer = bytearray()
        self._headers: dict[str, str] | None = None
        self._began_ns = 0
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[Part]:
        """Take bytes of the stream; gives each picture that they complete."""
        self._buffer += data
        while True:
            if self._headers is None:
                if not self._read_head():
                    return
                continue
            done, body = self._read_body()
            if not done:
                return
            headers, self._headers, self._searched = self._headers, None, 0
            # Some servers pad a picture; nothing else may follow its end.
            picture = body.rstrip(b"\0\r\n")
            if picture.startswith(JPEG_START) and picture.endswith(JPEG_END):
                yield Part(picture, self._began_ns, headers)
            else:
                self.damaged += 1

    def _read_head(self) -> bool:
        """Past the next boundary and its header lines; False: more bytes are needed."""
        start = self._buffer.find(self._mark)
        if start < 0:
            keep = len(self._mark) - 1
            if len(self._buffer) > LARGEST_HEAD:
                self.damaged += 1
                del self._buffer[:-keep]
            return False
        begin = start + len(self._mark)
        ends = [
            (at, len(end)) for end in (b"\r\n\r\n", b"\n\n") if (at := self._buffer.find(end, begin)) >= 0
        ]
        if not ends:
            if len(self._buffer) - begin > LARGEST_HEAD:
                self.damaged += 1
                del self._buffer[:begin]
                return True
            return False
        at, width = min(ends)
        self._headers = {}
        for line in bytes(self._buffer[begin:at]).splitlines()[1:]:
            key, _, value = line.decode("latin-1").partition(":")
            self._headers[key.strip().lower()] = value.strip()
        del self._buffer[: at + width]
        self._began_ns = time.monotonic_ns()
        return True

    def _read_body(self) -> tuple[bool, bytes]:
        """Whether the part is complete, and its bytes.

        A boundary before the stated end means that the part is shorter than it says.
        """
        mark = self._find_mark()
        length = self._stated_length()
        if length is not None and len(self._buffer) >= length and not 0 <= mark < length:
            return True, self._take(length)
        if mark >= 0:
            return True, self._take(mark)
        if length is None and len(self._buffer) > self._largest:
            self._buffer.clear()
            return True, b""
        return False, b""

    def _find_mark(self) -> int:
        """Where the next boundary begins, or -1; bytes already searched are not searched again."""
        at = self._buffer.find(self._mark, max(self._searched - len(self._mark), 0))
        if at < 0:
            self._searched = len(self._buffer)
        return at

    def _take(self, count: int) -> bytes:
        body = bytes(self._buffer[:count])
        del self._buffer[:count]
        return body

    def _stated_length(self) -> int | None:
        text = (self._headers or {}).get("content-length", "")
        if not text.isdecimal() or len(text) > 12:
            return None
        return int(text) if 0 < int(text) <= self._largest else None
