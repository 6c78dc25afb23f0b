"""What calibrating costs: all methods at once, against onnxruntime's calibrators.

    python benchmarks/calibration.py [--images 500] [--assets DIR]

One core, prepared tensors, the same images for all, in one run. Times are given as multiples of the bare
float inference of the same images. Memory is that of a process that calibrates 100 and 500 images.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from common import ASSETS, print_table, trained_recipe, write_results
from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images, tensors
from edgesmith.converters import convert
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk import Bundle

MODELS = ("mobilenet_v1_025", "yolox_nano")
SOURCES = {"mobilenet_v1_025": ("imagenet_val", "imagenet_calib"), "yolox_nano": ("coco_val", "coco_calib")}


def many(assets: Path, name: str, count: int) -> Images:
    """``count`` images, from the model's folders again and again where there are fewer."""
    parts = [Images.open(assets / folder) for folder in SOURCES[name]]
    whole = parts[0]
    numbers = [n % len(whole) for n in range(count)]
    return whole.pick(numbers)


class Reader:
    """onnxruntime's calibrators ask for one feed at a time, and None at the end."""

    def __init__(self, feeds: list[NDArray[np.float32]], entry: str) -> None:
        self._feeds: Iterator[NDArray[np.float32]] = iter(feeds)
        self._entry = entry

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        value = next(self._feeds, None)
        return None if value is None else {self._entry: value}


def theirs(graph: bytes, feeds: list[NDArray[np.float32]], method: str, folder: Path) -> float:
    """Seconds of onnxruntime's calibrator over the feeds."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    path = folder / "float.onnx"
    path.write_bytes(graph)
    started = time.perf_counter()
    calibrator = create_calibrator(
        path,
        ["Conv", "Gemm"],
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=getattr(CalibrationMethod, method),
    )
    calibrator.collect_data(Reader(feeds, onnx.load_from_string(graph).graph.input[0].name))
    calibrator.compute_data()
    return time.perf_counter() - started


def ours(graph: bytes, images: Images, bundle: Bundle) -> tuple[float, float]:
    """Seconds of our pass with every method's scales, and of reading and preparing the images within it."""
    preprocess = bundle.manifest.preprocess
    started = time.perf_counter()
    for _ in tensors(images, preprocess):
        continue
    reading = time.perf_counter() - started
    started = time.perf_counter()
    collect(graph, images, preprocess).table()
    return time.perf_counter() - started, reading


RESIDENT = """
import sys
from pathlib import Path
from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images
from edgesmith.sdk import Bundle
from edgesmith.sdk.board.memory import peak_resident_bytes
bundle = Bundle.open(sys.argv[1])
images = Images.open(sys.argv[2])
images = images.pick([n % len(images) for n in range(int(sys.argv[3]))])
graph = bundle.read(bundle.manifest.variants["float"].member)
collect(graph, images, bundle.manifest.preprocess).table()
print(peak_resident_bytes())
"""


def resident(bundle: Path, folder: Path, count: int) -> int:
    """Peak resident bytes of a process that calibrates ``count`` images."""
    command = [sys.executable, "-c", RESIDENT, str(bundle), str(folder), str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured(name: str, assets: Path, count: int, folder: Path) -> dict[str, Any]:
    """One model's figures."""
    path = folder / f"{name}.edge"
    convert(trained_recipe(name, assets), path)
    bundle = Bundle.open(path)
    graph = bundle.read(bundle.manifest.variants["float"].member)
    images = many(assets, name, count)
    feeds = list(tensors(images, bundle.manifest.preprocess))
    run = graph_runner(onnx.load_from_string(graph))
    run(feeds[0])
    started = time.perf_counter()
    for feed in feeds:
        run(feed)
    bare = time.perf_counter() - started
    spent, reading = ours(graph, images, bundle)
    figures: dict[str, Any] = {
        "images": count,
        "float_seconds": bare,
        "ours_all_methods": (spent - reading) / bare,
        "ours_with_reading_images": spent / bare,
        "resident_100": resident(path, assets / SOURCES[name][0], 100),
        "resident_500": resident(path, assets / SOURCES[name][0], 500),
    }
    # Their percentile calibrator keeps every tensor of every image: a part of the images, scaled up.
    part = feeds[: min(count, 60)]
    for method in ("MinMax", "Percentile"):
        figures[f"onnxruntime_{method}"] = theirs(graph, part, method, folder) / bare * count / len(part)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: measured(name, options.assets, options.images, Path(folder)) for name in MODELS}
    rows = [
        (
            name,
            f["ours_all_methods"],
            f["ours_with_reading_images"],
            f["onnxruntime_MinMax"],
            f["onnxruntime_Percentile"],
            f["onnxruntime_Percentile"] / f["ours_all_methods"],
            f"{f['resident_100'] / 2**20:.0f} / {f['resident_500'] / 2**20:.0f}",
        )
        for name, f in figures.items()
    ]
    columns = (
        "model",
        "ours, x float",
        "with reading",
        "ort min-max",
        "ort percentile",
        "ratio",
        "MiB at 100 / 500",
    )
    print_table(columns, rows)
    print(f"wrote {write_results('calibration', figures).name}")


if __name__ == "__main__":
    main()
