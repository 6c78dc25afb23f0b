"""What INT8 costs each trained model, and what finding it costs.

    python benchmarks/accuracy.py [--models NAME ...] [--modes auto int8] [--assets DIR]

Each model is converted with its recipe and default precision settings; float and chosen graph are measured
on the same images, paired, with a 95 % bootstrap interval over images. The process is pinned to one core,
and the time of calibration, repairs, search and verdict is given in float passes over the evaluation images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2

from common import ASSETS, print_table, trained_recipe, write_results
from edgesmith.calibration.images import Images, tensors
from edgesmith.converters import convert
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk import Bundle

MODELS = (
    "yolox_nano", "nanodet_m", "fastestdet", "mobilenet_v1_025", "efficientnet_lite0", "resnet20_cifar",
    "resnet56_cifar",
)  # fmt: skip
STAGES = ("calibrate", "search the precision", "measure on the verdict images")


def float_pass_seconds(bundle: Bundle, images: Images) -> float:
    """Bare float inference of all evaluation images, prepared beforehand; the lesser of two passes."""
    import onnx

    run = graph_runner(onnx.load_from_string(bundle.read(bundle.manifest.variants["float"].member)))
    preprocess = bundle.manifest.preprocess
    sample = list(tensors(images.sample(100, 0), preprocess))
    run(sample[0])
    times = []
    for _ in range(2):
        started = time.perf_counter()
        for tensor in sample:
            run(tensor)
        times.append(time.perf_counter() - started)
    return min(times) / len(sample) * len(images)


def measured(name: str, mode: str, assets: Path, folder: Path) -> dict[str, Any]:
    """One model in one mode."""
    recipe = trained_recipe(name, assets, evaluation=True, precision={"mode": mode})
    path = folder / f"{name}-{mode}.edge"
    report = convert(recipe, path)
    bundle = Bundle.open(path)
    stages = json.loads(bundle.read("report.json"))["stages_s"]
    assert recipe.data.evaluation is not None
    one_pass = float_pass_seconds(bundle, Images.open(recipe.resolve(recipe.data.evaluation.images)))
    spent = sum(stages.get(stage, 0.0) for stage in STAGES)
    chosen = bundle.manifest.variants[bundle.manifest.chosen].measured
    return {
        "metric": report.metric,
        "float": report.float,
        "chosen": report.chosen,
        "drop": report.drop,
        "interval": report.interval,
        "flipped": chosen.get("flipped"),
        "share_of_macs": report.int8_macs_share,
        "share_outside_outputs": _outside_outputs(bundle, report.int8_macs_share),
        "kept_float": [kept.node for kept in report.kept_float],
        "float_pass_seconds": one_pass,
        "passes": spent / one_pass,
        "stages_seconds": stages,
    }


def _outside_outputs(bundle: Bundle, share: float) -> float:
    """The INT8 share of what is not in the layers that make the outputs."""
    import onnx
    import onnx_ir as ir

    from edgesmith.calibration.sites import sites_of
    from edgesmith.converters.precision.output_layers import output_layers

    graph = onnx.load_from_string(bundle.read(bundle.manifest.variants["float"].member))
    sites = sites_of(ir.serde.deserialize_model(graph))
    outputs = output_layers(sites)
    inside = sum(site.macs for site in sites if site.name not in outputs) / sum(site.macs for site in sites)
    return share / inside


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--modes", nargs="+", default=("auto", "int8"), choices=("auto", "int8", "fp16"))
    parser.add_argument("--assets", type=Path, default=ASSETS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for mode in options.modes:
            for name in options.models:
                figures.setdefault(mode, {})[name] = found = measured(
                    name, mode, options.assets, Path(folder)
                )
                print(
                    f"{mode} {name}: {found['drop']:+.2f} points, {found['passes']:.0f} passes",
                    file=sys.stderr,
                )
    for mode, models in figures.items():
        rows = [
            (
                name, f["metric"], f"{f['float']:.2f}", f"{f['chosen']:.2f}", f"{f['drop']:+.2f}",
                f"{f['interval'][0]:+.2f} .. {f['interval'][1]:+.2f}",
                "" if f["flipped"] is None else f"{f['flipped']:.0f}",
                f"{100 * f['share_outside_outputs']:.1f} %", f"{f['passes']:.1f}",
            )
            for name, f in models.items()
        ]  # fmt: skip
        print(f"\nprecision.mode = {mode}")
        print_table(
            (
                "model",
                "metric",
                "float",
                "chosen",
                "drop",
                "95 % interval",
                "flips",
                "INT8 of inner MACs",
                "passes",
            ),
            rows,
        )
        print(f"mean drop {statistics.mean(f['drop'] for f in models.values()):+.3f} points")
    if tuple(options.models) == MODELS:
        print(f"wrote {write_results('accuracy', figures).name}")


if __name__ == "__main__":
    main()
