"""A robot that runs for an hour while everything around it fails.

    python benchmarks/soak.py [--minutes 60] [--hz 10] [--seed 1] [--model fastestdet] [--json]

``edgesmith run`` with two cameras (a real RTSP server, GStreamer's, that shows a clip; a test pattern), a
trained detector, tracking, and every sink that this machine has: JSON lines, video, pictures, events, MCAP,
MQTT to a real mosquitto, the live page, systemd's watchdog and, with EDGESMITH_ROS_PYTHON (an interpreter
with rclpy and vision_msgs; needs root, for a network of its own), ROS 2. One after the other the camera's
server and the broker are killed or stopped, the service manager and the events' disk go away, browsers come
and leave without reading. Bars, after a sixth of the time for warming up, the next sixth against the last:
resident memory within 3 %, the p99 of the age flat, files and threads the same, every frame accounted for,
every number in the outputs in order and none twice, every frame in the videos. Memory is that of the
program: what the kernel takes back of its libraries does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np

from edgesmith.sdk.cameras.testpattern import read_number
from soak_world import World

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("EDGESMITH_ASSETS", ROOT.parent / "shared" / "assets"))
MEMORY_BAR, LATENCY_BAR, LATENCY_SLACK_MS = 1.03, 1.25, 3.0
# Loopback with multicast, for ROS's discovery: nothing of it is seen outside.
ALONE = (
    "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && ip link set lo multicast on && "
    "ip route add 224.0.0.0/4 dev lo && exec "
)
ROBOT = """
policy = "latest"
track = true
[model]
bundle = "model.edge"
backend = "cpu"
threads = 1
score = 0.3
[[cameras]]
name = "door"
source = "rtsp://127.0.0.1:{rtsp}/test"
[[cameras]]
name = "yard"
source = "testpattern://?size=320x240&fps={slow}"
[[sinks]]
kind = "jsonl"
path = "results.jsonl"
[[sinks]]
kind = "video"
path = "{{camera}}.mp4"
fps = {hz}
timing = "captured"
[[sinks]]
kind = "pictures"
path = "pictures/{{camera}}"
[[sinks]]
kind = "events"
folder = "events"
max_bytes = 2_000_000
absent_s = 0.5
cooldown_s = 1.0
[[sinks]]
kind = "mcap"
path = "mcap/recording.mcap"
max_bytes = 20_000_000
[[sinks]]
kind = "mqtt"
host = "127.0.0.1"
port = {mqtt}
topic = "soak"
reconnect_s = 4
[[sinks]]
kind = "view"
address = ":{view}"
[[sinks]]
kind = "watchdog"
"""
ROS_SINK = '[[sinks]]\nkind = "ros2"\nimages = "compressed"\nper_source = true\n'


class Robot:
    """``edgesmith run`` in a process of its own, seen from outside."""

    def __init__(self, world: World) -> None:
        ports = {"rtsp": world.rtsp_port, "mqtt": world.mqtt_port, "view": world.view_port}
        config = world.folder / "robot.toml"
        text = ROBOT.format(hz=world.hz, slow=max(1, world.hz // 2), **ports) + (
            ROS_SINK if world.ros_python else ""
        )
        config.write_text(text)
        self._page = f"http://127.0.0.1:{world.view_port}/stats"
        self._stderr = (world.folder / "robot.log").open("w+")
        python, environment = robots_python()
        self.process = subprocess.Popen(
            [python, "-m", "edgesmith.sdk.cli", "run", "--config", str(config), "--json"],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **environment, "NOTIFY_SOCKET": str(world.manager.path)},
        )

    def wait(self) -> None:
        """Until both cameras have given results."""
        until = time.monotonic() + 30.0
        while True:
            with contextlib.suppress(urllib.error.URLError):
                if len(self.sample()["cameras"]) == 2:
                    return
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                self.end()
            time.sleep(0.2)

    def sample(self) -> dict[str, Any]:
        """Memory, files, threads and processor time, and what its page says of the cameras."""
        own = Path("/proc", str(self.process.pid))
        status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
        ticks = sum(map(int, (own / "stat").read_text().rpartition(")")[2].split()[11:13]))
        with urllib.request.urlopen(self._page, timeout=10) as page:
            cameras = json.load(page)["cameras"]
        keys = ("state", "frames", "dropped", "fps", "age_ms")
        cameras = [camera for camera in cameras if "frames" in camera]  # of the others no result came yet
        return {
            "rss_bytes": 1024 * int(status["VmRSS"].split()[0]),
            "anonymous_bytes": 1024 * int(status["RssAnon"].split()[0]),
            "threads": int(status["Threads"]),
            "files": len(list((own / "fd").iterdir())),
            "cpu_s": ticks / os.sysconf("SC_CLK_TCK"),
            "load": os.getloadavg()[0],
            "cameras": {camera["source"]: {key: camera[key] for key in keys} for camera in cameras},
        }

    def end(self) -> tuple[dict[str, Any], list[str]]:
        """End it as a service manager would; its summary, and the lines for a person."""
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=60)[0]
        self._stderr.seek(0)
        notes = self._stderr.read().splitlines()
        if self.process.returncode != 130:
            raise SystemExit("\n".join(["the robot failed:", *notes[-20:]]))
        summary: dict[str, Any] = json.loads(said)
        return summary, notes


def watch(world: World, robot: Robot, seconds: float, every_s: float) -> list[dict[str, Any]]:
    """Samples of the robot until the time is over; old recordings are removed meanwhile."""
    began = time.monotonic()
    samples = []
    for number in range(1, int(seconds / every_s) + 1):
        time.sleep(max(0.0, began + number * every_s - time.monotonic()))
        if robot.process.poll() is not None:
            break
        before = world.at_fault
        sample = robot.sample()
        at_fault = before or world.at_fault
        samples.append({"s": round(time.monotonic() - began, 1), "at_fault": at_fault, **sample})
        for pattern, kept in (("pictures/*/*.jpg", 50), ("mcap/*.mcap", 3)):
            for old in sorted(world.folder.glob(pattern), key=lambda p: p.stat().st_mtime)[:-kept]:
                old.unlink()
    return samples


def written(folder: Path) -> dict[str, Any]:
    """What lies in the robot's files: how much, and whether the numbers are in order, none twice."""
    lines: Counter[str] = Counter()
    last: dict[str, int] = {}
    disorder: list[str] = []
    with (folder / "results.jsonl").open("rb") as file:
        for text in file:
            line = json.loads(text)
            source = line["source"]
            lines[source] += 1
            if line["frame"] <= last.get(source, -1):
                disorder.append(f"results.jsonl: {source}: {line['frame']} after {last[source]}")
            last[source] = line["frame"]
    videos = {}
    for path in sorted(folder.glob("*.mp4")):
        numbers = []
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                numbers.append(read_number(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)))
        videos[path.stem] = {"frames": len(numbers), "read": sum(number is not None for number in numbers)}
    events = len(list((folder / "events").glob("*.jpg")))
    return {"lines": dict(lines), "videos": videos, "events_kept": events, "disorder": disorder}


