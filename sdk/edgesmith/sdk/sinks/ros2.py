"""Results to ROS 2."""

from __future__ import annotations

import array
import importlib
import threading
from typing import Any, Literal

from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.naming import SourceNames, camera_of, slug
from edgesmith.sdk.sinks.ros2_messages import (
    answer_message,
    compressed_message,
    header_of,
    image_message,
    topic_of,
)

Images = Literal["none", "raw", "compressed"]


class RosPublisher:
    """Publishes ``detections`` (``vision_msgs/Detection2DArray``), or ``classification``, and pictures.

    Topics are ``NAMESPACE/detections``, ``NAMESPACE/image`` (``sensor_msgs/Image``) or
    ``NAMESPACE/image/compressed``. With ``per_source`` the camera's name stands in between. Answers are
    reliable with a depth of 10; pictures are best-effort, as sensor data is.

    Args:
        namespace: first part of the topics, ``~`` for the node's own.
        frame_id: of all headers; the camera's name where it is None.
        images: ``none``, ``raw`` or ``compressed`` (JPEG).
        draw: whether the answer is drawn on the pictures.
        quality: of the JPEG, 1..100.
        per_source: whether each camera has topics of its own.
        node: the node to publish from; a node of our own called ``edgesmith`` where it is None.

    Raises:
        ConfigError: ``rclpy`` or ``vision_msgs`` is not there (ROS is brought by its own installer), or
            ``vision_msgs`` is older than version 4.
        SinkError: ROS does not start.
    """

    def __init__(
        self,
        *,
        namespace: str = "edgesmith",
        frame_id: str | None = None,
        images: Images = "none",
        draw: bool = False,
        quality: int = 80,
        per_source: bool = False,
        node: Any = None,
    ) -> None:
        if images not in ("none", "raw", "compressed") or not 1 <= quality <= 100:
            raise ConfigError(
                f"ros2: images {images!r} (none, raw, compressed), quality {quality} (1 to 100)"
            )
        self.notes: list[str] = []
        self.messages = RclpyMessages()
        self.reads_image = images != "none"
        self.namespace, self._frame_id, self._images = namespace.rstrip("/"), frame_id, images
        self._draw, self._quality, self._per_source = draw, quality, per_source
        self._names = SourceNames()
        self._publishers: dict[tuple[str, str], Any] = {}
        self._rclpy = _ros("rclpy")
        self._own_context: Any = None
        self._node = node if node is not None else self._own_node()

    def _own_node(self) -> Any:
        # A context of our own: the program may use rclpy beside us and end it before us.
        context = self._rclpy.Context()
        try:
            self._rclpy.init(context=context)
            node = self._rclpy.create_node("edgesmith", context=context)
        except Exception as error:  # rclpy raises a class of its C extension here
            raise SinkError(f"ros2: cannot start: {error}") from error
        self._own_context = context
        return node

    def write(self, result: Result) -> None:
        """Publish one result, stamped with the time of day of its grab.

        Raises:
            SinkError: ROS was shut down.
        """
        name = self._names[camera_of(result)]
        self.publish(result, header_of(result, self.messages, self._frame_id or name))

    def publish(self, result: Result, header: Any) -> None:
        """Publish one result under a header of the caller's: that of the message its picture came in.

        Raises:
            SinkError: ROS was shut down.
        """
        name = self._names[camera_of(result)]
        answers = self._publisher(name, *topic_of(result.answer))
        self._publish(answers, answer_message(result, self.messages, header))
        if self._images == "none":
            return
        raw = self._images == "raw"
        pictures = self._publisher(
            name,
            "image" if raw else "image/compressed",
            "sensor_msgs/msg/Image" if raw else "sensor_msgs/msg/CompressedImage",
        )
        if pictures.get_subscription_count() == 0:
            return  # nobody looks: the copy would be for nothing
        image = result.answer.draw(result.frame.image) if self._draw else result.frame.image
        self._publish(
            pictures,
            image_message(image, self.messages, header)
            if raw
            else compressed_message(image, self.messages, header, self._quality),
        )

    def _publisher(self, name: str, what: str, kind: str) -> Any:
        key = (name if self._per_source else "", what)
        if key not in self._publishers:
            topic = "/".join(part for part in (self.namespace, key[0], what) if part)
            qos = _ros("rclpy.qos")
            profile = qos.qos_profile_sensor_data if what.startswith("image") else 10
            try:
                self._publishers[key] = self._node.create_publisher(self.messages.of(kind), topic, profile)
            except Exception as error:  # the classes of rclpy's refusals differ by release
                raise SinkError(f"ros2: topic {topic}: {error}") from error
        return self._publishers[key]

    def _publish(self, publisher: Any, message: Any) -> None:
        try:
            publisher.publish(message)
        except Exception as error:  # an invalid handle, a context that was shut down: a class each
            raise SinkError(f"ros2: {publisher.topic_name}: {error}") from error

    def close(self) -> None:
        """Take our publishers, and the node where it is ours, away."""
        publishers, self._publishers = list(self._publishers.values()), {}
        for publisher in publishers:
            self._node.destroy_publisher(publisher)
        if self._own_context is not None:
            self._node.destroy_node()
            self._rclpy.shutdown(context=self._own_context)
            self._own_context = None


class RclpyMessages:
    """The message classes of the ROS installation.

    Raises:
        ConfigError: they are not installed, or ``vision_msgs`` is older than version 4, whose boxes are
            other messages.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes: dict[str, Any] = {}
        if not hasattr(_ros("vision_msgs.msg"), "Point2D"):
            raise ConfigError("ros2: vision_msgs is older than version 4: ROS 2 Humble or later is needed")

    def of(self, name: str) -> Any:
        """The class of a type such as ``std_msgs/msg/Header``."""
        with self._lock:
            if name not in self._classes:
                module, _, attribute = name.replace("/", ".").rpartition(".")
                self._classes[name] = getattr(_ros(module), attribute)
            return self._classes[name]

    def make(self, name: str, /, **fields: Any) -> Any:
        """A message of that type."""
        return self.of(name)(**fields)

    def octets(self, data: bytes) -> Any:
        """An ``array``: rclpy looks at each byte of anything else."""
        return array.array("B", data)


def _ros(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:  # also a shared library that was not found: the setup script was not read
        package = slug(module.partition(".")[0]).replace("_", "-")
        raise ConfigError(
            f"ros2: {module.partition('.')[0]} cannot be imported ({error}): "
            f"apt install ros-$ROS_DISTRO-{package}, then source /opt/ros/$ROS_DISTRO/setup.bash"
        ) from error
