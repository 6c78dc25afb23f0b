"""The plain interface: a picture in, JSON or the drawn picture out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from edgesmith.sdk.decode.canonical import check_thresholds
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.maps import Segmentation, Tensors
from edgesmith.sdk.models import Detector
from edgesmith.sdk.results import Classifications, Detections
from edgesmith.sdk.serve.access import note
from edgesmith.sdk.serve.body import Upload, read_body, uploads_of
from edgesmith.sdk.serve.engine import Answer
from edgesmith.sdk.serve.refusal import Refusal
from edgesmith.sdk.serve.run import Deadline, answer_pictures, in_pool
from edgesmith.sdk.serve.served import Change, Served
from edgesmith.sdk.serve.state import State

TOP = 5
SAME = "the file is the one that answers already"
# The answer's key by its kind, as in the lines of `run --jsonl`.
KEYS: dict[type, str] = {
    Detections: "detections",
    Classifications: "classes",
    Segmentation: "regions",
    Tensors: "tensors",
}
_JPEG_QUALITY = 90


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may follow the ``?``: thresholds of a detector, ``top`` of a classifier, the answer's format."""

    score: float | None = None
    iou: float | None = None
    top: int | None = None
    format: str = "json"
    deadline_ms: float | None = None


class Plain:
    """The handlers of ``/models``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def index(self, request: Request) -> Response:
        """``GET /models``: what is served."""
        return as_json({"models": [about(served, labels=False) for served in self._state.models.values()]})

    async def model(self, request: Request) -> Response:
        """``GET /models/{name}``: one of them."""
        return as_json(about(self._state.served(request.path_params["name"])))

    async def reload(self, request: Request) -> Response:
        """``POST /models/{name}/reload``: look at the bundle's file now; 409 where it is refused."""
        served = self._state.served(request.path_params["name"])
        note(request.scope, model=served.name, interface="plain")
        change = await served.look(again=True)
        if change is None:
            change = Change(taken=False, bundle=served.current.sha256, reason=SAME)
        refused = not change.taken and change.reason != SAME
        return as_json({"name": served.name, **msgspec.to_builtins(change)}, 409 if refused else 200)

    async def predict(self, request: Request) -> Response:
        """``POST /models/{name}/predict``: a picture as the body, or several as multipart files."""
        state, settings = self._state, self._state.settings
        served = state.served(request.path_params["name"])
        note(request.scope, model=served.name, interface="plain")
        query = query_of(request)
        deadline = Deadline(min(query.deadline_ms or settings.deadline_ms, settings.deadline_ms))
        with state.budget.hold() as held:
            body = await read_body(request, settings, held)
            uploads, several = _pictures(request, body, settings.max_files)
            current = served.current  # from here on: it may be changed while this request is under way
            engine = current.engine
            thresholds = thresholds_of(engine.model, query)
            if query.format == "image" and len(uploads) != 1:
                raise Refusal(400, "format=image goes with one picture a request")
            pairs = await answer_pictures(
                engine,
                [upload.data for upload in uploads],
                thresholds,
                pool=state.pool,
                held=held,
                max_pixels=settings.max_pixels,
                deadline=deadline,
            )
            first = pairs[0][1]
            note(request.scope, images=len(pairs), batch=first.batch)
            note(request.scope, **{f"{k}_ms": round(v, 2) for k, v in first.stages_ms.items()})
            if query.format == "image":
                drawn = await in_pool(state.pool, deadline, _drawn, *pairs[0])
                return Response(drawn, media_type="image/jpeg")
        results = [_result(frame, answer, query) for frame, answer in pairs]
        head = {"model": served.name, "version": current.version, "task": engine.model.task}
        if not several:
            return as_json({**head, **results[0]})
        named = [{"file": up.name, **result} for up, result in zip(uploads, results, strict=True)]
        return as_json({**head, "results": named})


def about(served: Served, *, labels: bool = True) -> dict[str, Any]:
    """What the service tells of a model."""
    manifest, backend = served.model.bundle.manifest, served.model.backend
    return {
        **({"labels": list(manifest.labels)} if labels else {}),
        "name": served.name,
        "version": served.current.version,
        "task": manifest.task,
        "precision": manifest.precision,
        "bundle": served.current.sha256,
        "backend": backend.name,
        "variant": backend.variant,
        "max_batch": served.model.batch.max,
        "license": manifest.provenance.license,
        "change": msgspec.to_builtins(served.change),
    }


def query_of(request: Request) -> Query:
    """The query, checked.

    Raises:
        Refusal: 400, a name that is not known, given twice, or a value that is none.
    """
    items = request.query_params.multi_items()
    if len({name for name, _ in items}) != len(items):
        raise Refusal(400, "a parameter is given twice")
    try:
        query = msgspec.convert(dict(items), Query, strict=False)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"query: {error}") from error
    if query.format not in ("json", "image"):
        raise Refusal(400, f"format is {query.format!r}; it is json or image")
    for name in ("top", "deadline_ms"):
        value = getattr(query, name)
        if value is not None and not value >= 1:
            raise Refusal(400, f"{name} is {value}; it must be 1 or more")
    return query


def thresholds_of(model: Any, query: Query) -> Mapping[str, float]:
    """Thresholds for the model's decode.

    Raises:
        Refusal: 400, the model has none, or its graph cannot serve them.
    """
    given = {k: v for k, v in (("score", query.score), ("iou", query.iou)) if v is not None}
    if not given:
        return {}
    if not isinstance(model, Detector):
        raise Refusal(400, f"{' and '.join(given)} go with detectors; this model's task is {model.task}")
    try:
        check_thresholds(model.nms, query.score, query.iou)
    except ConfigError as error:
        raise Refusal(400, str(error)) from error
    return given


def as_json(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _pictures(request: Request, body: bytes, max_files: int) -> tuple[list[Upload], bool]:
    """The pictures of a body, and whether it may hold several."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return uploads_of(content_type, body, max_files), True
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise Refusal(415, f"the body is {kind[:80]!r}; send a picture (image/jpeg), or multipart/form-data")
    if not body:
        raise Refusal(400, "the body is empty; send a picture")
    return [Upload("", body)], False


def _result(frame: NDArray[np.uint8], answer: Answer, query: Query) -> dict[str, Any]:
    height, width = frame.shape[:2]
    value = answer.value
    result: dict[str, Any] = {"image": {"width": width, "height": height}}
    if isinstance(value, Classifications):
        value = value.top_k(query.top or TOP)
    result[KEYS[type(value)]] = value.to_dict()
    if isinstance(value, Tensors) and value.text is not None:
        result["text"], result["score"] = value.text
    result["ms"] = {name: round(ms, 3) for name, ms in answer.stages_ms.items()}
    return result


def _drawn(frame: NDArray[np.uint8], answer: Answer) -> bytes:
    drawn = answer.value.draw(frame)
    ok, data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise ConfigError("the drawn picture cannot be encoded")
    return bytes(data.tobytes())
