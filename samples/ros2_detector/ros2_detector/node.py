"""A node that publishes what a bundle sees, from a camera of its own or from an image topic.

    ros2 run ros2_detector detector --ros-args -p bundle:=model.edge -p source:=csi://0
    ros2 run ros2_detector detector --ros-args -p bundle:=model.edge -p image_topic:=/camera/image_raw

Publishes ``~/detections`` (``vision_msgs/Detection2DArray``; ``~/classification`` of a classifier). With a
source of its own, also ``~/image`` or ``~/image/compressed`` where ``images`` asks for it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from typing import Any

# None of ROS has types; where it is not installed, checkers do not find it at all.
import rclpy  # type: ignore[import-not-found, unused-ignore]
from rclpy.executors import ExternalShutdownException  # type: ignore[import-not-found, unused-ignore]
from rclpy.node import Node  # type: ignore[import-not-found, unused-ignore]
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy  # type: ignore[import-not-found, unused-ignore]
from sensor_msgs.msg import Image  # type: ignore[import-not-found, unused-ignore]

from edgesmith.sdk import EdgesmithError, Frame, Result, load_model, open_camera
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.models import Detector
from edgesmith.sdk.sinks.ros2 import RosPublisher

from .pictures import bgr_of

PARAMETERS: dict[str, Any] = {
    "bundle": "",
    "source": "",
    "image_topic": "",
    "backend": "auto",
    "score": 0.4,
    "track": False,
    "images": "none",
    "draw": False,
    "frame_id": "camera",
}
# The newest picture alone: while the model works, older ones are replaced, not queued.
NEWEST = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)


class DetectorNode(Node):  # type: ignore[misc]
    """Loads the bundle and publishes what it finds.

    Raises:
        ValueError: not exactly one of ``source`` and ``image_topic`` is given.
        EdgesmithError: the bundle or the camera cannot be opened.
    """

    def __init__(self) -> None:
        super().__init__("detector")
        for name, default in PARAMETERS.items():
            self.declare_parameter(name, default)
        self.settings = {name: self.get_parameter(name).value for name in PARAMETERS}
        if bool(self.settings["source"]) == bool(self.settings["image_topic"]):
            raise ValueError("set one of the parameters source and image_topic")
        self.model = load_model(self.settings["bundle"], backend=self.settings["backend"])
        self.get_logger().info(f"{self.settings['bundle']} on {self.model.backend.detail}")
        self.score = self.settings["score"] if isinstance(self.model, Detector) else None
        self.publisher = RosPublisher(
            namespace="~",
            frame_id=self.settings["frame_id"],
            images=self.settings["images"],
            draw=self.settings["draw"],
            node=self,
        )
        self.loop: CaptureLoop | None = None
        self._numbers = itertools.count()
        if self.settings["image_topic"]:
            self.create_subscription(Image, self.settings["image_topic"], self.on_image, NEWEST)

    def on_image(self, message: Image) -> None:
        """Run one picture of the topic; the answer keeps its header, so that the two can be matched."""
        began = time.monotonic_ns()
        try:
            image = bgr_of(message)
        except ValueError as error:
            self.get_logger().error(f"{self.settings['image_topic']}: {error}", throttle_duration_sec=10.0)
            return
        call: Any = self.model
        answer = call(image) if self.score is None else call(image, score=self.score)
        frame = Frame(image, next(self._numbers), began, None, self.settings["image_topic"])
        self.publisher.publish(Result(frame, answer), message.header)

    def run_source(self) -> None:
        """Run the camera until it ends or ROS shuts down."""
        camera = open_camera(self.settings["source"])
        self.loop = CaptureLoop(
            camera,
            self.model,
            sinks=[self.publisher],
            score=self.score,
            track=self.settings["track"],
            on_state=lambda name, state: self.get_logger().info(f"camera {name}: {state}"),
        )
        with self.loop as results:
            for _ in results:
                if not rclpy.ok():
                    break


def main() -> int:
    """The node's process; its exit status is that of the edgesmith command."""
    rclpy.init()
    status = 0
    try:
        node = DetectorNode()
        if node.settings["source"]:
            # Parameters and logging are served beside the loop.
            threading.Thread(target=spin, args=(node,), daemon=True).start()
            node.run_source()
        else:
            spin(node)
    except (EdgesmithError, ValueError) as error:
        print(f"detector: {error}", file=sys.stderr)
        status = getattr(error, "exit_status", 2)
    except KeyboardInterrupt:
        status = 130
    rclpy.try_shutdown()
    return status


def spin(node: Node) -> None:
    """Serve the node until ROS shuts down."""
    try:
        rclpy.spin(node)
    except (ExternalShutdownException, KeyboardInterrupt):
        node.get_logger().info("the end")


if __name__ == "__main__":
    sys.exit(main())
