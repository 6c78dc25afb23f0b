"""The whole way once: draw scenes, convert the demo's detector, verify it, measure it, run it.

    python samples/demo/demo.py --out demo_output

Leaves the bundle, an annotated video, a contact sheet of it and the conversion's report in the
output folder. Every step is the command that a user would type.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk import Bundle, open_camera

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import scenes  # noqa: E402 - lies beside this file

CALIBRATION, VALIDATION, CLIP_SECONDS = 64, 200, 12
SEED = 4711  # of the validation scenes: neither the training nor the tuning of the scenes has seen them
SHEET = (2, 3)  # rows and columns of the contact sheet


def draw_data(out: Path) -> Path:
    """Calibration and validation pictures beside the recipe, the clip in the output folder."""
    data = HERE / "data"
    for folder, count, seed in (
        (data / "calibration", CALIBRATION, 7),
        (data / "validation", VALIDATION, SEED),
    ):
        if not (folder / "instances.json").is_file():
            scenes.write_dataset(folder, count, seed)
    clip = out / "clip.mp4"
    scenes.write_clip(clip, CLIP_SECONDS, 11, 25)
    print(f"drew {CALIBRATION} + {VALIDATION} pictures and a clip of {CLIP_SECONDS} s")
    return clip


def edgesmith(*args: object) -> str:
    """Run one command of the command line, shown as it would be typed; its standard output."""
    words = [str(arg) for arg in args]
    print("\n$ edgesmith " + " ".join(_short(word) for word in words), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "edgesmith.sdk.cli", *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        sys.exit(f"edgesmith {words[0]} ended with status {done.returncode}")
    return done.stdout


def _short(word: str) -> str:
    path = Path(word)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else word


def contact_sheet(video: Path, path: Path) -> None:
    """Six frames of the annotated video, evenly spaced, as one picture."""
    rows, columns = SHEET
    camera = open_camera(video)
    frames = [frame.image for frame in camera.frames()]
    camera.close()
    picks = np.linspace(0.06, 0.94, rows * columns) * (len(frames) - 1)
    tiles: list[NDArray[np.uint8]] = [frames[round(at)] for at in picks]
    lines = [np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)]
    sheet = cv2.resize(np.vstack(lines), None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    path.write_bytes(cv2.imencode(path.suffix, sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    clip = draw_data(out)
    bundle, video = out / "demo.edge", out / "annotated.mp4"
    validation = HERE / "data" / "validation"
    print(edgesmith("convert", HERE / "recipe.toml", "-o", bundle).rstrip())
    print(edgesmith("verify", bundle).rstrip())
    accuracy = json.loads(edgesmith("eval", bundle, "--data", validation, "--json"))
    values = accuracy["values"]
    print(f"mAP {values['mAP']:.2f} %, mAP@.5 {values['mAP50']:.2f} % on {accuracy['images']} pictures")
    command = ("run", bundle, "--source", clip, "--save", video, "--jsonl", out / "detections.jsonl")
    # In a video a box too many is worse than one too few: stricter thresholds than the evaluation's.
    run = json.loads(edgesmith(*command, "--score", 0.4, "--iou", 0.5, "--json"))
    stages = ", ".join(f"{name} {times['p50']:.1f}" for name, times in run["stages_ms"].items())
    print(f"{run['frames']} frames at {run['fps']:.1f} frames/s; ms a frame: {stages}")
    contact_sheet(video, out / "contact_sheet.jpg")
    (out / "report.html").write_bytes(Bundle.open(bundle).read("report.html"))
    _tell(out, bundle, values, time.monotonic() - started)


def _tell(out: Path, bundle: Path, values: dict[str, float], seconds: float) -> None:
    folder, edge = _short(str(out)), _short(str(bundle))
    made = (
        ("demo.edge", f"the bundle, {bundle.stat().st_size / 2**20:.1f} MiB"),
        ("annotated.mp4", "the clip with what was found"),
        ("contact_sheet.jpg", "six frames of it"),
        ("detections.jsonl", "a line of JSON a frame"),
        ("report.html", "what was converted, and the proof"),
    )
    print(f"\ndone in {seconds:.0f} s: mAP@.5 {values['mAP50']:.1f} %. In {folder}/:")
    for name, what in made:
        print(f"  {name:18} {what}")
    steps = (
        (f"edgesmith inspect {edge}", "what the bundle holds"),
        (f"edgesmith bench {edge}", "how fast it is here"),
        (f"edgesmith run {edge} --source 0", "on your camera"),
        ("samples/demo/recipe.toml", "the recipe to copy for your own model"),
    )
    width = max(len(step) for step, _ in steps)
    print("next (edgesmith is in .venv/bin):")
    for step, what in steps:
        print(f"  {step:{width}}  {what}")


if __name__ == "__main__":
    main()
