"""A served detector under load, against the SDK's own loop, LitServe and Roboflow's inference, in turns.

    python benchmarks/peers/environments.py litserve inference
    python benchmarks/serve.py [--seconds 60] [--clients 64] [--bundle yolox.edge] [--without-peers]

64 clients on loopback each send the next photograph as soon as they have an answer; every answer is held
against the SDK's own call. The bars: at least 0.9 of the rate of the SDK's batched loop, which also decodes
the same files and has both cores to itself; p99 within the deadline; beyond capacity nothing but 429; memory
flat. Once as it is started, with an engine a core, and once with one engine over all cores.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common import ASSETS, HERE, print_table, trained_recipe, write_results
from edgesmith.converters import convert
from edgesmith.sdk.models import Detector
from edgesmith.sdk.percentiles import percentiles
from load import Load, verified
from memory import memory_of
from peers.environments import interpreter

BATCH = 8
WAIT_MS = 2.0
DEADLINE_MS = 10_000
PICTURES = 64
ROOT = HERE.parent


def bundle_of(path: Path | None, folder: Path) -> Path:
    """The given bundle, or the trained detector with batches of 1 to 8 in float32."""
    if path is not None:
        return path
    recipe = trained_recipe(
        "yolox_nano",
        ASSETS,
        input={
            "size": [416, 416], "anchor": "top-left", "rounding": "floor", "color": "bgr", "scale": 1.0,
            "batch": {"min": 1, "opt": 4, "max": BATCH},
        },
        precision={"mode": "fp32"},
    )  # fmt: skip
    convert(recipe, folder / "yolox_nano.edge")
    return folder / "yolox_nano.edge"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], health: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server's process id, from its first sign of health on."""
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(health, timeout=2) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, OSError) as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[:3]} does not serve: {error}") from error
                time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def edgesmith(bundle: Path, queue: int, *more: str) -> Iterator[tuple[int, str, str]]:
    """``edgesmith serve``: its process, where it predicts, and from what."""
    port = free_port()
    line = [sys.executable, "-m", "edgesmith.sdk.cli", "serve", f"yolox={bundle}", "--port", str(port)]
    line += ["--wait-ms", str(WAIT_MS), "--queue", str(queue), "--backend", "cpu", "--access-log", "none"]
    line += ["--deadline-ms", str(DEADLINE_MS), "--watch-s", "0"]
    line += more
    with serving(line, f"http://127.0.0.1:{port}/v2/health/ready") as process:
        yield process, f"127.0.0.1:{port}/models/yolox/predict", "edgesmith"


@contextmanager
def litserve(bundle: Path) -> Iterator[tuple[int, str, str]]:
    """LitServe over the same bundle and package."""
    port = free_port()
    script = HERE / "peers" / "litserve_server.py"
    line = [str(interpreter("litserve")), str(script), str(bundle), str(port), str(BATCH), str(WAIT_MS)]
    paths = os.pathsep.join(str(ROOT / part) for part in ("sdk", "device_profiles"))
    with serving(line, f"http://127.0.0.1:{port}/health", {"PYTHONPATH": paths}) as process:
        yield process, f"127.0.0.1:{port}/predict", "litserve"


@contextmanager
def inference(bundle: Path) -> Iterator[tuple[int, str, str]]:
    """Roboflow's inference server over the same bundle and package."""
    port = free_port()
    line = [
        str(interpreter("inference")),
        str(HERE / "peers" / "inference_server.py"),
        str(bundle),
        str(port),
    ]
    paths = os.pathsep.join(str(ROOT / part) for part in ("sdk", "device_profiles"))
    with serving(line, f"http://127.0.0.1:{port}/healthz", {"PYTHONPATH": paths}) as process:
        yield process, f"127.0.0.1:{port}/infer/object_detection", "inference"


def pixels_of(body: bytes) -> Any:
    """A file's picture, BGR uint8 ``(H, W, 3)``."""
    return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)


def sdk_loop(detector: Detector, bodies: list[bytes], seconds: float) -> float:
    """Pictures a second of the SDK's own batched calls on the same files."""
    supply, count = itertools.cycle(range(len(bodies))), 0
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        part = [bodies[next(supply)] for _ in range(BATCH)]
        detector([pixels_of(body) for body in part])
        count += len(part)
    return count / (time.monotonic() - started)


