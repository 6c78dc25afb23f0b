"""The Open Inference Protocol (KServe v2), as NVIDIA's clients speak it.

https://github.com/kserve/open-inference-protocol; extensions: binary tensors, model configuration,
statistics, model repository (index and load).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgesmith.sdk.serve import tensors
from edgesmith.sdk.serve.access import note
from edgesmith.sdk.serve.body import read_body
from edgesmith.sdk.serve.plain import as_json
from edgesmith.sdk.serve.refusal import Refusal
from edgesmith.sdk.serve.run import Deadline, answer_rows, in_pool
from edgesmith.sdk.serve.served import Served
from edgesmith.sdk.serve.state import State

_HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")


class OpenInference:
    """The handlers of ``/v2``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def server(self, request: Request) -> Response:
        """``GET /v2``: what this is."""
        return as_json({"name": "edgesmith", "version": version("edgesmith"), "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        """``GET /v2/health/live``: the process answers."""
        return as_json({"live": True})

    async def ready(self, request: Request) -> Response:
        """``GET /v2/health/ready``: it takes requests; 503 while it ends."""
        ready = not self._state.draining.is_set()
        return as_json({"ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        """``GET /v2/models/{name}``: inputs and outputs."""
        served = self._served(request)
        manifest = served.model.bundle.manifest
        return as_json(
            {
                "name": served.name,
                "versions": [str(served.current.version)],
                "platform": "onnx",
                "inputs": [tensors.metadata_of(spec) for spec in manifest.inputs],
                "outputs": [tensors.metadata_of(spec) for spec in manifest.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """``GET /v2/models/{name}/ready``."""
        served = self._served(request)
        return as_json({"name": served.name, "ready": True})

    async def config(self, request: Request) -> Response:
        """``GET /v2/models/{name}/config``: in the form of Triton's configuration."""
        served = self._served(request)
        manifest = served.model.bundle.manifest
        return as_json(
            {
                "name": served.name,
                "platform": "onnxruntime_onnx",
                "max_batch_size": 0,
                "input": [_config_of(spec) for spec in map(tensors.metadata_of, manifest.inputs)],
                "output": [_config_of(spec) for spec in map(tensors.metadata_of, manifest.outputs)],
            }
        )

    async def index(self, request: Request) -> Response:
        """``POST /v2/repository/index``: every model with its state."""
        models = self._state.models.values()
        return as_json(
            [
                {"name": m.name, "version": str(m.current.version), "state": "READY", "reason": ""}
                for m in models
            ]
        )

    async def load(self, request: Request) -> Response:
        """``POST /v2/repository/models/{name}/load``: look at the bundle's file now."""
        served = self._state.served(request.path_params["name"])
        note(request.scope, model=served.name, interface="v2")
        change = await served.look(again=True)
        if change is not None and not change.taken:
            raise Refusal(400, f"{served.name} keeps its bundle: {change.reason}")
        return as_json({})

    async def unload(self, request: Request) -> Response:
        """``POST /v2/repository/models/{name}/unload``: not offered."""
        self._state.served(request.path_params["name"])
        raise Refusal(400, "models are not unloaded: start the service without them")

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/{name}/infer``: rows for the graph in, its outputs out."""
        state, settings = self._state, self._state.settings
        served = self._served(request)
        note(request.scope, model=served.name, interface="v2")
        deadline = Deadline(settings.deadline_ms)
        with state.budget.hold() as held:
            body = await read_body(request, settings, held)
            length = request.headers.get(_HEADER)
            current = served.current  # from here on: it may be changed while this request is under way
            engine, number = current.engine, str(current.version)
            manifest = engine.model.bundle.manifest

            def understood() -> tuple[tensors.InferRequest, list[tensors.OutputTensor], Any]:
                asked, binary = tensors.parsed(body, length)
                rows = tensors.input_of(asked, binary, manifest, engine.model.batch.max)
                return asked, tensors.asked_outputs(asked, manifest), rows

            asked, outputs, rows = await in_pool(state.pool, deadline, understood)
            deadline = _shortened(deadline, asked)
            answer = await answer_rows(engine, rows, deadline)
            note(request.scope, images=len(rows), batch=answer.batch)

            def written() -> tuple[bytes, int | None]:
                return tensors.answer(asked, outputs, answer.value, model=served.name, version=number)

            content, json_length = await in_pool(state.pool, deadline, written)
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={_HEADER: str(json_length)})

    def _served(self, request: Request) -> Served:
        served = self._state.served(request.path_params["name"])
        asked = request.path_params.get("version")
        if asked is not None and asked != str(served.current.version):
            raise Refusal(404, f"{served.name} is at version {served.current.version}, not {asked[:20]!r}")
        return served


def _config_of(spec: dict[str, Any]) -> dict[str, Any]:
    return {"name": spec["name"], "data_type": f"TYPE_{spec['datatype']}", "dims": spec["shape"]}


def _shortened(deadline: Deadline, request: tensors.InferRequest) -> Deadline:
    """The client's own time where it is less: ``timeout`` in microseconds, as Triton takes it."""
    timeout = request.parameters.get("timeout")
    if timeout is None:
        return deadline
    if type(timeout) is not int or timeout < 1:
        raise Refusal(400, f"timeout is {timeout!r}; it is a number of microseconds, 1 or more")
    return min(deadline, Deadline(timeout / 1e3), key=lambda d: d.ms)
