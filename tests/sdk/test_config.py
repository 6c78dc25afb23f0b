from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.cameras.base import CameraState
from edgesmith.sdk.config import CameraConfig, SinkConfig, open_cameras, open_one, policies, read_config
from edgesmith.sdk.errors import CameraError, ConfigError
from edgesmith.sdk.loop.track import TrackSettings
from edgesmith.sdk.sinks.base import BackgroundSink
from edgesmith.sdk.sinks.jsonl import JsonLines

WHOLE = """
policy = "latest"
max_age_ms = 250
batch = 4
track = { high = 0.4, birth = 0.5, keep = 60 }

[model]
bundle = "models/a.edge"
backend = "cpu"
threads = 1
score = 0.3

[[cameras]]
source = "rtsp://user:${ROBOT_PASSWORD}@10.0.0.7/door"
name = "door"
size = [640, 360]
latency_ms = 50

[[cameras]]
source = 0
policy = "every"

[[cameras]]
source = "clips/a.mp4"

[[sinks]]
kind = "jsonl"
path = "out.jsonl"
capacity = 9

[[sinks]]
kind = "mqtt"
host = "broker.local"
password = "${ROBOT_PASSWORD}"
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("ROBOT_PASSWORD", "secret")

    def write(text: str) -> Path:
        path = tmp_path / "robot.toml"
        path.write_text(text)
        return path

    return write


def test_a_whole_file(write: Write, tmp_path: Path) -> None:
    config = read_config(write(WHOLE))
    assert (config.policy, config.max_age_ms, config.batch) == ("latest", 250.0, 4)
    assert config.track == TrackSettings(high=0.4, birth=0.5, keep=60)
    assert config.model.bundle == str(tmp_path / "models/a.edge")
    assert (config.model.backend, config.model.threads, config.model.score) == ("cpu", 1, 0.3)
    assert config.cameras == (
        CameraConfig(
            source="rtsp://user:secret@10.0.0.7/door",
            name="door",
            size=(640, 360),
            options={"latency_ms": 50},
        ),
        CameraConfig(source=0, policy="every"),
        CameraConfig(source=str(tmp_path / "clips/a.mp4")),
    )
    assert config.sinks == (
        SinkConfig(kind="jsonl", capacity=9, options={"path": str(tmp_path / "out.jsonl")}),
        SinkConfig(kind="mqtt", options={"host": "broker.local", "password": "secret"}),
    )


MODEL = '[model]\nbundle = "a.edge"\n'
CAMERA = '[[cameras]]\nsource = "0"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy = ", "robot.toml: not TOML"),
        (CAMERA, "robot.toml: the key model is missing"),
        (MODEL, "robot.toml: the key cameras is missing"),
        (f"cameras = []\n{MODEL}", "robot.toml: cameras: expected `array` of length >= 1"),
        (f"cameras = 7\n{MODEL}", r"cameras is a list of tables: begin each with \[\[cameras\]\]"),
        (f"{MODEL}bundel = 1\n{CAMERA}", "robot.toml: unknown key model.bundel"),
        (f"polixy = 1\n{MODEL}{CAMERA}", "robot.toml: unknown key polixy"),
        (f'policy = "newest"\n{MODEL}{CAMERA}', "robot.toml: policy: invalid enum value 'newest'"),
        (f"max_age_ms = 0\n{MODEL}{CAMERA}", "robot.toml: max_age_ms: expected `float` > 0"),
        (f"track = {{ hi = 1 }}\n{MODEL}{CAMERA}", "robot.toml: unknown key track.hi"),
        (f"track = {{ high = 0.0 }}\n{MODEL}{CAMERA}", "track: track: low 0.1, high 0, birth 0.6 must rise"),
        (f"{MODEL}[[cameras]]\nname = 'a'\n", "robot.toml: the key cameras.0.source is missing"),
        (f"{MODEL}[[cameras]]\nsource = '${{NOT_SET_X}}'\n", "the environment variable NOT_SET_X is not set"),
        (f"{MODEL}{CAMERA}[[sinks]]\nkind = 'x'\n", "there is no sink of kind 'x': events, jsonl"),
    ],
)
def test_what_is_wrong_is_named(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(write(text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no.toml: cannot be read: No such file"):
        read_config(tmp_path / "no.toml")


def test_policies_suit_the_cameras_unless_told(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((48, 80, 3), np.uint8))[1].tobytes())
    text = f"{MODEL}[[cameras]]\nsource = 'a.png'\n[[cameras]]\nsource = 'test:'\nsize = [80, 48]\nfps = 30\n"
    config = read_config(write(text))
    cameras = open_cameras(config.cameras)
    assert policies(config, cameras) == ("every", "latest")
    told = read_config(write(f"policy = 'latest'\n{text}policy = 'every'\n"))
    assert policies(told, cameras) == ("latest", "every")
    for camera in cameras:
        camera.close()


def test_a_camera_that_cannot_be_opened_closes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    config = sys.modules["edgesmith.sdk.config"]
    real = config.open_camera

    def watched(*arguments: Any, **options: Any) -> Any:
        opened.append(real(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(config, "open_camera", watched)
    with pytest.raises(CameraError, match="there is no such file"):
        open_cameras(
            [CameraConfig(source="test:", size=(80, 48), fps=30), CameraConfig(source="missing.mp4")]
        )
    assert opened[0].state is CameraState.ENDED
    with pytest.raises(ConfigError, match="lateny"):
        open_cameras([CameraConfig(source="test:", options={"lateny": 5})])


def test_recordings_of_files_are_whole_and_everything_else_gets_a_queue(tmp_path: Path) -> None:
    lines = SinkConfig(kind="jsonl", options={"path": tmp_path / "a.jsonl"})
    whole, queued = open_one(lines, ["every"]), open_one(lines, ["every", "latest"])
    assert isinstance(whole, JsonLines)
    assert isinstance(queued, BackgroundSink)
    for sink in (whole, queued):
        sink.close()
    with pytest.raises(ConfigError, match="no option 'pth'"):
        open_one(SinkConfig(kind="jsonl", options={"pth": 1}), ["every"])
