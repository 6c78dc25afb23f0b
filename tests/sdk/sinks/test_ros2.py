from __future__ import annotations

import importlib.util
import struct
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Classifications, Detections, Result
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.sinks.ros2 import RosPublisher
from edgesmith.sdk.sinks.ros2_messages import answer_message, compressed_message, header_of, image_message

typesys = pytest.importorskip("rosbags.typesys", reason="pip install rosbags")
MakeResult = Callable[..., Result]
# The definitions of vision_msgs 4 that a result fills.
VISION = {
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "Detection2D": (
        "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox2D bbox\nstring id\n"
    ),
    "Detection2DArray": "std_msgs/Header header\nDetection2D[] detections\n",
    "Classification": "std_msgs/Header header\nObjectHypothesis[] results\n",
}


class RosbagsMessages:
    """Messages of the rosbags library, which writes what ROS reads and needs no ROS."""

    def __init__(self) -> None:
        self.store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
        types: dict[str, Any] = {}
        for name, text in VISION.items():
            types.update(typesys.get_types_from_msg(text, f"vision_msgs/msg/{name}"))
        self.store.register(types)

    def make(self, name: str, /, **fields: Any) -> Any:
        return self.store.types[name](**fields)

    def octets(self, data: bytes) -> Any:
        return np.frombuffer(data, np.uint8)

    def bytes_of(self, message: Any) -> bytes:
        return bytes(self.store.serialize_cdr(message, message.__msgtype__))


@pytest.fixture(scope="module")
def messages() -> RosbagsMessages:
    return RosbagsMessages()


class Cdr:
    """Little-endian CDR (OMG DDS-XTypes, plain CDR version 1), by hand: what goes over the wire."""

    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, code: str, *values: Any) -> Cdr:
        size = struct.calcsize(code)
        for value in values:
            self.data += bytes(-len(self.data) % size) + struct.pack("<" + code, value)
        return self

    def text(self, value: str) -> Cdr:
        self.put("I", len(value.encode()) + 1)
        self.data += value.encode() + b"\0"
        return self

    def header(self, stamp: Any, frame_id: str) -> Cdr:
        return self.put("i", stamp.sec).put("I", stamp.nanosec).text(frame_id)

    def whole(self) -> bytes:
        return b"\x00\x01\x00\x00" + bytes(self.data)


def test_detections_are_these_bytes(messages: RosbagsMessages, make_result: MakeResult) -> None:
    answer = Detections(
        np.array([[10, 20, 50, 100], [0.5, 1.25, 3, 4]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([1, 0], np.int32),
        ("Bär", "dog"),
        track_ids=np.array([7, 12], np.int32),
    )
    header = header_of(make_result(), messages, "camera_link")
    message = answer_message(make_result(answer=answer), messages, header)
    wire = Cdr().header(header.stamp, "camera_link").put("I", 2)
    for name, score, x, y, width, height, track in (
        ("dog", 0.75, 30.0, 60.0, 40.0, 80.0, "7"),
        ("Bär", 0.5, 1.75, 2.625, 2.5, 2.75, "12"),
    ):
        wire.header(header.stamp, "camera_link").put("I", 1).text(name).put("d", score)
        wire.put("d", 0, 0, 0, 0, 0, 0, 1).put("d", *[0.0] * 36)
        wire.put("d", x, y, 0.0, width, height).text(track)
    assert messages.bytes_of(message).hex() == wire.whole().hex()


def test_nothing_found_is_an_empty_array_and_no_track_an_empty_id(
    messages: RosbagsMessages, make_result: MakeResult
) -> None:
    header = header_of(make_result(), messages, "a")
    empty = answer_message(make_result(answer=Detections.empty()), messages, header)
    assert messages.bytes_of(empty) == Cdr().header(header.stamp, "a").put("I", 0).whole()
    one = Detections(np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32))
    assert answer_message(make_result(answer=one), messages, header).detections[0].id == ""


def test_classes_are_these_bytes(
    messages: RosbagsMessages, make_result: MakeResult, classes: Classifications
) -> None:
    header = header_of(make_result(), messages, "a")
    message = answer_message(make_result(answer=classes), messages, header)
    wire = Cdr().header(header.stamp, "a").put("I", 3)
    for name, score in (("red", 0.7), ("blue", 0.2), ("green", 0.1)):
        wire.text(name).put("d", float(np.float32(score)))
    assert messages.bytes_of(message) == wire.whole()


def test_the_stamp_is_the_time_of_day_of_the_grab(messages: RosbagsMessages, make_result: MakeResult) -> None:
    captured = time.monotonic_ns() - 3 * 10**9
    stamp = header_of(make_result(captured_ns=captured), messages, "a").stamp
    assert abs(stamp.sec * 10**9 + stamp.nanosec - (time.time_ns() - 3 * 10**9)) < 5 * 10**7
    assert 0 <= stamp.nanosec < 10**9


def test_a_raw_picture_is_these_bytes(messages: RosbagsMessages, make_result: MakeResult) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)[:, 2:7]  # rows apart in memory
    header = header_of(make_result(), messages, "a")
    wire = Cdr().header(header.stamp, "a").put("I", 6, 5).text("bgr8").put("B", 0).put("I", 15, 90)
    wire.data += image.tobytes()
    assert messages.bytes_of(image_message(image, messages, header)) == wire.whole()


def test_a_compressed_picture_opens(messages: RosbagsMessages, make_result: MakeResult) -> None:
    image = np.full((40, 60, 3), (30, 90, 200), np.uint8)
    header = header_of(make_result(), messages, "a")
    data = messages.bytes_of(compressed_message(image, messages, header, 90))
    read = messages.store.deserialize_cdr(data, "sensor_msgs/msg/CompressedImage")
    assert read.format.startswith("bgr8; jpeg")
    picture = cv2.imdecode(read.data, cv2.IMREAD_COLOR)
    assert picture is not None
    assert np.abs(picture.astype(int) - (30, 90, 200)).max() < 4


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is not None, reason="ROS is here")
def test_without_ros_the_way_to_it_is_told() -> None:
    with pytest.raises(ConfigError, match=r"vision_msgs cannot be imported .*ros-\$ROS_DISTRO-vision-msgs"):
        RosPublisher()


def test_messages_from_before_humble_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("vision_msgs.msg")
    monkeypatch.setitem(sys.modules, "vision_msgs", ModuleType("vision_msgs"))
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", old)
    with pytest.raises(ConfigError, match="Humble or later"):
        RosPublisher()


def test_pictures_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="images 'png'"):
        RosPublisher(images="png")  # type: ignore[arg-type]
