"""What stands around the robot of ``soak.py``: a camera, a broker, browsers, a service manager, ROS.

Each part can be stopped and started again, which is what ``FAULTS`` does to them while the robot runs.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

SERVER = Path(__file__).resolve().parent.parent / "tests" / "sdk" / "cameras" / "rtsp_server.py"
MOSQUITTO = "/usr/sbin/mosquitto"
START_S = 20.0
# Hears what the robot's ROS sink says; a picture is drawn and sent only where somebody listens.
ROS_LISTENER = """
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Detection2DArray
rclpy.init()
node = rclpy.create_node("listener")
node.create_subscription(Detection2DArray, "/edgesmith/door/detections", lambda m: print("answer"), 10)
node.create_subscription(
    CompressedImage, "/edgesmith/door/image/compressed", lambda m: print("picture"), qos_profile_sensor_data
)
print("READY", flush=True)
rclpy.spin(node)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as peer:
        peer.settimeout(0.2)
        return peer.connect_ex(("127.0.0.1", port)) == 0


class Part(Protocol):
    """What can be taken away and brought back."""

    def start(self) -> None: ...
    def kill(self) -> None: ...


class Program:
    """A process that is killed without warning and started again; its output goes to a file.

    Args:
        ready: whether it serves.
    """

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool]) -> None:
        self.command, self.log = command, log
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{self.command[0]} does not start; {self.log} says why")
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Stopped:
    """A part that is not killed but stopped in its tracks: connections stay, and nothing comes."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def kill(self) -> None:
        self._program.signal(signal.SIGSTOP)

    def start(self) -> None:
        self._program.signal(signal.SIGCONT)


class MovedAway:
    """A folder that the robot writes into, gone for a while as a disk that was unplugged."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._away = folder, folder.with_name(folder.name + ".away")

    def kill(self) -> None:
        self._folder.rename(self._away)

    def start(self) -> None:
        self._away.rename(self._folder)


class Browsers:
    """Some look at the page and leave without a word; one of three reads nothing of what it asked for."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self._root, self._rng = f"http://127.0.0.1:{port}", rng
        self.pictures = self.came = 0
        self._open: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._gone = threading.Event()

    def start(self) -> None:
        """They leave."""
        self._gone.set()
        for thread in self._threads:
            thread.join(10)
        for response in self._open:
            response.close()
        self._open, self._threads = [], []

    def kill(self) -> None:
        """They come."""
        self._gone = threading.Event()
        for number in range(self._rng.randint(1, 3)):
            response = urllib.request.urlopen(f"{self._root}/stream/{number % 2}", timeout=10)
            self.came += 1
            self._open.append(response)
            if number < 2:
                thread = threading.Thread(target=self._look, args=(response, self._gone), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _look(self, response: Any, gone: threading.Event) -> None:
        with contextlib.suppress(OSError, ValueError):  # the robot may end the stream, or we in a read
            while not gone.is_set():
                self.pictures += response.read(16_384).count(b"\xff\xd8\xff")


class Manager:
    """systemd's end of the watchdog's socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: Counter[str] = Counter()
        self._socket: socket.socket | None = None

    def start(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()

    def kill(self) -> None:
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self.path.unlink()
            self._socket = None

    def _listen(self, own: socket.socket) -> None:
        while True:
            try:
                said = own.recv(4096)
            except OSError:
                return
            if not said:
                return
            self.heard.update(line.partition("=")[0] for line in said.decode().splitlines())


class Subscriber:
    """Hears what the broker passes on, and whether each camera's numbers are in order, none twice."""

    def __init__(self, port: int) -> None:
        self.messages: Counter[str] = Counter()
        self.disorder: list[str] = []
        self._last: dict[str, int] = {}
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(1, 2)
        self._client.on_connect = lambda client, *_: client.subscribe("soak/#", qos=1)
        self._client.on_message = self._heard
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _heard(self, _client: Any, _data: Any, message: Any) -> None:
        import msgspec

        self.messages[message.topic] += 1
        said = msgspec.json.decode(message.payload)
        if "frame" in said:
            if said["frame"] <= self._last.get(message.topic, -1):
                self.disorder.append(f"{message.topic}: {said['frame']} after {self._last[message.topic]}")
            self._last[message.topic] = said["frame"]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@dataclass
class World:
    """All parts, and what is done to them. ``faults`` maps a name to a part and how long it is away."""

    folder: Path
    clip: Path
    hz: int
    seed: int
    ros_python: str = ""
    faults: dict[str, tuple[Part, float, float]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    at_fault: str = ""

    def __post_init__(self) -> None:
        self.rtsp_port, self.mqtt_port, self.view_port = free_port(), free_port(), free_port()
        self._rng = random.Random(self.seed)
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self.mqtt_port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n"
        )
        serve = [sys.executable, str(SERVER), "--port", str(self.rtsp_port), "--fps", str(self.hz)]
        self.camera = self._program([*serve, "--clip", str(self.clip)], "camera", self.rtsp_port)
        broker = [MOSQUITTO, "-c", str(self.folder / "mosquitto.conf")]
        self.broker = self._program(broker, "broker", self.mqtt_port)
        self.manager = Manager(self.folder / "notify")
        self.browsers = Browsers(self.view_port, random.Random(self.seed + 1))
        self.listener: Program | None = None
        self.faults = {
            "camera killed": (self.camera, 0.5, 8.0),
            "camera stopped": (Stopped(self.camera), 3.0, 8.0),
            "broker killed": (self.broker, 0.5, 15.0),
            "broker stopped": (Stopped(self.broker), 3.0, 15.0),
            "service manager gone": (self.manager, 2.0, 8.0),
            "disk of events gone": (MovedAway(self.folder / "events"), 3.0, 10.0),
            "browsers": (self.browsers, 2.0, 15.0),
        }
        if self.ros_python:
            self._add_ros()

    def _program(self, command: list[str], name: str, port: int) -> Program:
        return Program(command, self.folder / f"{name}.log", lambda: answers(port))

    def _add_ros(self) -> None:
        log = self.folder / "listener.log"
        self.listener = Program(
            [self.ros_python, "-u", "-c", ROS_LISTENER],
            log,
            lambda: b"READY" in log.read_bytes(),
        )
        self.faults["ROS listener killed"] = (self.listener, 1.0, 8.0)

    def start(self) -> None:
        """Everything but the robot."""
        self.camera.start()
        self.broker.start()
        self.manager.start()
        if self.listener is not None:
            self.listener.start()
        self.subscriber = Subscriber(self.mqtt_port)

    def stop(self) -> None:
        """End all of it."""
        self.subscriber.close()
        for part in (self.camera, self.broker, self.listener, self.manager):
            if part is not None:
                part.kill()

    def torment(self, until: float, pause_s: float) -> None:
        """One fault after the other, each at once for the first time, then by chance, until ``until``.

        Args:
            until: on ``time.monotonic()``.
            pause_s: mean time between the end of one and the beginning of the next.
        """
        waiting: list[str] = []
        while True:
            time.sleep(min(self._rng.uniform(0.5, 1.5) * pause_s, max(0.0, until - time.monotonic())))
            if not waiting:  # all of them before any comes again, in an order of its own each time
                waiting = self._rng.sample(sorted(self.faults), len(self.faults))
            name = waiting.pop()
            part, shortest, longest = self.faults[name]
            seconds = self._rng.uniform(shortest, longest)
            if time.monotonic() + seconds > until:
                return
            self.at_fault = name
            part.kill()
            time.sleep(seconds)
            part.start()
            self.done[name] += 1
            self.at_fault = ""
