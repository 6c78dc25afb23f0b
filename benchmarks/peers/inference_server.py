"""Roboflow's inference server with the same model, for benchmarks/serve.py.

    python inference_server.py BUNDLE PORT

Its own HTTP interface, requests, decoding of pictures and answers (``POST /infer/object_detection``), over a
model of ours in place of one from its registry, which needs an account: prepared, run and decoded by the SDK,
one thread a core, as its handlers run in a pool of threads and do not batch.
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import tempfile
from pathlib import Path
from typing import Any

# Read when its modules are imported: nothing is sent or fetched, and no extras are started.
os.environ.update(
    OFFLINE_MODE="True", METRICS_ENABLED="False", TELEMETRY_OPT_OUT="True", LOG_LEVEL="ERROR",
    ENABLE_STREAM_API="False", CORE_MODELS_ENABLED="False", DISABLE_VERSION_CHECK="True",
)  # fmt: skip

from edgesmith.sdk.models import load_model


def _module(name: str) -> Any:
    return importlib.import_module(f"inference.core.{name}")  # of the environment that this runs in


MODEL = "edgesmith/1"
PAGES = ("inference/landing/out/static", "inference/landing/out/_next/static")


class Bundled(_module("models.base").Model):  # type: ignore[misc]
    """A bundle's detector, for as many requests at one time as there are cores."""

    def __init__(self, bundle: str) -> None:
        super().__init__()
        self.endpoint, self.task_type = MODEL, "object-detection"
        cores = len(os.sched_getaffinity(0))
        first: Any = load_model(bundle, backend="cpu", threads=1)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for model in [first, *(first.clone() for _ in range(cores - 1))]:
            self._free.put(model)
        self._picture = _module("utils.image_utils").load_image_bgr
        self._responses = _module("entities.responses.inference")

    def infer_from_request(self, request: Any) -> Any:
        """An answer in its own form."""
        frame = self._picture(request.image)
        model = self._free.get()
        try:
            found = model(frame).to_dict()
        finally:
            self._free.put(model)
        image = self._responses.InferenceResponseImage(width=frame.shape[1], height=frame.shape[0])
        predictions = [self._prediction(one) for one in found]
        return self._responses.ObjectDetectionInferenceResponse(predictions=predictions, image=image)

    def _prediction(self, one: dict[str, Any]) -> Any:
        left, top, right, bottom = one["box"]
        told = {
            "x": (left + right) / 2, "y": (top + bottom) / 2, "width": right - left, "height": bottom - top,
            "confidence": one["score"], "class": one["name"], "class_id": one["label"],
        }  # fmt: skip
        return self._responses.ObjectDetectionPrediction(**told)


def main() -> None:
    bundle, port = str(Path(sys.argv[1]).resolve()), sys.argv[2]
    manager = _module("managers.base").ModelManager(
        model_registry=_module("registries.base").ModelRegistry({}), models={MODEL: Bundled(bundle)}
    )
    with tempfile.TemporaryDirectory() as folder:
        for part in PAGES:  # of its start page, which only its container has
            Path(folder, part).mkdir(parents=True)
        os.chdir(folder)
        interface = _module("interfaces.http.http_api").HttpInterface(manager)
        uvicorn: Any = importlib.import_module("uvicorn")
        uvicorn.run(interface.app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
