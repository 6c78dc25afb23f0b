"""The service: models, the server that asks them, its beginning and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType

import uvicorn

from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.errors import BackendError, ConfigError
from edgesmith.sdk.serve.app import build
from edgesmith.sdk.serve.budget import Budget
from edgesmith.sdk.serve.metrics import Metrics
from edgesmith.sdk.serve.protocol import guarded
from edgesmith.sdk.serve.served import Change, Served
from edgesmith.sdk.serve.settings import ServiceSettings
from edgesmith.sdk.serve.state import State

log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_GRACE_S = 5.0
_BACKLOG = 1024


class Service:
    """Bundles behind HTTP.

        with Service({"yolox": "yolox.edge"}, ServiceSettings(port=0)) as service:
            print(service.url)

    Every bundle is loaded and self-tested before the first request is taken.

    Args:
        bundles: path by the name that clients use.
        settings: all there is to set.

    Raises:
        ConfigError: a name cannot stand in an address, or TLS's files cannot be used.
        EdgesmithError: a bundle cannot be read or run here, or fails its self-test.
        BackendError: the address cannot be bound.
    """

    def __init__(
        self, bundles: Mapping[str, str | os.PathLike[str]], settings: ServiceSettings | None = None
    ) -> None:
        self.settings = settings = settings or ServiceSettings()
        if not bundles:
            raise ConfigError("there is no bundle to serve")
        for name in bundles:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot be the name of a served model: letters, digits, . _ -")
        self._socket = _bound(settings)
        metrics = Metrics()
        self._models: dict[str, Served] = {}
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="serve-pool")
        self._state = State(
            settings=settings,
            models=self._models,
            pool=self._pool,
            budget=Budget(settings.max_memory_bytes),
            metrics=metrics,
        )
        try:
            self._server = self._made()
            for name, path in bundles.items():
                self._models[name] = Served(
                    name, Path(path), settings, observe=metrics.batch, changed=self._told
                )
        except BaseException:
            self._end()
            raise
        self._socket.listen(_BACKLOG)  # from here on clients wait for the first answer
        metrics.watch(lambda: self._models, lambda: self._state.budget.used_bytes)
        self._thread: threading.Thread | None = None
        self._look = self._interrupted = False

    @property
    def url(self) -> str:
        """``http://HOST:PORT``."""
        host, port = self._socket.getsockname()[:2]
        scheme = "http" if self.settings.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def models(self) -> Mapping[str, Served]:
        """What is served, by name."""
        return self._models

    def run(self) -> bool:
        """Serve until SIGTERM or SIGINT, then answer what was accepted. SIGHUP looks at the bundles at once.

        For the main thread. Returns True where SIGINT ended it.
        """
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            self._serve()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._interrupted

    def start(self) -> None:
        """Serve in a thread; :meth:`stop` ends it."""
        self._thread = threading.Thread(target=self._serve, name="serve", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, answer those that were accepted, free everything."""
        self._state.draining.set()
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Look at the bundles' files at once, also at those that were refused."""
        self._look = True

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.look()
        elif self._state.draining.is_set() and number == signal.SIGINT:
            self._server.force_exit = True  # a second Ctrl-C does not wait
        else:
            self._interrupted = number == signal.SIGINT
            self._state.draining.set()
            self._server.should_exit = True

    def _made(self) -> uvicorn.Server:
        settings = self.settings
        protocol = guarded(head_s=settings.head_s, send_s=settings.send_s, most=settings.connections)
        config = uvicorn.Config(
            build(self._state),
            http=protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="error",  # it warns of each malformed request: anyone could fill the log
            access_log=False,
            backlog=_BACKLOG,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(settings.keep_alive_s)),
            timeout_graceful_shutdown=round(settings.deadline_ms / 1e3 + settings.body_s + _GRACE_S),
        )
        try:
            if settings.tls is not None:
                authority = settings.tls.client_ca
                config.ssl_certfile, config.ssl_keyfile = settings.tls.certificate, settings.tls.key
                config.ssl_ca_certs = None if authority is None else str(authority)
                config.ssl_cert_reqs = ssl.CERT_NONE if authority is None else ssl.CERT_REQUIRED
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS: the certificate, key or client CA cannot be used: {error}") from error
        return _Server(config)

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        finally:
            self._end()

    async def _main(self) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Look at the bundles' files from time to time, and when asked to."""
        since, step = 0.0, 0.1
        while True:
            await asyncio.sleep(step)
            since += step
            again, self._look = self._look, False
            if again or (self.settings.watch_s and since >= self.settings.watch_s):
                since = 0.0
                for served in self._models.values():
                    await served.look(again=again)

    def _told(self, model: str, change: Change) -> None:
        self._state.metrics.change(model, change)

    def _end(self) -> None:
        for served in self._models.values():
            served.close()
        self._pool.shutdown(wait=True)
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn's server; the signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the process's handlers as they are."""
        yield


def names_of(paths: list[Path]) -> dict[str, Path]:
    """Bundles by the name in their manifest; the file's name where two share it.

    Raises:
        ConfigError: two files have one name as well.
        BundleError: one cannot be read.
    """
    names = [Bundle.open(path).manifest.name for path in paths]
    names = [path.stem if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100] or "model" for name in names]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two bundles are called {name!r}: rename a file, or give names (NAME=PATH)")
    return dict(zip(names, paths, strict=True))


def _bound(settings: ServiceSettings) -> socket.socket:
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.set_inheritable(False)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise BackendError(f"{host}:{port}: cannot be served: {reason}") from error
    return bound
