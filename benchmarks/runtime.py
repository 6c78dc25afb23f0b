"""What the runtime itself costs.

    python benchmarks/runtime.py [--assets DIR]

1. `Detector` over a clip against the bare session on ready tensors plus OpenCV's own letterbox and
   blob of the same frames (YOLOX-nano, one thread), interleaved frame by frame.
2. Host decode and suppression of 8,400 x 80 scores of which 200 boxes pass the threshold.
3. Import time of `edgesmith.sdk`, and resident memory of a process that detects.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from common import ASSETS, interleaved, print_table, trained_recipe, write_results
from edgesmith.converters import convert
from edgesmith.sdk import Bundle, Detector, open_camera
from edgesmith.sdk.decode.canonical import detections
from edgesmith.sdk.manifest import Nms
from edgesmith.sdk.preprocess import Geometry

ROOT = Path(__file__).resolve().parent.parent


def loop_cost(bundle: Path, clip: Path) -> dict[str, Any]:
    """Whole detector against the bare session and OpenCV's own letterbox and blob, frame by frame."""
    camera = open_camera(clip)
    frames = [frame.image for frame in camera.frames()]
    camera.close()
    cv2.setNumThreads(1)
    detector = Detector.load(bundle, backend="cpu", threads=1)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    opened = Bundle.open(bundle)
    graph = opened.read(opened.manifest.variants["float"].member)
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    tensors = [_letterboxed(frame) for frame in frames]
    names = ("detector", "session", "opencv")
    spent: dict[str, list[float]] = {name: [] for name in names}
    for warm in range(2):
        for number, (frame, tensor) in enumerate(zip(frames, tensors, strict=True)):
            calls: dict[str, Callable[[], object]] = {
                "detector": partial(detector, frame),
                "session": partial(session.run, outputs, {"images": tensor}),
                "opencv": partial(_letterboxed, frame),
            }
            for name in names if number % 2 else reversed(names):
                started = time.perf_counter()
                calls[name]()
                if warm:
                    spent[name].append(time.perf_counter() - started)
    totals = {name: sum(times) for name, times in spent.items()}
    return {
        "frames": len(frames),
        "ms": {name: 1e3 * statistics.median(times) for name, times in spent.items()},
        "ratio": totals["detector"] / (totals["session"] + totals["opencv"]),
        "ratio_to_session_alone": totals["detector"] / totals["session"],
        "timings_ms": {name: ns / 1e6 for name, ns in detector.timings.items()},
    }


def _letterboxed(frame: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    height, width = frame.shape[:2]
    ratio = min(416 / height, 416 / width)
    rows, columns = int(height * ratio), int(width * ratio)
    small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_LINEAR)
    border = (114, 114, 114)
    square = cv2.copyMakeBorder(small, 0, 416 - rows, 0, 416 - columns, cv2.BORDER_CONSTANT, value=border)
    return cv2.dnn.blobFromImage(square)


def decode_cost() -> dict[str, Any]:
    """Milliseconds of decode and suppression on the host."""
    rng = np.random.default_rng(0)
    scores = (rng.random((1, 8400, 80)) * 0.2).astype(np.float32)
    hot = rng.choice(8400, 200, replace=False)
    scores[0, hot, rng.integers(0, 80, 200)] = (0.26 + 0.7 * rng.random(200)).astype(np.float32)
    corner, size = rng.random((8400, 2)) * 560, rng.random((8400, 2)) * 75 + 5
    boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)[None]
    outputs = {"boxes": boxes, "scores": scores}
    nms, geometry = Nms(), Geometry(640, 640, 640, 640)
    passing = int((scores[0].max(1) > nms.score).sum())
    times = interleaved({"decode": lambda: detections(outputs, 0, geometry, nms, ())}, rounds=300)["decode"]
    return {"boxes_over_threshold": passing, "ms": 1e3 * statistics.median(times)}


def process_cost(bundle: Path, image: Path) -> dict[str, Any]:
    """Import time and resident memory, each in a process of its own (median of five)."""
    timed = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    face = [float(_python(timed.format("import edgesmith.sdk"))) for _ in range(5)]
    # The face imports its names when they are first used: with them it is the whole runtime.
    everything = timed.format("from edgesmith.sdk import Detector, open_camera")
    whole = [float(_python(everything)) for _ in range(5)]
    resident = (
        "import sys; from edgesmith.sdk import Detector, read_image\n"
        "from edgesmith.sdk.board.memory import resident_bytes\n"
        "detector = Detector.load(sys.argv[1], backend='cpu', threads=1); frame = read_image(sys.argv[2])\n"
        "[detector(frame) for _ in range(20)]; print(resident_bytes())"
    )
    held = [int(_python(resident, str(bundle), str(image))) for _ in range(3)]
    return {
        "import_seconds": statistics.median(face),
        "import_with_models_seconds": statistics.median(whole),
        "resident_bytes": max(held),
    }


def _python(script: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--assets", type=Path, default=ASSETS, help="folder with the trained models and clips"
    )
    assets = parser.parse_args().assets
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "yolox_nano.edge"
        convert(trained_recipe("yolox_nano", assets), out=bundle)
        loop = loop_cost(bundle, assets / "clips" / "highway_cars.mp4")
        image = next(iter(sorted((assets / "coco_val").glob("*.jpg"))))
        process = process_cost(bundle, image)
    decode = decode_cost()
    rows = [
        ("Detector, ms a frame", loop["ms"]["detector"], ""),
        ("bare session, ms a frame", loop["ms"]["session"], ""),
        ("OpenCV letterbox and blob, ms a frame", loop["ms"]["opencv"], ""),
        ("Detector / (session + OpenCV)", loop["ratio"], "at most 1.10"),
        ("Detector / session alone", loop["ratio_to_session_alone"], ""),
        (f"decode + NMS, {decode['boxes_over_threshold']} boxes, ms", decode["ms"], "under 2"),
        ("import edgesmith.sdk, s", process["import_seconds"], "under 0.3"),
        ("import Detector and open_camera, s", process["import_with_models_seconds"], "under 0.3"),
        ("resident memory, MiB", process["resident_bytes"] / 2**20, "under 250"),
    ]
    print_table(("what", "figure", "bar"), rows)
    path = write_results("runtime", {"loop": loop, "decode": decode, "process": process})
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
