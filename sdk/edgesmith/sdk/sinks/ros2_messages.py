"""Results as ROS 2 messages: the mapping alone, without ROS.

Any set of message classes will do that is built with keyword arguments: ``rclpy``'s on a robot, another
library's where bytes are compared. Positions follow ``vision_msgs`` 4 (Humble and later).
"""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Answer, Result
from edgesmith.sdk.maps import Segmentation
from edgesmith.sdk.results import Classifications, Detection, Detections
from edgesmith.sdk.sinks.base import wall_ns

_SECOND = 10**9
TOPICS: tuple[tuple[type, str, str], ...] = (
    (Detections, "detections", "vision_msgs/msg/Detection2DArray"),
    (Classifications, "classification", "vision_msgs/msg/Classification"),
    (Segmentation, "segmentation", "sensor_msgs/msg/Image"),
)


class Messages(Protocol):
    """How a library makes a message, and what it wants a ``uint8[]`` to be."""

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message of a type such as ``std_msgs/msg/Header``."""
        ...

    def octets(self, data: bytes) -> Any:
        """The value of a ``uint8[]`` field."""
        ...


def header_of(result: Result, messages: Messages, frame_id: str) -> Any:
    """``std_msgs/msg/Header`` with the time of day of the grab."""
    taken = wall_ns(result.frame.captured_ns)
    stamp = messages.make("builtin_interfaces/msg/Time", sec=taken // _SECOND, nanosec=taken % _SECOND)
    return messages.make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def answer_message(result: Result, messages: Messages, header: Any) -> Any:
    """The answer as a message of the type that :func:`topic_of` names.

    ``class_id`` is the class name, ``Detection2D.id`` the track's number where there is one.
    """
    if isinstance(result.answer, Detections):
        found = [_detection(item, messages, header) for item in result.answer]
        return messages.make("vision_msgs/msg/Detection2DArray", header=header, detections=found)
    if isinstance(result.answer, Classifications):
        return _classification(result.answer, messages, header)
    if isinstance(result.answer, Segmentation):
        return _class_map(result.answer, messages, header)
    raise SinkError("ros2: there is no message for plain tensors: leave this sink out")


def topic_of(answer: Answer) -> tuple[str, str]:
    """Topic and type of an answer.

    Raises:
        SinkError: there is none for it.
    """
    for kind, topic, message in TOPICS:
        if isinstance(answer, kind):
            return topic, message
    raise SinkError(f"ros2: there is no message for {type(answer).__name__}: leave this sink out")


def _detection(item: Detection, messages: Messages, header: Any) -> Any:
    x1, y1, x2, y2 = item.box
    make = messages.make
    hypothesis = make("vision_msgs/msg/ObjectHypothesis", class_id=item.name, score=item.score)
    # The pose is part of the message and unknown: the identity.
    pose = make(
        "geometry_msgs/msg/Pose",
        position=make("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0),
        orientation=make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
    )
    covariance = np.zeros(36, np.float64)
    center = make(
        "vision_msgs/msg/Pose2D",
        position=make("vision_msgs/msg/Point2D", x=(x1 + x2) / 2, y=(y1 + y2) / 2),
        theta=0.0,
    )
    return make(
        "vision_msgs/msg/Detection2D",
        header=header,
        results=[
            make(
                "vision_msgs/msg/ObjectHypothesisWithPose",
                hypothesis=hypothesis,
                pose=make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=covariance),
            )
        ],
        bbox=make("vision_msgs/msg/BoundingBox2D", center=center, size_x=x2 - x1, size_y=y2 - y1),
        id="" if item.track_id is None else str(item.track_id),
    )


def _classification(answer: Classifications, messages: Messages, header: Any) -> Any:
    results = [
        messages.make("vision_msgs/msg/ObjectHypothesis", class_id=item.name, score=item.score)
        for item in answer.top_k(5)
    ]
    return messages.make("vision_msgs/msg/Classification", header=header, results=results)


def _class_map(answer: Segmentation, messages: Messages, header: Any) -> Any:
    """The class of each pixel as a grey picture, 8 or 16 bits."""
    wide = answer.class_map.dtype.itemsize > 1
    values = np.ascontiguousarray(answer.class_map, "<u2" if wide else np.uint8)
    rows, columns = values.shape
    return messages.make(
        "sensor_msgs/msg/Image",
        header=header,
        height=rows,
        width=columns,
        encoding="mono16" if wide else "mono8",
        is_bigendian=0,
        step=columns * values.itemsize,
        data=messages.octets(values.tobytes()),
    )


def image_message(image: NDArray[np.uint8], messages: Messages, header: Any) -> Any:
    """``sensor_msgs/msg/Image`` of a BGR uint8 ``(H, W, 3)`` picture, encoding ``bgr8``."""
    rows, columns = image.shape[:2]
    return messages.make(
        "sensor_msgs/msg/Image",
        header=header,
        height=rows,
        width=columns,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * columns,
        data=messages.octets(np.ascontiguousarray(image).tobytes()),
    )


def compressed_message(image: NDArray[np.uint8], messages: Messages, header: Any, quality: int) -> Any:
    """``sensor_msgs/msg/CompressedImage``, JPEG, as ``image_transport`` names it."""
    good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise ConfigError(f"ros2: a picture of shape {image.shape} cannot be encoded")
    return messages.make(
        "sensor_msgs/msg/CompressedImage",
        header=header,
        format="bgr8; jpeg compressed bgr8",
        data=messages.octets(data.tobytes()),
    )
