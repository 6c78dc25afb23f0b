"""Addresses of network cameras, with their credentials kept apart from everything that is shown."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from edgesmith.sdk.errors import CameraError, ConfigError

# Cameras also take credentials in the query, and pipelines as properties of an element.
SECRETS = re.compile(
    r"\b(user(?:name|-id)?|usr|login|pass(?:word|wd)?|pwd|user-pw|proxy-pw|token|auth|key|secret)=(\"[^\"]*\"|[^&\s]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Address:
    """A network camera's address.

    Attributes:
        url: without credentials: this one may be shown.
        location: without user and password, but whole: a query may hold secrets of its own.
        user, password: decoded, or None; like ``location`` not part of the text of this object.
        host, port: where it listens.
        target: path and query, as a request names them.
    """

    url: str
    host: str
    port: int
    target: str = field(repr=False)
    location: str = field(repr=False)
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


def read_address(url: str, port: int) -> Address:
    """Take an address apart.

    Args:
        url: ``scheme://user:password@host:port/path``.
        port: where the address names none.

    Raises:
        ConfigError: it has no host, or a port that is no number.
    """
    shown = without_credentials(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or port
    except ValueError:
        raise ConfigError(f"{shown}: not an address: write {shown.split(':')[0]}://HOST:PORT/PATH") from None
    if not host:
        raise ConfigError(f"{shown}: the address names no host")
    return Address(
        url=shown,
        host=host,
        port=port,
        location=without_user(url),
        target=urlunsplit(("", "", parts.path or "/", parts.query, "")),
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )


def without_credentials(text: str) -> str:
    """An address as it may be shown; works on broken ones too, and on a pipeline text with one in it."""
    return SECRETS.sub(r"\1=***", without_user(text))


def without_user(text: str) -> str:
    """The text with user and password taken out of each address in it."""
    shown = []
    for word in text.split(" "):
        scheme, mark, rest = word.partition("://")
        # A password may hold "/" or "@" unescaped: everything up to the last "@" goes.
        shown.append(f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else word)
    return " ".join(shown)


def diagnose(address: Address, timeout_s: float) -> CameraError | None:
    """Why a host cannot be reached, found by trying; None where it answers.

    Libraries tell a dead host, a closed port and an unknown name apart badly or not at all.
    """
    where = f"{address.host}:{address.port}"
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except socket.gaierror as error:
        return CameraError(
            f"{address.url}: the name {address.host} cannot be resolved ({error.strerror}): check its "
            "spelling and this machine's DNS, or use the number",
            reason="dns",
        )
    except ConnectionRefusedError:
        return CameraError(
            f"{address.url}: nothing listens at {where}: is the camera's service on, and is it this port?",
            reason="refused",
        )
    except TimeoutError:
        return CameraError(
            f"{address.url}: {where} does not answer within {timeout_s:g} s: is it on, and on this network?",
            reason="unreachable",
        )
    except OSError as error:
        return CameraError(
            f"{address.url}: {where} cannot be reached: {error.strerror or error}", reason="unreachable"
        )
    return None