def under_load(
    server: Callable[[], Any], bodies: list[bytes], wanted: list[Any], clients: int, seconds: float
) -> dict[str, Any]:
    """One server for so many seconds: rate, latencies, statuses; memory before, in the middle, at the end."""
    with server() as (process, address, kind):
        Load(address, bodies, clients, kind).run(min(3.0, seconds / 4))  # warm
        memory = [memory_of(process)]
        halves = []
        for _ in range(2):
            halves.append(Load(address, bodies, clients, kind).run(seconds / 2))
            memory.append(memory_of(process))
    ms = sorted(ms for half in halves for ms in half["ms"])
    statuses: dict[str, int] = {}
    for half in halves:
        for status, number in half["statuses"].items():
            statuses[status] = statuses.get(status, 0) + number
    answered = sum(half["statuses"].get("200", 0) for half in halves)
    return {
        "rate": answered / sum(half["seconds"] for half in halves),
        "latency_ms": percentiles(ms),
        "statuses": statuses,
        "wrong": sum(verified(half["answers"], wanted) for half in halves),
        "memory_bytes": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each contender, over all rounds")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args()
    files = sorted((ASSETS / "coco_val").glob("*.jpg"))[:PICTURES]
    bodies = [path.read_bytes() for path in files]
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of(options.bundle, Path(folder))
        detector = Detector.load(bundle, backend="cpu")
        wanted = [detector(pixels_of(body)).to_dict() for body in bodies]
        figures = measure(options, bundle, detector, bodies, wanted)
    figures["pictures"] = hashlib.sha256(b"".join(bodies)).hexdigest()
    path = write_results("serve", figures)
    show(figures)
    print(f"\n{path}")


def measure(
    options: argparse.Namespace, bundle: Path, detector: Detector, bodies: list[bytes], wanted: list[Any]
) -> dict[str, Any]:
    """All contenders, round by round, and edgesmith beyond its capacity."""
    seconds = options.seconds / options.rounds
    servers: dict[str, Callable[[], Any]] = {
        "edgesmith": lambda: edgesmith(bundle, 2 * options.clients),
        "edgesmith, one engine": lambda: edgesmith(bundle, 2 * options.clients, "--instances", "1"),
    }
    if not options.without_peers:
        servers["litserve"] = lambda: litserve(bundle)
        servers["inference"] = lambda: inference(bundle)
    rounds: dict[str, list[Any]] = {name: [] for name in ("sdk", *servers)}
    for number in range(options.rounds):
        order = ["sdk", *servers] if number % 2 == 0 else [*servers, "sdk"][::-1]
        for name in order:
            if name == "sdk":
                sdk_loop(detector, bodies, 1.0)
                rounds[name].append(sdk_loop(detector, bodies, seconds))
            else:
                rounds[name].append(under_load(servers[name], bodies, wanted, options.clients, seconds))
            print(f"round {number + 1}: {name} done", file=sys.stderr)
    crowd = under_load(lambda: edgesmith(bundle, BATCH), bodies, wanted, options.clients, min(seconds, 15.0))
    return {"clients": options.clients, "seconds": options.seconds, "rounds": rounds, "beyond": crowd}


def show(figures: dict[str, Any]) -> None:
    """The table, and the bars."""
    rounds = figures["rounds"]
    sdk = sum(rounds["sdk"]) / len(rounds["sdk"])
    rows: list[list[object]] = [["the SDK's loop", f"{sdk:.1f}", "1.00", "", "", "", ""]]
    for name in (name for name in rounds if name != "sdk"):
        rate = sum(r["rate"] for r in rounds[name]) / len(rounds[name])
        p50 = max(r["latency_ms"]["p50"] for r in rounds[name])
        p99 = max(r["latency_ms"]["p99"] for r in rounds[name])
        memory = max(max(r["memory_bytes"]) for r in rounds[name]) / 2**20
        wrong = sum(r["wrong"] for r in rounds[name])
        share = f"{rate / sdk:.2f}"
        rows.append([name, f"{rate:.1f}", share, f"{p50:.0f}", f"{p99:.0f}", f"{memory:.0f}", wrong])
    print_table(("", "images/s", "of the SDK", "p50 ms", "p99 ms", "MiB", "wrong answers"), rows)
    grown = [
        (r["memory_bytes"][-1] - r["memory_bytes"][1]) / 2**20 for r in rounds["edgesmith"]
    ]  # from the middle to the end
    print(f"\nmemory from the middle of a round to its end: {json.dumps([round(g, 1) for g in grown])} MiB")
    beyond = figures["beyond"]
    print(
        f"with a queue of {BATCH}: {beyond['statuses']}, {beyond['rate']:.1f} images/s, "
        f"p99 {beyond['latency_ms']['p99']:.0f} ms, {beyond['wrong']} wrong answers"
    )


if __name__ == "__main__":
    main()
