"""The real ROS 2, in a network of its own: nothing of it is seen outside."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeBundle = Callable[..., Path]
pytestmark = pytest.mark.slow
# Only a loopback with multicast, for discovery, and shared memory of its own.
ALONE = (
    "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && ip link set lo multicast on && "
    "ip route add 224.0.0.0/4 dev lo && exec "
)
SINK = """
import json, threading, time
import numpy as np, rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray
from edgesmith.sdk import Detections, Frame, Result
from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.sinks.open import open_sink

rclpy.init()
node = rclpy.create_node("listener")
found, pictures = [], []
node.create_subscription(Detection2DArray, "/robot/front/detections", found.append, 10)
node.create_subscription(Image, "/robot/front/image", pictures.append, qos_profile_sensor_data)
sink = open_sink("ros2", namespace="/robot", images="raw", per_source=True)
answer = Detections(
    np.array([[10, 20, 50, 100]], np.float32), np.array([0.75], np.float32), np.array([1], np.int32),
    ("cat", "dog"), track_ids=np.array([7], np.int32),
)
wall = time.time()
end = time.monotonic() + 20
number = 0
while (len(found) < 3 or len(pictures) < 3) and time.monotonic() < end:
    image = np.full((120, 160, 3), (10, 20, number % 200), np.uint8)
    sink.write(Result(Frame(image, number, time.monotonic_ns(), None, "front"), answer))
    number += 1
    rclpy.spin_once(node, timeout_sec=0.05)
sink.close()
one, shot = found[-1], pictures[-1]
item = one.detections[0]
print(json.dumps({
    "stats": [sink.stats().errors, sink.stats().error],
    "class": item.results[0].hypothesis.class_id, "score": item.results[0].hypothesis.score,
    "center": [item.bbox.center.position.x, item.bbox.center.position.y],
    "size": [item.bbox.size_x, item.bbox.size_y], "id": item.id, "frame": one.header.frame_id,
    "late": one.header.stamp.sec + one.header.stamp.nanosec / 1e9 - wall,
    "image": [shot.height, shot.width, shot.step, shot.encoding, list(shot.data[:2])],
    "still": rclpy.ok(),
}))
node.destroy_node()
rclpy.shutdown()
"""
NODE = """
import json, subprocess, sys, time
import numpy as np, rclpy
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

parameters = json.loads(sys.argv[1])
arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
process = subprocess.Popen([sys.executable, "-m", "ros2_detector.node", "--ros-args", *arguments])
rclpy.init()
node = rclpy.create_node("tester")
found = []
node.create_subscription(Detection2DArray, "/detector/detections", found.append, 10)
publisher = node.create_publisher(Image, "/camera", 1)
end = time.monotonic() + 40
number = 0
while len(found) < 5 and time.monotonic() < end and process.poll() is None:
    message = Image(height=64, width=64, encoding="rgb8", step=64 * 3)
    message.header.frame_id = "lens"
    message.header.stamp.sec = number
    message.data = np.full((64, 64, 3), (204, 102, 51), np.uint8).tobytes()
    publisher.publish(message)
    number += 1
    rclpy.spin_once(node, timeout_sec=0.1)
process.terminate()
print(json.dumps({
    "stamps": [m.header.stamp.sec for m in found], "frames": sorted({m.header.frame_id for m in found}),
    "classes": sorted({d.results[0].hypothesis.class_id for m in found for d in m.detections}),
    "scores": [d.results[0].hypothesis.score for m in found[-1:] for d in m.detections],
    "status": process.wait(20),
}))
"""


@pytest.fixture
def in_ros(root: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs a script with ROS's interpreter and gives its last line, as JSON."""
    python = os.environ.get("EDGESMITH_ROS_PYTHON")
    if not python:
        pytest.skip(
            "set EDGESMITH_ROS_PYTHON to an interpreter with rclpy, vision_msgs, OpenCV and onnxruntime"
        )
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root")
    paths = [root / "sdk", root / "device_profiles", root / "samples" / "ros2_detector"]
    before = os.environ.get("PYTHONPATH", "")  # ROS's own setup script puts its packages there
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), before])}

    def run(script: str, *arguments: str) -> Any:
        (tmp_path / "script.py").write_text(script)
        command = shlex.join([python, str(tmp_path / "script.py"), *arguments])
        done = subprocess.run(
            ["unshare", "--net", "--mount", "sh", "-c", ALONE + command],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_the_sink_is_heard_by_a_node(in_ros: Any) -> None:
    heard = in_ros(SINK)
    assert heard["stats"] == [0, None]
    assert (heard["class"], heard["score"], heard["id"]) == ("dog", 0.75, "7")
    assert (heard["center"], heard["size"]) == ([30.0, 60.0], [40.0, 80.0])
    assert heard["frame"] == "front"
    assert 0 <= heard["late"] < 30
    assert heard["image"] == [120, 160, 480, "bgr8", [10, 20]]
    assert heard["still"]  # the sink's end is not the program's


def test_the_sample_node_answers_the_pictures_of_a_topic(in_ros: Any, make_bundle: MakeBundle) -> None:
    heard = in_ros(NODE, json.dumps({"bundle": str(make_bundle()), "image_topic": "/camera", "score": 0.5}))
    assert len(heard["stamps"]) >= 5
    assert heard["stamps"] == sorted(set(heard["stamps"]))  # each answer has its picture's header
    assert heard["frames"] == ["lens"]
    assert heard["classes"] == ["ball"]
    assert heard["scores"] == pytest.approx([0.8], abs=0.01)  # the red channel's mean: RGB came as RGB


def test_the_sample_node_runs_a_camera_of_its_own(in_ros: Any, make_bundle: MakeBundle) -> None:
    heard = in_ros(
        NODE,
        json.dumps(
            {"bundle": str(make_bundle()), "source": "testpattern://", "score": 0.05, "frame_id": "mast"}
        ),
    )
    assert len(heard["stamps"]) >= 5
    assert heard["frames"] == ["mast"]


def test_the_sample_node_says_what_it_lacks(in_ros: Any, make_bundle: MakeBundle) -> None:
    heard = in_ros(NODE, json.dumps({"bundle": str(make_bundle())}))
    assert heard["stamps"] == []
    assert heard["status"] == 2
