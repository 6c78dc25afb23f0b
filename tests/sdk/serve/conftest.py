"""A running service over tiny bundles, and a client that speaks plain HTTP."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.models import Model, load_model
from edgesmith.sdk.serve import Service, ServiceSettings

MakeBundle = Callable[..., Path]


class Answered:
    """An answer: ``status``, ``headers`` and ``body``; ``json`` is the body read as such."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.body = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        assert 400 <= self.status < 600, self.body
        text = self.json["error"]
        assert isinstance(text, str)
        assert "\n" not in text
        return text


class Client:
    """Asks one service, a connection a request."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.url, self.host, self.port = url, str(parts.hostname), int(parts.port or 0)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answered:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            return Answered(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answered:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answered:
        return self.ask("POST", path, body, **headers)


@pytest.fixture
def serve(make_bundle: MakeBundle) -> Iterator[Callable[..., Client]]:
    """Starts a service: the tiny detector as ``ball``, the tiny classifier as ``color``."""
    running: list[Service] = []

    def start(bundles: dict[str, Path] | None = None, **settings: Any) -> Client:
        if bundles is None:
            bundles = {"ball": make_bundle(), "color": make_bundle("classify", name="color.edge")}
        chosen = {"port": 0, "backend": "cpu", "threads": 1, "instances": 1, "watch_s": 0.0, **settings}
        service = Service(bundles, ServiceSettings(**chosen))
        service.start()
        running.append(service)
        client = Client(service.url)
        client.service = service  # type: ignore[attr-defined]
        return client

    yield start
    for service in running:
        service.stop()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """A PNG of one colour (BGR), or of the given pixels."""

    def make(
        color: tuple[int, int, int] = (51, 102, 204), size: tuple[int, int] = (64, 64), kind: str = ".png"
    ) -> bytes:
        pixels = np.empty((*size, 3), np.uint8)
        pixels[:] = color
        return cv2.imencode(kind, pixels)[1].tobytes()

    return make


@pytest.fixture
def before_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Calls something before every run of the models that are loaded from now on: a pause, or a gate."""

    def call(what: Callable[[], object]) -> None:
        def load(*args: Any, **options: Any) -> Model[Any]:
            model = load_model(*args, **options)
            run = model.backend.run

            def later(images: NDArray[Any]) -> dict[str, NDArray[Any]]:
                what()
                return run(images)

            monkeypatch.setattr(model.backend, "run", later)
            return model

        monkeypatch.setattr("edgesmith.sdk.serve.served.load_model", load)

    return call
