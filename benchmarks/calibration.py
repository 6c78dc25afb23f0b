"""What calibrating costs: all methods at once, against onnxruntime's calibrators and ModelOpt's entropy.

    python benchmarks/calibration.py [--models NAME ...] [--images 500] [--assets DIR]

One core, prepared tensors, the same images for all, in one run. Times are CPU time, which other work on the
machine changes least, as multiples of the bare float inference of the same images. Memory is that of a
process that calibrates 100 and 500 images. ModelOpt needs ``benchmarks/peers/environments.py modelopt``; what
is not run keeps its figures of an earlier run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from common import ASSETS, print_table, read_results, trained_recipe, write_results
from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images, tensors
from edgesmith.converters import convert
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk import Bundle
from edgesmith.sdk.preprocess import Preprocess
from peers.quantize import run_worker

RESNET50 = "resnet50"
SOURCES = {"mobilenet_v1_025": "imagenet_val", "yolox_nano": "coco_val", RESNET50: "imagenet_val"}
BARS = {"mobilenet_v1_025": 6.0, "yolox_nano": 4.0, RESNET50: 2.0}  # x bare inference
FASTER_THAN_PERCENTILE, FASTER_THAN_ENTROPY, MORE_MEMORY = 7.0, 5.0, 1.1
# The others are timed on a part of the images and scaled up, since Percentile keeps every tensor of each:
# with two parts the cost of an image is their difference, and what is fixed does not count against them.
PARTS = (10, 30)


@dataclass(frozen=True)
class Case:
    """A float graph, how pictures become its input, and where pictures are."""

    graph: bytes
    preprocess: Preprocess
    source: Path


class Reader:
    """onnxruntime's calibrators ask for one feed at a time, and None at the end."""

    def __init__(self, feeds: list[NDArray[np.float32]], entry: str) -> None:
        self._feeds: Iterator[NDArray[np.float32]] = iter(feeds)
        self._entry = entry

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        value = next(self._feeds, None)
        return None if value is None else {self._entry: value}


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of a call in this process."""
    started = time.process_time()
    call()
    return time.process_time() - started


def case_of(name: str, assets: Path, folder: Path) -> Case:
    """The converted model, or ResNet-50 with seeded weights."""
    source = assets / SOURCES[name]
    if name == RESNET50:
        preprocess = Preprocess(
            size=(224, 224), fit="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        return Case(resnet50(folder / "resnet50.onnx"), preprocess, source)
    path = folder / f"{name}.edge"
    convert(trained_recipe(name, assets), path)
    bundle = Bundle.open(path)
    member = bundle.manifest.variants["float"].member
    return Case(bundle.read(member), bundle.manifest.preprocess, source)


def resnet50(path: Path) -> bytes:
    """torchvision's network; its time does not depend on the weights."""
    import torch
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.resnet50(weights=None).eval()
    torch.onnx.export(
        module, (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, opset_version=20,
        input_names=["images"],
    )  # fmt: skip
    return bytes(onnx.shape_inference.infer_shapes(onnx.load(path)).SerializeToString())


def onnxruntime_seconds(graph: bytes, feeds: list[NDArray[np.float32]], method: str, folder: Path) -> float:
    """onnxruntime's calibrator over the feeds."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    path = folder / "float.onnx"
    path.write_bytes(graph)
    entry = onnx.load_from_string(graph).graph.input[0].name

    def calibrate() -> None:
        calibrator = create_calibrator(
            path,
            ["Conv", "Gemm"],
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, method),
        )
        calibrator.collect_data(Reader(feeds, entry))
        calibrator.compute_data()

    with contextlib.redirect_stdout(sys.stderr):  # it prints as it goes
        return cpu_seconds(calibrate)


def modelopt_seconds(graph: bytes, feeds: list[NDArray[np.float32]], folder: Path) -> float | str:
    """ModelOpt's quantization by entropy over the feeds, or why there is no figure."""
    (folder / "float.onnx").write_bytes(graph)
    np.save(folder / "images.npy", np.concatenate(feeds))
    try:
        told = run_worker(
            "modelopt_entropy", folder / "float.onnx", folder / "images.npy", folder / "quantized.onnx"
        )
    except FileNotFoundError as error:
        return str(error)
    seconds = told.get("seconds")
    return seconds if isinstance(seconds, float) else str(told["failure"])


RESIDENT = """
import sys
from pathlib import Path
import msgspec
from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images
from edgesmith.sdk.board.memory import peak_resident_bytes
from edgesmith.sdk.preprocess import Preprocess
graph, preprocess, source, count = sys.argv[1:]
images = Images.open(source)
images = images.pick([n % len(images) for n in range(int(count))])
collect(Path(graph).read_bytes(), images, msgspec.json.decode(preprocess, type=Preprocess)).table()
print(peak_resident_bytes())
"""


def resident(case: Case, folder: Path, count: int) -> int:
    """Peak resident bytes of a process that calibrates ``count`` images."""
    path = folder / "resident.onnx"
    path.write_bytes(case.graph)
    preprocess = msgspec.json.encode(case.preprocess).decode()
    command = [sys.executable, "-c", RESIDENT, str(path), preprocess, str(case.source), str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def scaled_up(seconds: Callable[[int], float | str], count: int) -> float | str:
    """Seconds for ``count`` images from those for the two parts, or why there are none."""
    few, more = (seconds(part) for part in PARTS)
    if isinstance(few, str) or isinstance(more, str):
        return few if isinstance(few, str) else str(more)
    return (more - few) / (PARTS[1] - PARTS[0]) * count


def measured(name: str, assets: Path, count: int, folder: Path) -> dict[str, Any]:
    """One model's figures; bare inference is timed before, between and after."""
    case = case_of(name, assets, folder)
    whole = Images.open(case.source)
    images = whole.pick([n % len(whole) for n in range(count)])
    feeds = list(tensors(images, case.preprocess))
    run = graph_runner(onnx.load_from_string(case.graph))
    run(feeds[0])
    bare_times, our_times = [], []

    def bare() -> None:
        for feed in feeds:
            run(feed)

    reading = cpu_seconds(lambda: list(map(len, tensors(images, case.preprocess))))
    for _ in range(2):
        bare_times.append(cpu_seconds(bare))
        our_times.append(cpu_seconds(lambda: collect(case.graph, images, case.preprocess).table()))

    def calibrator(method: str) -> Callable[[int], float | str]:
        return lambda part: onnxruntime_seconds(case.graph, feeds[:part], method, folder)

    theirs = {f"onnxruntime_{m}": scaled_up(calibrator(m), count) for m in ("MinMax", "Percentile")}
    theirs["modelopt_entropy"] = scaled_up(
        lambda part: modelopt_seconds(case.graph, feeds[:part], folder), count
    )
    bare_times.append(cpu_seconds(bare))
    one, ours = statistics.median(bare_times), min(our_times)
    return {
        "images": count,
        "float_cpu_seconds": one,
        "ours_all_methods": (ours - reading) / one,
        "ours_with_reading_images": ours / one,
        "resident_100": resident(case, folder, 100),
        "resident_500": resident(case, folder, 500),
        **{key: found / one if isinstance(found, float) else found for key, found in theirs.items()},
    }


def row_of(name: str, f: dict[str, Any]) -> tuple[object, ...]:
    """A row of the table, with the bars it keeps."""
    ours, percentile, entropy = f["ours_all_methods"], f["onnxruntime_Percentile"], f["modelopt_entropy"]
    kept = [ours <= BARS[name], f["resident_500"] <= MORE_MEMORY * f["resident_100"]]
    kept.append(percentile >= FASTER_THAN_PERCENTILE * ours)
    faster: object = "not run"
    if isinstance(entropy, float):
        faster = entropy / ours
        kept.append(entropy >= FASTER_THAN_ENTROPY * ours)
    memory = f"{f['resident_100'] / 2**20:.0f} / {f['resident_500'] / 2**20:.0f}"
    told = "yes" if all(kept) else "NO"
    return (
        name, ours, f["ours_with_reading_images"], f["onnxruntime_MinMax"], percentile, percentile / ours,
        faster, memory, told,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=tuple(SOURCES), choices=SOURCES)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    figures = read_results("calibration")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measured(name, options.assets, options.images, Path(folder))
        print(f"{name}: done", file=sys.stderr)
        write_results("calibration", figures)
    columns = (
        "model", "ours, x float", "with reading", "ort min-max", "ort percentile", "percentile / ours",
        "modelopt entropy / ours", "MiB at 100 / 500", "bars kept",
    )  # fmt: skip
    print_table(columns, [row_of(name, figures[name]) for name in options.models])


if __name__ == "__main__":
    main()
