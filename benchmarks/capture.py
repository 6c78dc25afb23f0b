"""What the capture loop costs.

    python benchmarks/capture.py [--rounds 7] [--models NAME ...] [--assets DIR]

1. The loop over a clip, every frame, from the file to the results, against each of its stages alone on the
   same frames (decoding, preprocess, the graph, postprocess), interleaved round by round. Bar: at least 0.95
   of the slowest stage's rate.
2. The same clip played in real time with a model slower than the clip: how old a frame is when its answer
   is there, with the frame taken when it can be ready just in time, and taken at once.

One CPU thread for the graph everywhere. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from common import ASSETS, interleaved, print_table, trained_recipe, write_results
from edgesmith.converters import convert
from edgesmith.sdk import Detector, open_camera
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.pace import Pace
from edgesmith.sdk.percentiles import percentiles

MODELS = ("fastestdet", "nanodet_m", "yolox_nano")
BAR = 0.95


def overhead(bundle: Path, clip: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds a frame, of the loop and of each stage alone; its share of the slowest stage's rate."""
    with Detector.load(bundle, backend="cpu", threads=1) as detector:
        camera = open_camera(clip)
        frames = [frame.image for frame in camera.frames()]
        camera.close()
        batch, geometries = detector.prepare(frames[:1])
        outputs = detector.run_prepared(batch)

        def decode() -> None:
            source = open_camera(clip)
            assert sum(1 for _ in source.frames()) == len(frames)
            source.close()

        def preprocess() -> None:
            for frame in frames:
                detector.prepare([frame])

        def infer() -> None:
            for _ in frames:
                detector.run_prepared(batch)

        def postprocess() -> None:
            for _ in frames:
                detector.decode(outputs, geometries)

        def loop() -> None:
            with CaptureLoop(open_camera(clip), detector, policy="every") as running:
                assert sum(1 for _ in running) == len(frames)

        def one_by_one() -> None:
            source = open_camera(clip)
            for frame in source.frames():
                detector(frame.image)
            source.close()

        stages: dict[str, Callable[[], None]] = {
            "decode": decode,
            "preprocess": preprocess,
            "infer": infer,
            "postprocess": postprocess,
        }
        spent = interleaved({**stages, "loop": loop, "one_by_one": one_by_one}, rounds=rounds)
    # The slowest stage is one stage in all rounds, so that a disturbance does not choose it.
    slowest = max(stages, key=lambda name: statistics.median(spent[name]))
    shares = [alone / whole for alone, whole in zip(spent[slowest], spent["loop"], strict=True)]
    return {
        "frames": len(frames),
        "ms": {name: 1e3 * statistics.median(times) / len(frames) for name, times in spent.items()},
        "slowest": slowest,
        "share": statistics.median(shares),
        "shares": shares,
    }


def freshness(bundle: Path, clip: Path, *, paced: bool) -> dict[str, Any]:
    """Ages of the answers in ms when the clip plays in real time, looped, for ten seconds."""
    hold = Pace.hold_s
    if not paced:
        Pace.hold_s = lambda self: 0.0  # type: ignore[method-assign]
    try:
        ages: list[float] = []
        with Detector.load(bundle, backend="cpu", threads=1) as detector:
            camera = open_camera(clip, realtime=True, loop=True)
            with CaptureLoop(camera, detector, on_result=lambda result: ages.append(result.age_ms)) as loop:
                time.sleep(10.0)
            stats = loop.stats().cameras[0]
    finally:
        Pace.hold_s = hold  # type: ignore[method-assign]
    return {"age_ms": percentiles(ages[10:]), "fps": stats.fps, "dropped": stats.dropped + stats.lost}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    clip = options.assets / "clips" / "highway_cars.mp4"
    figures: dict[str, Any] = {
        "load_at_start": os.getloadavg()[0],
        "overhead": {},
        "freshness": {},
        "freshness_model": options.models[-1],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            bundle = Path(folder) / f"{name}.edge"
            convert(trained_recipe(name, options.assets, precision={"mode": "fp32"}), bundle)
            figures["overhead"][name] = overhead(bundle, clip, options.rounds)
        for name, paced in (("just in time", True), ("at once", False)):
            figures["freshness"][name] = freshness(bundle, clip, paced=paced)
    show(figures)
    print(f"wrote {write_results('capture', figures)}")


def show(figures: dict[str, Any]) -> None:
    """The figures as tables."""
    columns = ("model", "slowest stage", "alone ms", "loop ms", "share", "bar", "one by one ms")
    print_table(
        columns,
        [
            (
                name,
                f["slowest"],
                f["ms"][f["slowest"]],
                f["ms"]["loop"],
                f["share"],
                BAR,
                f["ms"]["one_by_one"],
            )
            for name, f in figures["overhead"].items()
        ],
    )
    print()
    ages = [
        (name, f["age_ms"]["p50"], f["age_ms"]["p99"], f["fps"]) for name, f in figures["freshness"].items()
    ]
    print_table(("frame taken", "age p50 ms", "age p99 ms", "frames/s"), ages)


if __name__ == "__main__":
    main()
