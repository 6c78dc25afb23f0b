"""How old a camera's picture is when a slow reader gets it.

    python benchmarks/capture_freshness.py [--seconds 60] [--hz 5]

A real RTSP server (GStreamer's, 640x480 H.264 at 30 frames/s) writes the clock into every picture. Three
readers watch it at the same time, each a process of its own that asks for a picture five times a second:

1. `open_camera`;
2. OpenCV's `VideoCapture`, read as its tutorials do;
3. the same with a thread that reads as fast as it can and keeps the newest, the usual cure.

The age is that of the picture in the reader's hands, from its pixels; the first two seconds are left out
(connecting). Bar: 99 % of ours under 67 ms (two frames), and no growth.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras import open_camera
from edgesmith.sdk.cameras.testpattern import read_number

SERVER = Path(__file__).resolve().parent.parent / "tests" / "sdk" / "cameras" / "rtsp_server.py"
WARM_S = 2.0
BAR_MS = 67.0
TICKS = 10  # of the clock in the picture, in a millisecond

Pixels = NDArray[np.uint8]


def ours(url: str) -> Iterator[Pixels]:
    camera = open_camera(url)
    for frame in camera.frames():
        yield frame.image


def opencv_plain(url: str) -> Iterator[Pixels]:
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG)
    while True:
        good, image = capture.read()
        if not good or image is None:
            raise SystemExit("OpenCV's VideoCapture gives no picture any more")
        yield np.asarray(image, np.uint8)


def opencv_drained(url: str) -> Iterator[Pixels]:
    newest: list[Pixels] = []
    came = threading.Condition()

    def drain() -> None:
        for image in opencv_plain(url):
            with came:
                newest[:] = [image]
                came.notify()

    threading.Thread(target=drain, daemon=True).start()
    while True:
        with came:
            while not newest:
                came.wait()
            image = newest.pop()
        yield image


READERS = {"edgesmith": ours, "opencv": opencv_plain, "opencv, drain thread": opencv_drained}


def watch(reader: str, url: str, seconds: float, hz: float) -> None:
    """One reader: prints a JSON list of (seconds since the first picture, age in ms, number)."""
    rows: list[tuple[float, float, int]] = []
    started = None
    for image in READERS[reader](url):
        drawn, number = read_number(image, line=1), read_number(image)
        now = time.monotonic_ns()
        started = started or now
        if drawn is not None and number is not None:
            ticks = now // (1_000_000 // TICKS)
            rows.append(((now - started) / 1e9, (ticks - drawn) % 2**32 / TICKS, number))
        if (now - started) / 1e9 >= seconds:
            break
        time.sleep(1 / hz)
    print(json.dumps(rows), flush=True)
    os._exit(0)  # OpenCV ends a process badly in whose threads it still reads


def figures(rows: list[tuple[float, float, int]]) -> dict[str, Any]:
    """Percentiles of the age, and how fast it grows."""
    times, ages, numbers = (np.array(column) for column in zip(*rows, strict=True))
    steady = times >= WARM_S
    slope = np.polyfit(times[steady], ages[steady], 1)[0]
    p50, p90, p99 = np.percentile(ages[steady], [50, 90, 99])
    return {
        "pictures": int(steady.sum()),
        "p50_ms": round(float(p50), 1),
        "p90_ms": round(float(p90), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(float(ages[steady].max()), 1),
        "last_ms": round(float(ages[-1]), 1),
        "growth_ms_per_s": round(float(slope), 3),
        "in_order": bool((np.diff(numbers) > 0).all()),
    }


def serve() -> tuple[str, subprocess.Popen[str]]:
    """The address of a stream, and the process of its server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, str(SERVER), "--port", port], stdout=subprocess.PIPE, text=True
    )
    if server.stdout is None or server.stdout.readline() != "READY\n":
        server.kill()
        raise SystemExit("the RTSP server did not start: is gst-rtsp-server there?")
    return f"rtsp://127.0.0.1:{port}/test", server


def answer(name: str, process: subprocess.Popen[str]) -> list[tuple[float, float, int]]:
    """A reader's rows; ends the benchmark where the reader did not come to its end."""
    said = process.communicate()[0]
    if process.returncode != 0:
        raise SystemExit(f"the reader {name!r} ended with status {process.returncode}")
    rows: list[tuple[float, float, int]] = json.loads(said)
    return rows


def main() -> None:
    """Run the readers side by side and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hz", type=float, default=5.0)
    parser.add_argument("--watch", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch(options.watch, options.url, options.seconds, options.hz)
        return
    from common import print_table, write_results  # not in the readers: it loads the converters

    load = round(os.getloadavg()[0], 2)
    if load > 1:
        print(f"the machine is busy (load {load:g}): the ages will tell more of it than of the readers")
    # A server for each reader: one that does not read holds up all that share a stream with it.
    servers: list[subprocess.Popen[str]] = []
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in READERS:
            url, server = serve()
            servers.append(server)
            command = [sys.executable, __file__, "--url", url, "--hz", str(options.hz)]
            command += ["--seconds", str(options.seconds + WARM_S), "--watch", name]
            running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        found = {name: figures(answer(name, process)) for name, process in running.items()}
    finally:
        for process in (*running.values(), *servers):
            process.kill()
            process.wait()
    columns = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "last_ms", "growth_ms_per_s")
    print_table(("reader", *columns), [(name, *(f[c] for c in columns)) for name, f in found.items()])
    passed = found["edgesmith"]["p99_ms"] < BAR_MS
    print(f"\np99 of edgesmith under {BAR_MS:g} ms: {'yes' if passed else 'NO'}")
    path = write_results(
        "capture_freshness",
        {
            "seconds": options.seconds,
            "hz": options.hz,
            "stream": "640x480 H.264 30/s",
            "load_before": load,
            "readers": found,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
