"""The routes of the service."""

from __future__ import annotations

import importlib.resources
import secrets
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgesmith.sdk.serve import metrics
from edgesmith.sdk.serve.access import AccessLog, Guard
from edgesmith.sdk.serve.openapi import description
from edgesmith.sdk.serve.openinference import OpenInference
from edgesmith.sdk.serve.plain import Plain, as_json
from edgesmith.sdk.serve.refusal import Refusal
from edgesmith.sdk.serve.state import State

Handler = Callable[[Request], Awaitable[Response]]


def build(state: State) -> ASGIApp:
    """The application: the log outermost, then who may come, then the routes."""
    plain, v2 = Plain(state), OpenInference(state)

    async def metrics_page(request: Request) -> Response:
        return Response(state.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def openapi(request: Request) -> Response:
        return as_json(description(state.settings, list(state.models)))

    routes = [
        _get("/", page),
        _get("/openapi.json", openapi),
        _get("/metrics", metrics_page),
        _get("/models", plain.index),
        _get("/models/{name}", plain.model),
        _post("/models/{name}/predict", plain.predict),
        _post("/models/{name}/reload", plain.reload),
        _get("/v2", v2.server),
        _get("/v2/", v2.server),
        _get("/v2/health/live", v2.live),
        _get("/v2/health/ready", v2.ready),
        _post("/v2/repository/index", v2.index),
        _post("/v2/repository/models/{name}/load", v2.load),
        _post("/v2/repository/models/{name}/unload", v2.unload),
    ]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            _get(base, v2.model),
            _get(f"{base}/ready", v2.model_ready),
            _get(f"{base}/config", v2.config),
            _post(f"{base}/infer", v2.infer),
        ]
    app = Starlette(
        routes=routes, exception_handlers={Refusal: _refused, HTTPException: _not_routed}, debug=False
    )
    app.router.redirect_slashes = False
    return AccessLog(Guard(app, state.settings), state.metrics)


async def page(request: Request) -> Response:
    """``GET /``: the page where a picture can be dropped in. It carries its own code and asks nobody else."""
    nonce = secrets.token_urlsafe(16)
    html = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
        f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(
        html.replace("{{nonce}}", nonce),
        media_type="text/html",
        headers={"Content-Security-Policy": policy},
    )


def _get(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["GET"])


def _post(path: str, handler: Handler) -> Route:
    return Route(path, handler, methods=["POST"])


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"error": error.text}, error.status, error.headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "there is no such path; /openapi.json lists all", 405: "not with this method"}
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Connection"] = "close"  # a body that nobody reads may follow
    return JSONResponse({"error": text.get(error.status_code, error.detail)}, error.status_code, headers)
