from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.errors import BackendError, BundleMissingError, ConfigError, ParityError
from edgesmith.sdk.models import load_model
from edgesmith.sdk.serve import Service, ServiceSettings, Tls, Token

Serve = Callable[..., Any]
Picture = Callable[..., bytes]


def form(*files: tuple[str, bytes], boundary: str = "x-boundary") -> tuple[bytes, str]:
    parts = []
    for number, (name, data) in enumerate(files):
        head = f'Content-Disposition: form-data; name="f{number}"; filename="{name}"\r\n\r\n'
        parts.append(f"--{boundary}\r\n{head}".encode() + data + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def test_answers_are_the_sdks_own(serve: Serve, make_bundle: Any, picture: Picture) -> None:
    path = make_bundle()
    client = serve({"ball": path})
    data = picture()
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    with load_model(path, backend="cpu") as model:
        for query, options in (
            ("", {}),
            ("?score=0.5", {"score": 0.5}),
            ("?score=0&iou=0.1", {"score": 0.0, "iou": 0.1}),
        ):
            answer = client.post(f"/models/ball/predict{query}", data, content_type="image/png")
            assert answer.status == 200, answer.body
            got = answer.json
            assert got["detections"] == model(frame, **options).to_dict()  # type: ignore[operator]
            assert got["image"] == {"width": 64, "height": 64}
            assert (got["model"], got["task"], got["version"]) == ("ball", "detect", 1)
            assert got["ms"].keys() == {"queue", "preprocess", "infer", "postprocess"}
    assert len(json.loads(client.post("/models/ball/predict?score=0.1", data).body)["detections"]) > 1


def test_a_classifiers_best_classes(serve: Serve, picture: Picture) -> None:
    client = serve()
    data = picture((10, 20, 250))
    answer = client.post("/models/color/predict?top=2", data).json
    assert [c["name"] for c in answer["classes"]] == ["red", "green"]
    assert "score" in client.post("/models/color/predict?score=0.5", data).error


def test_several_files_of_a_form(serve: Serve, picture: Picture) -> None:
    client = serve()
    body, kind = form(("a.png", picture((250, 0, 0))), ("ünd.png", picture((0, 0, 250), (30, 40))))
    results = client.post("/models/color/predict?top=1", body, content_type=kind).json["results"]
    assert [(r["file"], r["classes"][0]["name"]) for r in results] == [("a.png", "blue"), ("ünd.png", "red")]
    assert results[1]["image"] == {"width": 40, "height": 30}


def test_the_drawn_picture(serve: Serve, picture: Picture) -> None:
    client = serve()
    plain = picture((200, 200, 200), (64, 64))
    answer = client.post("/models/ball/predict?format=image&score=0.1", plain)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    drawn = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    assert drawn is not None
    assert drawn.shape == (64, 64, 3)
    assert (np.abs(drawn.astype(int) - 200).max(axis=2) > 60).sum() > 50  # boxes and text are on it
    body, kind = form(("a.png", plain), ("b.png", plain))
    assert "one picture" in client.post("/models/ball/predict?format=image", body, content_type=kind).error


def test_many_clients_get_their_own_answers(serve: Serve, picture: Picture) -> None:
    client = serve(queue=128)
    colors = [(b, g, r) for b in (0, 120, 240) for g in (5, 125, 245) for r in (10, 130, 250)] * 4

    def one(color: tuple[int, int, int]) -> dict[str, float]:
        answer = client.post("/models/color/predict", picture(color)).json
        return {c["name"]: c["score"] for c in answer["classes"]}

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, colors))
    for color, scores in zip(colors, answers, strict=True):
        logits = np.array(color, np.float64) / 255
        wanted = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose([scores["blue"], scores["green"], scores["red"]], wanted, atol=1e-4)


