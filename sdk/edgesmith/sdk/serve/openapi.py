"""The service's description in OpenAPI 3.1, at ``/openapi.json``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from edgesmith.sdk.serve.settings import ServiceSettings

Schema = dict[str, Any]
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_TEXT: Schema = {"type": "string"}
_PICTURE: Schema = {"type": "string", "contentMediaType": "image/jpeg"}


def description(settings: ServiceSettings, models: Sequence[str]) -> Schema:
    """The whole document, with this service's models and limits in it."""
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "edgesmith",
            "version": version("edgesmith"),
            "description": "Recognition as a service. The paths below /v2 are the Open Inference Protocol.",
        },
        "paths": _paths(settings, models),
        "components": {"schemas": _schemas()},
    }
    if settings.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _paths(settings: ServiceSettings, models: Sequence[str]) -> Schema:
    name = _parameter("name", "path", {"type": "string", "enum": list(models)}, "A served model.")
    model = _ref("Model")
    paths: Schema = {
        "/models": {"get": _operation("List the models", {"type": "array", "items": model}, within="models")},
        "/models/{name}": {"get": _operation("One model", model, [name], refusals=(404,))},
        "/models/{name}/reload": {
            "post": _operation(
                "Look at the bundle's file now, and change to it", _ref("Change"), [name], refusals=(404, 409)
            )
        },
        "/models/{name}/predict": {"post": _predict(settings, name)},
        "/metrics": {"get": {"summary": "For Prometheus", "responses": {"200": {"description": "Text"}}}},
        "/v2": {"get": _operation("This server", {"type": "object"})},
        "/v2/health/live": {"get": _operation("The process answers", {"type": "object"})},
        "/v2/health/ready": {"get": _operation("It takes requests", {"type": "object"}, refusals=(503,))},
        "/v2/repository/index": {"post": _operation("Every model with its state", {"type": "array"})},
    }
    for end, summary in (("", "Inputs and outputs"), ("/ready", "It is ready"), ("/config", "Configuration")):
        operation = _operation(summary, {"type": "object"}, [name], refusals=(404,))
        paths[f"/v2/models/{{name}}{end}"] = {"get": operation}
    infer = _operation(
        "Rows for the graph in, its outputs out", {"type": "object"}, [name], refusals=_REFUSALS
    )
    infer["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("Infer")}}}
    paths["/v2/models/{name}/infer"] = {"post": infer}
    return paths


_REFUSALS = (400, 404, 408, 413, 415, 429, 504)


def _predict(settings: ServiceSettings, name: Schema) -> Schema:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    query = [
        _parameter("score", "query", share, "A detector's threshold."),
        _parameter("iou", "query", share, "A detector's suppression threshold."),
        _parameter("top", "query", {"type": "integer", "minimum": 1}, "Classes of a classifier; 5."),
        _parameter("format", "query", {"enum": ["json", "image"]}, "JSON, or the drawn picture."),
        _parameter(
            "deadline_ms",
            "query",
            {"type": "number", "minimum": 1, "maximum": settings.deadline_ms},
            "After that the answer is of no use: 504.",
        ),
    ]
    operation = _operation(
        "Recognise what is in a picture", _ref("Prediction"), [name, *query], refusals=_REFUSALS
    )
    operation["description"] = (
        f"A picture (JPEG, PNG, WebP, BMP) of up to {settings.max_body_bytes:,} bytes and "
        f"{settings.max_pixels:,} pixels as the body, or up to {settings.max_files} of them as files of a "
        "form, which are answered with a list `results`."
    )
    files = {"type": "object", "additionalProperties": _PICTURE}
    operation["requestBody"] = {
        "required": True,
        "content": {
            "image/*": {"schema": _PICTURE},
            "application/octet-stream": {"schema": _PICTURE},
            "multipart/form-data": {"schema": files},
        },
    }
    operation["responses"]["200"]["content"]["image/jpeg"] = {"schema": _PICTURE}
    return operation


def _schemas() -> Schema:
    box = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4, "description": "xyxy, pixels"}
    named = {"score": _NUMBER, "label": _INTEGER, "name": _TEXT}
    tensor = _object({"name": _TEXT, "shape": _list(_INTEGER), "datatype": _TEXT, "data": {"type": "array"}})
    return {
        "Error": _object({"error": _TEXT}),
        "Change": _object({"name": _TEXT, "taken": {"type": "boolean"}, "bundle": _TEXT, "reason": _TEXT}),
        "Model": _object({"name": _TEXT, "version": _INTEGER, "task": _TEXT, "bundle": _TEXT}),
        "Detection": _object({"box": box, **named}),
        "Class": _object(named),
        "Prediction": {
            "type": "object",
            "properties": {
                "model": _TEXT,
                "version": _INTEGER,
                "task": _TEXT,
                "image": _object({"width": _INTEGER, "height": _INTEGER}),
                "detections": _list(_ref("Detection")),
                "classes": _list(_ref("Class")),
                "regions": {"type": "array", "items": {"type": "object"}},
                "tensors": {"type": "array", "items": {"type": "object"}},
                "ms": {"type": "object", "additionalProperties": _NUMBER},
                "results": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["model", "version", "task"],
        },
        "Infer": {
            "type": "object",
            "properties": {"id": _TEXT, "inputs": _list(tensor), "outputs": {"type": "array"}},
            "required": ["inputs"],
        },
    }


def _operation(
    summary: str,
    schema: Schema,
    parameters: Sequence[Schema] = (),
    *,
    refusals: Sequence[int] = (),
    within: str = "",
) -> Schema:
    schema = _object({within: schema}) if within else schema
    answer = {"description": "Done", "content": {"application/json": {"schema": schema}}}
    error = {"description": "Why not", "content": {"application/json": {"schema": _ref("Error")}}}
    responses = {"200": answer, **{str(status): error for status in refusals}}
    return {"summary": summary, "parameters": list(parameters), "responses": responses}


def _parameter(name: str, where: str, schema: Schema, text: str) -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": text}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
