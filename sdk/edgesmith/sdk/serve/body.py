"""A request's body, counted as it comes: by the length that is declared, and by what really arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from edgesmith.sdk.serve.budget import Hold
from edgesmith.sdk.serve.refusal import Refusal
from edgesmith.sdk.serve.settings import ServiceSettings

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture of a request: the name that the client gave its file, and its bytes."""

    name: str
    data: bytes


async def read_body(request: Request, settings: ServiceSettings, held: Hold) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413, it is too large; 408, it took too long; 415, it is compressed, and what it
            would become is not known; 429, all requests together hold too much.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refusal(415, f"the body is {encoding}; send it as it is", close=True)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_body_bytes:
        raise _too_large(int(declared), settings)
    try:
        return await asyncio.wait_for(_read(request, settings, held), settings.body_s)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body did not arrive within {settings.body_s:g} s", close=True) from None
    except ClientDisconnect:
        raise Refusal(400, "the client went away before its request was whole", close=True) from None


async def _read(request: Request, settings: ServiceSettings, held: Hold) -> bytes:
    body = bytearray()
    async for block in request.stream():
        held.take(len(block))
        body += block
        if len(body) > settings.max_body_bytes:
            raise _too_large(len(body), settings)
    return bytes(body)


def _too_large(size: int, settings: ServiceSettings) -> Refusal:
    return Refusal(413, f"the body has {size:,} bytes; {settings.max_body_bytes:,} may be sent", close=True)


def uploads_of(content_type: str, body: bytes, max_files: int) -> list[Upload]:
    """The files of a ``multipart/form-data`` body.

    Raises:
        Refusal: 400, it is malformed, holds no file or something else than files; 413, too many.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise Refusal(400, "multipart/form-data needs its boundary, of 1 to 70 characters")
    parts = _Parts(max_files)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise Refusal(400, f"the multipart body is malformed: {error}") from error
    if not parts.ended:
        raise Refusal(400, "the multipart body is cut off")
    if not parts.found:
        raise Refusal(400, "the multipart body holds no file")
    return parts.found


class _Parts:
    """Collects the files while the parser goes through the body."""

    def __init__(self, max_files: int) -> None:
        self.found: list[Upload] = []
        self.ended = False
        self._max = max_files
        self._field, self._value = bytearray(), bytearray()
        self._name: str | None = None
        self._data = bytearray()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """By the parser's names of the events."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.found) >= self._max:
            raise Refusal(413, f"more than {self._max} files in one request")
        self._name, self._data = None, bytearray()

    def _header(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            if b"filename" in options:
                self._name = options[b"filename"].decode("utf-8", "replace")[:_MAX_NAME]
        self._field, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        if self._name is None:
            raise Refusal(400, "a part of the multipart body is no file: it has no filename")
        self.found.append(Upload(self._name, bytes(self._data)))

    def _finish(self) -> None:
        self.ended = True
