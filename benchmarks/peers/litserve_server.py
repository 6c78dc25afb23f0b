"""LitServe with the same model, for benchmarks/serve.py.

    python litserve_server.py BUNDLE PORT BATCH WAIT_MS

Its own batching and its own HTTP; the pictures are decoded, prepared, run and answered by the same functions,
so the servers are compared and nothing else. Pictures come as base64 in JSON, which is what it takes: the
files of a form cannot be handed to its worker process.
"""

from __future__ import annotations

import base64
import importlib
import sys
from typing import Any

import cv2
import numpy as np

from edgesmith.sdk.models import load_model

litserve: Any = importlib.import_module("litserve")  # of the environment that this runs in


class Recognise(litserve.LitAPI):  # type: ignore[misc]
    """Pictures in, the SDK's JSON out."""

    def __init__(self, bundle: str, **options: Any) -> None:
        super().__init__(**options)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        """In the worker's process."""
        self.model: Any = load_model(self.bundle, backend="cpu")
        self.body: Any = None

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The file; it becomes pixels in ``predict``, with the others of its batch."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        """A list as it is."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """A list as it is."""
        return output

    def predict(self, bodies: list[bytes]) -> list[Any]:
        """Every picture's answer."""
        frames = [cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) for body in bodies]
        return [answer.to_dict() for answer in self.model(frames)]

    def encode_response(self, output: Any) -> dict[str, Any]:
        """As the SDK's service answers."""
        return {"detections": output}


def main() -> None:
    bundle, port, batch, wait_ms = sys.argv[1:]
    api = Recognise(bundle, max_batch_size=int(batch), batch_timeout=float(wait_ms) / 1e3)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(port), host="127.0.0.1", generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