def compared(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The second sixth of the time against the last."""
    size = max(2, len(samples) // 6)
    early, late = samples[size : 2 * size], samples[-size:]

    def middle(part: list[dict[str, Any]], key: str) -> float:
        return float(statistics.median(sample[key] for sample in part))

    def ages(part: list[dict[str, Any]], percentile: str) -> float:
        found = [c["age_ms"][percentile] for s in part for c in s["cameras"].values()]
        return float(statistics.median(found))

    quiet = [[s for s in part if not s["at_fault"]] or part for part in (early, late)]
    hours = np.array([s["s"] for s in samples[size:]]) / 3600
    slope = np.polyfit(hours, [s["rss_bytes"] for s in samples[size:]], 1)[0]
    out: dict[str, Any] = {"rss_bytes_per_hour": round(float(slope))}
    for key in ("rss_bytes", "anonymous_bytes"):
        out[key] = [round(middle(part, key)) for part in (early, late)]
    for key in ("threads", "files"):
        out[key] = [statistics.median(s[key] for s in part) for part in quiet]
    for percentile in ("p50", "p99"):
        out[f"age_{percentile}_ms"] = [round(ages(part, percentile), 2) for part in (early, late)]
    # The kernel may take back pages of libraries meanwhile, which hides what the program itself takes.
    grown = max(late - early for early, late in (out["rss_bytes"], out["anonymous_bytes"]))
    out["memory_growth"] = 1 + grown / out["rss_bytes"][0]
    return out


def judged(figures: dict[str, Any]) -> dict[str, bool]:
    """The bars."""
    change, cameras = figures["compared"], figures["summary"]["cameras"]
    first, last = change["age_p99_ms"]
    held = {
        name: int(lost)
        for note in figures["notes"]
        for name, lost in re.findall(r"^(\w+): (\d+) of \d+ results were passed over", note)
    }
    lines = sum(figures["written"]["lines"].values())
    return {
        "memory": change["memory_growth"] <= MEMORY_BAR,
        "latency": last <= LATENCY_BAR * first + LATENCY_SLACK_MS,
        "threads": change["threads"][1] <= change["threads"][0],
        "files": change["files"][1] <= change["files"][0],
        "accounted": all(c["grabbed"] == c["processed"] + c["dropped"] for c in cameras),
        "every line written": lines == figures["summary"]["frames"] - held.get("jsonl", 0),
        "every frame in a video": sum(v["frames"] for v in figures["written"]["videos"].values())
        == figures["summary"]["frames"] - held.get("video", 0),
        "in order": not figures["written"]["disorder"] and not figures["heard"]["disorder"],
        "every fault came": all(figures["faults"].values()),
    }


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the robot in its world, and what came of it."""
    from common import trained_recipe
    from edgesmith.converters import convert

    convert(trained_recipe(options.model, ASSETS, precision={"mode": "fp32"}), folder / "model.edge")
    (folder / "mcap").mkdir()
    clip = ASSETS / "clips" / "highway_cars.mp4"
    world = World(folder, clip, options.hz, options.seed, ros_python())
    load = os.getloadavg()[0]
    world.start()
    robot = Robot(world)
    try:
        robot.wait()
        seconds = 60.0 * options.minutes
        until = time.monotonic() + seconds - 15.0  # the last of it is quiet
        chaos = threading.Thread(target=world.torment, args=(until, min(20.0, seconds / 60)), daemon=True)
        chaos.start()
        samples = watch(world, robot, seconds, min(10.0, seconds / 60))
        chaos.join(60)
        summary, notes = robot.end()
    finally:
        robot.process.kill()
        world.stop()
    heard = {"mqtt": dict(world.subscriber.messages), "disorder": world.subscriber.disorder}
    heard["watchdog"] = dict(world.manager.heard)
    heard["browsers"] = {"came": world.browsers.came, "pictures": world.browsers.pictures}
    if world.listener is not None:
        heard["ros"] = dict(Counter(world.listener.log.read_text().splitlines()))
    figures: dict[str, Any] = {"minutes": options.minutes, "hz": options.hz, "load_before": load}
    figures |= {"seed": options.seed, "model": options.model, "cpu_share": samples[-1]["cpu_s"] / seconds}
    figures |= {"faults": {name: world.done[name] for name in world.faults}, "compared": compared(samples)}
    figures |= {"summary": summary, "notes": notes, "heard": heard, "written": written(folder)}
    figures["held"] = judged(figures)
    return {**figures, "samples": samples}


def ros_python() -> str:
    """ROS's interpreter, or nothing."""
    return os.environ.get("EDGESMITH_ROS_PYTHON", "")


def robots_python() -> tuple[str, dict[str, str]]:
    """The robot's interpreter: ROS's where there is one, which finds this one's packages after its own."""
    if not ros_python():
        return sys.executable, {}
    paths = [ROOT / "sdk", ROOT / "device_profiles", sysconfig.get_path("purelib")]
    return ros_python(), {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--hz", type=int, default=10, help="frames a second of the stream; the pattern has half"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order and times of what fails")
    parser.add_argument("--model", default="fastestdet", help="a recipe of benchmarks/recipes")
    parser.add_argument("--json", action="store_true", help="print the figures, and keep no results file")
    options = parser.parse_args()
    if ros_python() and "EDGESMITH_SOAK_ALONE" not in os.environ:
        os.environ["EDGESMITH_SOAK_ALONE"] = "1"
        command = shlex.join([sys.executable, *sys.argv])
        os.execvp("unshare", ["unshare", "--net", "--mount", "sh", "-c", ALONE + command])
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(options, Path(folder))
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures)
    sys.exit(0 if all(figures["held"].values()) else 1)


def show(figures: dict[str, Any]) -> None:
    """The figures as tables, and the results file."""
    from common import print_table, write_results

    change = figures["compared"]
    rows = [
        (key, *(f"{value:,}" for value in change[key])) for key in change if isinstance(change[key], list)
    ]
    print_table(("", "second sixth", "last sixth"), rows)
    print()
    print_table(("what failed", "times"), list(figures["faults"].items()))
    print()
    print_table(("bar", "held"), [(bar, "yes" if held else "NO") for bar, held in figures["held"].items()])
    for note in figures["notes"]:
        print(note)
    kept = {
        **figures,
        "samples": figures["samples"][::6],
        "notes": [note for note in figures["notes"] if not note.startswith("edgesmith: ")],
    }
    print(f"\nof a core: {figures['cpu_share']:.2f}; wrote {write_results('soak', kept)}")


if __name__ == "__main__":
    main()