def test_on_the_cpu_each_core_has_an_engine(
    serve: Serve, make_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    for settings, lanes in (
        ({"instances": None, "threads": None}, 6),
        ({"instances": None, "threads": 2}, 3),
        ({"instances": None, "threads": 8}, 1),
        ({"instances": 2, "threads": None}, 2),
    ):
        client = serve({"ball": make_bundle()}, **settings)
        engine = client.service.models["ball"].current.engine
        assert len(engine._lanes) == lanes
        assert engine._share == (1 if settings["instances"] is None and lanes > 1 else 8)


def test_what_is_served_can_be_asked(serve: Serve) -> None:
    client = serve()
    models = client.get("/models").json["models"]
    assert [m["name"] for m in models] == ["ball", "color"]
    one = client.get("/models/color").json
    assert (one["task"], one["labels"], one["max_batch"]) == ("classify", ["blue", "green", "red"], 8)
    assert len(one["bundle"]) == 64
    assert "ball, color" in client.get("/models/other").error


def test_the_description_fits_what_is_answered(serve: Serve, picture: Picture) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    client = serve()
    document = client.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    answers = {
        "Prediction": client.post("/models/ball/predict?score=0", picture()).json,
        "Model": client.get("/models/ball").json,
        "Error": client.get("/models/none").json,
    }
    for name, answer in answers.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(answer, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({}, schema)
    for path, methods in document["paths"].items():
        for method in methods:
            answer = client.ask(method.upper(), path.replace("{name}", "ball"))
            text = "there is no such path"
            assert answer.status not in (404, 405, 500), (path, method, answer.body)
            assert text not in answer.body.decode(errors="replace")


def test_beyond_capacity_the_answer_is_429(serve: Serve, picture: Picture) -> None:
    client = serve(queue=8)
    engine = client.service.models["ball"].current.engine
    with engine.place(8):
        for _ in range(3):
            answer = client.post("/models/ball/predict", picture())
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert "8 images are under way" in answer.error
        assert client.post("/models/color/predict", picture()).status == 200
    assert client.post("/models/ball/predict", picture()).status == 200


def test_an_answer_that_comes_too_late_is_504(
    serve: Serve, before_runs: Callable[..., None], picture: Picture
) -> None:
    before_runs(lambda: time.sleep(0.3))
    client = serve()
    answer = client.post("/models/ball/predict?deadline_ms=50", picture())
    assert answer.status == 504
    assert "50 ms" in answer.error
    assert client.post("/models/ball/predict", picture()).status == 200


def test_what_was_accepted_is_answered_at_the_end(
    serve: Serve, before_runs: Callable[..., None], picture: Picture
) -> None:
    gate = threading.Event()
    gate.set()  # for the self-test
    before_runs(lambda: gate.wait(15))
    client = serve()
    gate.clear()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/models/ball/predict", picture()).status))
        for _ in range(6)
    ]
    stopping = threading.Thread(target=client.service.stop)
    try:
        for thread in threads:
            thread.start()
        engine = client.service.models["ball"].current.engine
        end = time.monotonic() + 10
        while engine.admitted < 6:
            assert time.monotonic() < end
            time.sleep(0.005)
        stopping.start()
        stopping.join(0.3)
        assert stopping.is_alive()
        assert answers == []
    finally:
        gate.set()
    for thread in (*threads, stopping):
        thread.join()
    assert answers == [200] * 6
    with pytest.raises(ConnectionError):
        client.get("/models")


def test_figures_for_prometheus(serve: Serve, picture: Picture) -> None:
    client = serve()
    for _ in range(3):
        client.post("/models/ball/predict", picture())
    client.post("/models/ball/predict", b"no picture")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    for line in (
        'edgesmith_requests_total{interface="plain",model="ball",status="200"} 3.0',
        'edgesmith_requests_total{interface="plain",model="ball",status="415"} 1.0',
        'edgesmith_batch_size_count{model="ball"} 3.0',
        'edgesmith_stage_seconds_count{model="ball",stage="infer"} 3.0',
        'edgesmith_stage_seconds_count{model="ball",stage="queue"} 3.0',
        'edgesmith_queue{model="ball"} 0.0',
        "edgesmith_held_bytes 0.0",
        "process_resident_memory_bytes ",
    ):
        assert line in text, line


def test_bundles_that_cannot_be_served(make_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleMissingError):
        Service({"a": tmp_path / "none.edge"}, ServiceSettings(port=0))
    path = make_bundle()
    with pytest.raises(ConfigError, match="letters"):
        Service({"a/b": path}, ServiceSettings(port=0))
    with pytest.raises(ConfigError, match="no bundle"):
        Service({})
    with Service({"a": path}, ServiceSettings(port=0, backend="cpu")) as service:
        port = int(service.url.rpartition(":")[2])
        with pytest.raises(BackendError, match="cannot be served"):
            Service({"a": path}, ServiceSettings(port=port, backend="cpu"))


def test_a_bundle_that_computes_something_else_is_not_served(make_bundle: Any) -> None:
    bundle = Bundle.open(make_bundle())
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    white = cv2.imencode(".png", np.full((24, 48, 3), 255, np.uint8))[1].tobytes()
    write_bundle(bundle.path, bundle.manifest, {**members, "golden/input-0.png": white})
    with pytest.raises(ParityError, match=r"self-test.*scores differs") as caught:
        Service({"a": bundle.path}, ServiceSettings(port=0, backend="cpu"))
    assert caught.value.figures["scores"] > 1e-3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"host": "0.0.0.0"}, "reached by others"),
        ({"host": "0.0.0.0", "tls": Tls(certificate=Path("a"), key=Path("b"))}, "reached by others"),
        ({"queue": 0}, "queue is 0"),
        ({"deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"max_body_bytes": 1 << 40}, "max_memory_bytes"),
        ({"tls": Tls(certificate=Path("/none.pem"), key=Path("/none.pem")), "port": 0}, "TLS"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], text: str, make_bundle: Any) -> None:
    with pytest.raises(ConfigError, match=text):
        Service({"a": make_bundle()}, ServiceSettings(**settings))


def test_a_token_shows_itself_nowhere() -> None:
    token = Token("a-secret-of-good-length")
    settings = ServiceSettings(token=token, host="0.0.0.0")
    assert "secret" not in repr(settings) + str(token)
    assert token.matches("a-secret-of-good-length")
    assert not token.matches("a-secret-of-good-lengtH")
    for weak in ("short", "with a blank in it all", "not-ascii-äöü-aaaaaaa"):
        with pytest.raises(ConfigError, match="16"):
            Token(weak)


def test_maps_and_tensors_are_answered_and_drawn(serve: Serve, make_bundle: Any, picture: Picture) -> None:
    paths = {"seg": make_bundle("segment", name="seg.edge"), "big": make_bundle("tensor", name="big.edge")}
    client = serve(paths)
    data = picture((10, 200, 30), (20, 40))
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    for name, key in (("seg", "regions"), ("big", "tensors")):
        with load_model(paths[name], backend="cpu") as model:
            wanted = model(frame)  # type: ignore[operator]
        assert client.post(f"/models/{name}/predict", data).json[key] == wanted.to_dict()
        answer = client.post(f"/models/{name}/predict?format=image", data)
        drawn = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
        assert drawn is not None
        assert drawn.shape == wanted.draw(frame).shape
        assert np.abs(drawn.astype(int) - wanted.draw(frame)).mean() < 12
    # Pictures of different sizes at once: a model of any size runs each size by itself.
    sizes = [(16, 24), (30, 20), (16, 24), (12, 12)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda s: client.post("/models/big/predict", picture(size=s)).json, sizes)
    shapes = [answer["tensors"][0]["shape"] for answer in answers]
    assert shapes == [[1, 2 * h, 2 * w] for h, w in sizes]


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_signals_end_it_and_are_given_back(make_bundle: Any, number: int, interrupted: bool) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    service = Service({"ball": make_bundle()}, ServiceSettings(port=0, backend="cpu", instances=1))
    threading.Timer(0.3, lambda: os.kill(os.getpid(), number)).start()
    assert service.run() is interrupted
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)) == before
