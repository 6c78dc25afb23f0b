"""How a service is set up."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path

import msgspec

from edgesmith.sdk.errors import ConfigError

MIN_TOKEN = 16
_LEAST: dict[str, float] = {
    "port": 0, "device": 0, "threads": 1, "instances": 1, "max_batch": 1, "wait_ms": 0, "queue": 1,
    "deadline_ms": 1,
    "max_body_bytes": 1, "max_pixels": 1, "max_files": 1, "max_memory_bytes": 1, "head_s": 0.1,
    "body_s": 0.1, "send_s": 0.1, "keep_alive_s": 1, "connections": 1, "watch_s": 0,
}  # fmt: skip


class Token:
    """A secret that clients have to know. It shows itself nowhere: not in a log, not in a traceback.

    Raises:
        ConfigError: it is too short to be safe.
    """

    __slots__ = ("_secret", "key")

    def __init__(self, secret: str) -> None:
        if len(secret) < MIN_TOKEN or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigError(
                f"the token must have {MIN_TOKEN} or more printable ASCII characters and no blank, such as "
                "`openssl rand -hex 24` gives"
            )
        self._secret = secret.encode()
        # A browser keeps a key made from the token, not the token itself.
        self.key = hashlib.sha256(b"serve " + self._secret).hexdigest()

    def matches(self, given: str) -> bool:
        """Whether it is this one, compared in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._secret)

    def matches_key(self, given: str) -> bool:
        """Whether it is the browser's key, compared in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.key.encode())

    def __repr__(self) -> str:
        return "Token(...)"


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """``certificate`` and ``key`` of the service as PEM files; ``client_ca`` signs those of its clients.

    With ``client_ca`` a client without a certificate gets no connection (mutual TLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All there is to set.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        token, tls: who may come; one of token and mutual TLS is needed where others can reach it.
        backend, variant, device, threads: as for :func:`~edgesmith.sdk.models.load_model`.
        instances: engines of one model that run at the same time. None: on the CPU one a core with a thread
            each, which answers most requests a second; one on anything else.
        max_batch: images that share a run. None: as many as the bundle takes; one where each core has an
            engine of its own, since a thread gains nothing by a batch.
        wait_ms: how long a request waits for others to share its batch.
        queue: images of one model that may be under way; beyond them the answer is 429.
        deadline_ms: an answer that takes longer is 504.
        max_body_bytes, max_pixels, max_files: of one request: its size, one picture's pixels, its pictures.
        max_memory_bytes: uploads and decoded pixels of all requests together.
        head_s, body_s, send_s, keep_alive_s: a client that takes longer for its request's head or body, to
            take the answer, or to send another request, is cut off.
        connections: open at one time.
        watch_s: how often the bundle files are looked at for a change; 0 for never.

    Raises:
        ConfigError: others could reach it and nothing keeps them out, or settings contradict each other.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: Token | None = None
    tls: Tls | None = None
    backend: str = "auto"
    variant: str | None = None
    device: int = 0
    threads: int | None = None
    instances: int | None = None
    max_batch: int | None = None
    wait_ms: float = 2.0
    queue: int = 64
    deadline_ms: float = 10_000.0
    max_body_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    max_files: int = 16
    max_memory_bytes: int = 512 << 20
    head_s: float = 10.0
    body_s: float = 30.0
    send_s: float = 30.0
    keep_alive_s: float = 15.0
    connections: int = 512
    watch_s: float = 1.0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more")
        guarded = self.token is not None or (self.tls is not None and self.tls.client_ca is not None)
        if not guarded and not is_local(self.host):
            raise ConfigError(
                f"{self.host} can be reached by others: give a token (--token-file) or ask clients for a "
                "certificate (--client-ca), or stay on 127.0.0.1 behind a tunnel"
            )
        if self.max_body_bytes > self.max_memory_bytes:
            raise ConfigError("max_body_bytes is more than max_memory_bytes, which is for all requests")


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
