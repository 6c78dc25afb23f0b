"""NVIDIA's own client against the service."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.models import load_model

triton = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
utils = pytest.importorskip("tritonclient.utils")
Serve = Callable[..., Any]


@pytest.fixture
def served(serve: Serve, make_bundle: Any) -> Iterator[tuple[Any, Any, Any]]:
    """A client of NVIDIA's, one of ours, and the bundle that is served as ``ball``."""
    path = make_bundle()
    ours = serve({"ball": path})
    client = triton.InferenceServerClient(f"{ours.host}:{ours.port}", concurrency=4)
    yield client, ours, path
    client.close()


def rows(n: int) -> Any:
    return np.random.default_rng(n).random((n, 3, 32, 32), np.float32)


def test_health_and_metadata(served: tuple[Any, Any, Any]) -> None:
    client, _, path = served
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ball")
    assert client.is_model_ready("ball", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("ball", "7")
    assert client.get_server_metadata()["name"] == "edgesmith"
    metadata = client.get_model_metadata("ball")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
    assert [o["name"] for o in metadata["outputs"]] == ["boxes", "scores"]
    assert client.get_model_config("ball")["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_repository_index() == [
        {"name": "ball", "version": "1", "state": "READY", "reason": ""}
    ]
    client.load_model("ball")  # it is the same file
    assert client.get_model_metadata("ball")["versions"] == ["1"]
    path.with_name("again.edge").write_bytes(path.read_bytes())
    path.with_name("again.edge").replace(path)
    client.load_model("ball")
    assert client.get_model_metadata("ball")["versions"] == ["2"]
    with pytest.raises(utils.InferenceServerException, match="not unloaded"):
        client.unload_model("ball")
    assert path.exists()


def test_tensors_there_and_back_in_json_and_in_bytes(served: tuple[Any, Any, Any]) -> None:
    client, _, path = served
    with load_model(path, backend="cpu") as model:
        for binary_in, binary_out, count in itertools.product((True, False), (True, False), (1, 5)):
            batch = rows(count)
            sent = triton.InferInput("images", list(batch.shape), "FP32")
            sent.set_data_from_numpy(batch, binary_data=binary_in)
            asked = [triton.InferRequestedOutput(n, binary_data=binary_out) for n in ("scores", "boxes")]
            result = client.infer("ball", [sent], outputs=asked, request_id="r-7")
            for name, value in model.run_prepared(batch).items():
                np.testing.assert_allclose(result.as_numpy(name), value, rtol=1e-6)
            assert result.get_response()["id"] == "r-7"
            assert result.get_response()["model_name"] == "ball"


def test_all_outputs_where_none_is_named(served: tuple[Any, Any, Any]) -> None:
    client, _, _ = served
    sent = triton.InferInput("images", [2, 3, 32, 32], "FP32")
    sent.set_data_from_numpy(rows(2))
    result = client.infer("ball", [sent])
    assert result.as_numpy("boxes").shape == (2, 3, 4)
    assert result.as_numpy("scores").shape == (2, 3, 1)


def test_many_at_once(served: tuple[Any, Any, Any]) -> None:
    client, _, path = served
    batches = [rows(1 + n % 3) for n in range(24)]
    requests = []
    for batch in batches:
        sent = triton.InferInput("images", list(batch.shape), "FP32")
        sent.set_data_from_numpy(batch)
        requests.append(client.async_infer("ball", [sent]))
    with load_model(path, backend="cpu") as model:
        for batch, request in zip(batches, requests, strict=True):
            result = request.get_result()
            np.testing.assert_allclose(
                result.as_numpy("scores"), model.run_prepared(batch)["scores"], rtol=1e-5
            )


def refused(
    client: Any, *, name: str = "images", shape: Any = (1, 3, 32, 32), kind: str = "FP32", **more: Any
) -> str:
    data = np.zeros(shape, utils.triton_to_np_dtype(kind))
    sent = triton.InferInput(name, list(shape), kind)
    sent.set_data_from_numpy(data)
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer(more.pop("model", "ball"), [sent], **more)
    assert caught.value.status() in ("400", "404", "504"), caught.value
    return str(caught.value.message())


def test_errors_say_what_would_be_right(served: tuple[Any, Any, Any]) -> None:
    client, _, _ = served
    assert "no model is called 'other'" in refused(client, model="other")
    assert "version 1, not '3'" in refused(client, model_version="3")
    assert "the model has the one input 'images'" in refused(client, name="pictures")
    assert "the model takes [-1, 3, 32, 32]" in refused(client, shape=(1, 3, 32, 31))
    assert "the model takes [-1, 3, 32, 32]" in refused(client, shape=(3, 32, 32))
    assert "up to 8" in refused(client, shape=(9, 3, 32, 32))
    assert "images is FP32, not INT64" in refused(client, kind="INT64")
    assert "no output 'logits'" in refused(client, outputs=[triton.InferRequestedOutput("logits")])
    assert "'classification' is not offered" in refused(
        client, outputs=[triton.InferRequestedOutput("scores", class_count=2)]
    )


def infer(ours: Any, request: Any, binary: bytes = b"", **headers: str) -> Any:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    return ours.post("/v2/models/ball/infer", text + binary, **headers)


def tensor(**changes: Any) -> dict[str, Any]:
    whole = {"name": "images", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0.5] * 3072}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def test_nested_json_is_taken_too(served: tuple[Any, Any, Any]) -> None:
    _, ours, _ = served
    flat = infer(ours, {"inputs": [tensor()]}).json
    nested = infer(ours, {"inputs": [tensor(data=np.full((1, 3, 32, 32), 0.5).tolist())]}).json
    assert flat["outputs"] == nested["outputs"]


