"""Another bundle takes over while requests come in, or is refused: no request is lost either way."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.models import load_model

Serve = Callable[..., Any]
Picture = Callable[..., bytes]
# The second has its channels the other way round: its best class of a red picture is another.
SWAPPED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)
<int64[2] plane = {2, 3}>
{
  mean = ReduceMean <keepdims = 0> (images, plane)
  logits = Neg (mean)
}
"""


class Load:
    """Clients that ask without a pause; ``answers`` are (status, best class, version) in order."""

    def __init__(self, client: Any, data: bytes, clients: int = 4) -> None:
        self.answers: list[tuple[int, str, int]] = []
        self._stop = threading.Event()
        self._client, self._data = client, data
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            answer = self._client.post("/models/color/predict?top=1", self._data)
            if answer.status != 200:
                self.answers.append((answer.status, answer.error, 0))
                continue
            got = answer.json
            self.answers.append((200, got["classes"][0]["name"], got["version"]))

    def more(self, count: int = 20) -> None:
        """Wait until so many more were answered."""
        wanted = len(self.answers) + count
        end = time.monotonic() + 20
        while len(self.answers) < wanted:
            assert time.monotonic() < end, "the service does not answer"
            time.sleep(0.005)


def changes(client: Any) -> Any:
    return client.get("/models/color").json["change"]


def until_changed(client: Any, before: Any = None) -> Any:
    end = time.monotonic() + 20
    while changes(client) == before:
        assert time.monotonic() < end, "the bundle was not looked at"
        time.sleep(0.02)
    return changes(client)


def test_a_good_bundle_takes_over_under_load(serve: Serve, make_bundle: Any, picture: Picture) -> None:
    path = make_bundle("classify", name="color.edge")
    other = make_bundle("classify", name="other.edge", text=SWAPPED)
    client = serve({"color": path}, watch_s=0.1)
    before = client.get("/models/color").json["bundle"]
    with Load(client, picture((20, 90, 250))) as load:
        load.more()
        other.replace(path)
        change = until_changed(client)
        load.more()
    assert change["taken"] is True
    assert {answer[0] for answer in load.answers} == {200}  # none was lost, none refused
    # Each answer is that of the bundle whose version it names.
    assert {answer[1:] for answer in load.answers} == {("red", 1), ("blue", 2)}
    assert load.answers[0][1:] == ("red", 1)
    assert load.answers[-1][1:] == ("blue", 2)
    about = client.get("/models/color").json
    assert (about["version"], about["bundle"]) == (2, change["bundle"])
    assert about["bundle"] != before
    assert (
        'edgesmith_model_changes_total{model="color",outcome="taken"} 1.0'
        in client.get("/metrics").body.decode()
    )
    deadline = time.monotonic() + 10
    while len([t for t in threading.enumerate() if t.name.startswith("serve-tiny")]) > 3:
        assert time.monotonic() < deadline, "the old engine's threads did not end"
        time.sleep(0.02)


def broken(kind: str, path: Path, make_bundle: Any) -> None:
    """Put something in the bundle's place that must not take over."""
    if kind == "another task":
        make_bundle("detect", name="new.edge").replace(path)
        return
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    new = path.with_name("new.edge")
    if kind == "computes something else":
        members["model.float.onnx"] = Bundle.open(
            make_bundle("classify", name="other.edge", text=SWAPPED)
        ).read("model.float.onnx")
        write_bundle(new, bundle.manifest, members)
    elif kind == "is no graph":
        write_bundle(new, bundle.manifest, {**members, "model.float.onnx": b"nonsense"})
    else:
        new.write_bytes(path.read_bytes()[:200])
    new.replace(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("computes something else", "fails its self-test here: logits differs"),
        ("is no graph", "cannot load"),
        ("is cut off", "cut off or damaged"),
        ("another task", "is for task 'detect', and 'classify' is served"),
    ],
)
def test_a_broken_bundle_is_refused_under_load(
    serve: Serve, make_bundle: Any, picture: Picture, kind: str, reason: str
) -> None:
    path = make_bundle("classify", name="color.edge")
    good = path.with_name("good.edge")
    shutil.copy(path, good)
    client = serve({"color": path}, watch_s=0.1)
    with Load(client, picture((20, 90, 250))) as load:
        load.more()
        broken(kind, path, make_bundle)
        change = until_changed(client)
        load.more()
        answer = client.post("/models/color/reload")  # asked once more: no again, and why
        assert answer.status == 409
        assert reason in answer.json["reason"]
        load.more()
    assert change["taken"] is False
    assert reason in change["reason"]
    assert set(load.answers) == {(200, "red", 1)}
    good.replace(path)
    assert until_changed(client, changes(client))["taken"] is True


def test_the_same_file_is_not_loaded_again(serve: Serve, make_bundle: Any) -> None:
    client = serve({"color": make_bundle("classify")})
    answer = client.post("/models/color/reload")
    assert (answer.status, answer.json["taken"]) == (200, False)
    assert "already" in answer.json["reason"]
    assert client.get("/models/color").json["version"] == 1


def test_a_file_that_goes_away_changes_nothing(serve: Serve, make_bundle: Any, picture: Picture) -> None:
    path = make_bundle("classify", name="color.edge")
    client = serve({"color": path}, watch_s=0.05)
    path.rename(path.with_name("away.edge"))
    time.sleep(0.3)
    assert client.post("/models/color/predict", picture()).status == 200
    assert changes(client) is None
    answer = client.post("/models/color/reload")
    assert (answer.status, "no such bundle" in answer.json["reason"]) == (409, True)


def test_the_new_bundles_answers_are_its_own(serve: Serve, make_bundle: Any, picture: Picture) -> None:
    path = make_bundle("classify", name="color.edge")
    other = make_bundle("classify", name="other.edge", text=SWAPPED)
    client = serve({"color": path})
    data = picture((200, 90, 10))
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    for bundle in (path, other):
        if bundle is other:
            shutil.copy(other, path)
            assert client.post("/models/color/reload").json["taken"] is True
        with load_model(bundle, backend="cpu") as model:
            wanted = model(frame).to_dict()  # type: ignore[operator]
        assert client.post("/models/color/predict", data).json["classes"] == wanted
