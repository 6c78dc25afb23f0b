"""The capture loop beside the loops that others use, with one model on one clip.

    python benchmarks/peers/environments.py ultralytics inference     # once
    python benchmarks/capture_peers.py [--rounds 3] [--seconds 20]

yolo11n with seeded weights at 320x320, exported by Ultralytics. Ultralytics runs it with
`predict(stream=True)`; Roboflow's `InferencePipeline` around a function of ours with a bare onnxruntime
session; edgesmith converts the same network with the decode of `peers/yolo11_head.py`. One thread for
onnxruntime, for OpenCV and for torch everywhere. Twice, one tool after the other, round by round:

1. every frame of the clip from its file: frames a second, processor time a frame, peak memory;
2. the same clip from a real RTSP server at 30 frames/s: how old the picture is when its answer is in the
   caller's hands (from the clock in its pixels), and answers a second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common import ASSETS, print_table, write_results
from edgesmith.converters import Recipe, convert
from edgesmith.sdk.cameras.testpattern import draw_number
from edgesmith.sdk.percentiles import percentiles

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
SERVER = HERE.parent / "tests" / "sdk" / "cameras" / "rtsp_server.py"
SIZE = 320
TOOLS = ("edgesmith", "ultralytics", "inference")


def interpreter(tool: str) -> Path:
    """The Python of a tool's environment."""
    if tool == "edgesmith":
        return Path(sys.executable)
    python = PEERS / ".venvs" / tool / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"no environment {tool}: run python benchmarks/peers/environments.py {tool}")
    return python


def models(clip: Path, folder: Path) -> dict[str, Path]:
    """What each tool loads; made where it is not there yet."""
    bundle, onnx = folder / "yolo11n.edge", folder / "yolo11n.onnx"
    loaded = {"edgesmith": bundle, "ultralytics": onnx, "inference": onnx}
    if bundle.exists():
        return loaded
    folder.mkdir(parents=True, exist_ok=True)
    script = (interpreter("ultralytics"), PEERS / "yolo11.py")
    command = [*map(str, (*script, clip, ASSETS / "coco_calib", folder, SIZE))]
    subprocess.run(command, check=True, capture_output=True)
    recipe = {
        "task": "detect",
        "model": {
            "program": str(folder / "yolo11n.pt2"),
            "python_path": [str(PEERS)],
            "head": "yolo11_head:decode",
        },
        "input": {"size": [SIZE, SIZE]},
        "nms": {"score": 0.25, "iou": 0.65},
        "data": {"calibration": str(folder / "frames")},
        "precision": {"mode": "fp32"},
    }
    convert(Recipe.from_dict(recipe, base=ASSETS), bundle)
    return loaded


@contextmanager
def server(clip: Path) -> Iterator[str]:
    """The address of the clip as a live stream."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, str(SERVER), "--port", port, "--clip", str(clip)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or process.stdout.readline() != "READY\n":
            raise SystemExit("the RTSP server did not start: is gst-rtsp-server there?")
        yield f"rtsp://127.0.0.1:{port}/test"
    finally:
        process.kill()
        process.wait()


def run(tool: str, model: Path, source: str, seconds: float, folder: Path) -> dict[str, Any]:
    """One tool for so many seconds."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder)}
    offline |= {"TELEMETRY_OPT_OUT": "True", "METRICS_ENABLED": "False", "DISABLE_VERSION_CHECK": "True"}
    done = subprocess.run(
        [interpreter(tool), PEERS / "loop_worker.py", tool, model, source, str(seconds)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **one, **offline},
        timeout=120 + 4 * seconds,
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise SystemExit(f"{tool} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    ages = [age for age in (age_ms(*clock) for clock in said.pop("clocks")) if age is not None]
    return {
        "fps": said["frames"] / said["seconds"],
        "cpu_ms": 1e3 * said["cpu_s"] / said["frames"],
        "peak_bytes": said["peak_bytes"],
        "found_a_frame": said["found"] / said["frames"],
        "age_ms": percentiles(ages),
        "ages_read": len(ages),
    }


def age_ms(code: int, seen_ns: int) -> float | None:
    """The age of a picture from the blocks of its clock; None where they were not read well."""
    number = code >> 8
    line = np.zeros((48, 40), np.uint8)
    draw_number(line, number)
    if int("".join("1" if value else "0" for value in line[0]), 2) != code:
        return None
    return ((seen_ns // 100_000 - number) % 2**32) / 10


def summed(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over the rounds."""
    out: dict[str, Any] = {
        key: statistics.median(one[key] for one in rounds)
        for key in ("fps", "cpu_ms", "peak_bytes", "found_a_frame", "ages_read")
    }
    out["age_ms"] = {p: statistics.median(one["age_ms"][p] for one in rounds) for p in ("p50", "p90", "p99")}
    out["rounds"] = [one["fps"] for one in rounds]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--models", type=Path, default=PEERS / ".work" / "loops", help="kept there")
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    options = parser.parse_args()
    clip = ASSETS / "clips" / "highway_cars.mp4"
    load = round(os.getloadavg()[0], 2)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        kind: {tool: [] for tool in options.tools} for kind in ("file", "stream")
    }
    folder = options.models.resolve()
    loaded = models(clip, folder)
    for number in range(options.rounds):
        for tool in options.tools if number % 2 == 0 else options.tools[::-1]:
            runs["file"][tool].append(run(tool, loaded[tool], str(clip), options.seconds, folder))
            with server(clip) as url:
                runs["stream"][tool].append(run(tool, loaded[tool], url, options.seconds, folder))
    figures = {kind: {tool: summed(each) for tool, each in by.items()} for kind, by in runs.items()}
    show(figures)
    out = {"seconds": options.seconds, "model": f"yolo11n, seeded, {SIZE}x{SIZE}", "load_before": load}
    print(f"wrote {write_results('capture_peers', {**out, **figures})}")


def show(figures: dict[str, Any]) -> None:
    """The figures as two tables."""
    columns = ("tool", "frames/s", "cpu ms", "peak MB", "found", "age p50 ms", "age p90 ms", "age p99 ms")
    for kind, by in figures.items():
        rows = [
            (tool, f["fps"], f["cpu_ms"], f["peak_bytes"] / 1e6, f["found_a_frame"], *f["age_ms"].values())
            for tool, f in by.items()
        ]
        print(f"\n{kind}")
        print_table(columns, rows)


if __name__ == "__main__":
    main()