MALFORMED: list[tuple[Any, str]] = [
    (b"", "not that of an inference"),
    (b"[]", "not that of an inference"),
    (b'{"inputs": ' + b"[" * 5000, "not that of an inference"),
    ({"inputs": []}, "the request has none"),
    ({"inputs": [tensor(data=[[1.0], [2.0, 3.0]])]}, "no tensor"),
    ({"inputs": [tensor(data=["a"] * 3072)]}, "does not consist of FP32"),
    ({"inputs": [tensor(data=[0.5] * 3071)]}, "3,071 values"),
    ({"inputs": [tensor(data=None)]}, "neither data nor"),
    ({"inputs": [tensor(shape=[-1, 3, 32, 32])]}, "shape"),
    ({"inputs": [tensor(shape=[1 << 30, 1 << 30, 1 << 30, 32])]}, "values"),
    ({"inputs": [tensor(shape=[0, 3, 32, 32], data=[])]}, "has shape"),
    ({"inputs": [tensor(datatype="BYTES")]}, "not taken here"),
    ({"inputs": [tensor(), tensor()]}, "given twice"),
    ({"inputs": [tensor(datatype="UINT8", data=[300] * 3072)]}, "outside UINT8"),
    ({"inputs": [tensor(data=None, parameters={"binary_data_size": 12288})]}, "ends early"),
    ({"inputs": [tensor(data=None, parameters={"binary_data_size": -1})]}, "binary_data_size is -1"),
    ({"inputs": [tensor()], "outputs": [{"name": "boxes"}, {"name": "boxes"}]}, "asked for twice"),
    ({"inputs": [tensor()], "parameters": {"timeout": -5}}, "timeout"),
]


def test_malformed_requests(served: tuple[Any, Any, Any]) -> None:
    _, ours, _ = served
    for request, text in MALFORMED:
        answer = infer(ours, request)
        assert (answer.status, text in answer.error) == (400, True), (text, answer.body)


def test_the_binary_part_is_what_was_announced(served: tuple[Any, Any, Any]) -> None:
    _, ours, _ = served
    head = json.dumps({"inputs": [tensor(data=None, parameters={"binary_data_size": 12288})]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    assert infer(ours, head, bytes(12288), **length).status == 200
    assert "no input announces" in infer(ours, head, bytes(12289), **length).error
    for wrong in ("-1", "x", "99999999"):
        answer = infer(ours, head, bytes(12288), **{"Inference-Header-Content-Length": wrong})
        assert "Inference-Header-Content-Length" in answer.error


def test_the_clients_own_time(serve: Serve, make_bundle: Any, before_runs: Callable[..., None]) -> None:
    before_runs(lambda: time.sleep(0.3))
    ours = serve({"ball": make_bundle()})
    client = triton.InferenceServerClient(f"{ours.host}:{ours.port}")
    assert "deadline of 20 ms" in refused(client, timeout=20_000)
    client.close()
