"""What INT8 costs each trained model, what finding it costs, and what other tools come to.

    python benchmarks/accuracy.py [--models NAME ...] [--modes auto int8] [--peers] [--settings NAME ...]

Each model is converted with its recipe and default precision settings; float and chosen graph are measured
on the same images, paired, with a 95 % bootstrap interval over images. ``--peers`` puts other tools' files
(``benchmarks/peers``) through the same code on the same images; their figures are kept for as long as float
graph, images and versions are the same (``--again`` measures them anew, ``--settings`` chooses among them).

The time of calibration, repairs, search and verdict is given in float passes over the evaluation images.
Both are CPU time on one core, so that other work on the machine does not change them much. What was not run
keeps its figures of an earlier run in ``results/accuracy.json``.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from common import ASSETS, print_table, read_results, trained_recipe, write_results
from edgesmith.calibration.images import Images, tensors
from edgesmith.converters import convert
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk import Bundle
from edgesmith.sdk.errors import AccuracyBudgetError
from peers.compare import compared, key_of
from peers.settings import SETTINGS

MODELS = (
    "yolox_nano", "nanodet_m", "fastestdet", "mobilenet_v1_025", "efficientnet_lite0", "resnet20_cifar",
    "resnet56_cifar",
)  # fmt: skip
STAGES = ("calibrate", "search the precision", "measure on the verdict images")
BEHIND_POINTS, BEHIND_FLIPS = 0.5, 3  # what INT8 may be behind the best of the others
YOLOX_DROP = 0.5
MOBILENET_SHARE = 0.5  # of the flips of the best of the others
COLUMNS = ("metric", "float", "chosen", "drop", "95 % interval", "flips", "INT8 of MACs")


class StageClock(logging.Handler):
    """CPU seconds of each stage of a conversion, from the log lines that begin them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._began = time.process_time()
        self._log = logging.getLogger("edgesmith.converters.stages")

    def emit(self, record: logging.LogRecord) -> None:
        self._end()
        self._name, self._began = record.getMessage(), time.process_time()

    def _end(self) -> None:
        if self._name is not None:
            spent = time.process_time() - self._began
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent
            self._name = None

    def __enter__(self) -> StageClock:
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._log.removeHandler(self)
        self._end()


def float_pass_seconds(bundle: Bundle, images: Images) -> float:
    """CPU seconds of bare inference of all evaluation images, prepared beforehand; the lesser of two."""
    import onnx

    run = graph_runner(onnx.load_from_string(bundle.read(bundle.manifest.variants["float"].member)))
    preprocess = bundle.manifest.preprocess
    sample = list(tensors(images.sample(100, 0), preprocess))
    run(sample[0])
    times = []
    for _ in range(2):
        started = time.process_time()
        for tensor in sample:
            run(tensor)
        times.append(time.process_time() - started)
    return min(times) / len(sample) * len(images)


def measured(name: str, mode: str, assets: Path, path: Path) -> dict[str, Any]:
    """One model in one mode; the bundle stays at ``path``."""
    # The figure is what INT8 costs, whether the budget allows it or not.
    precision = {"mode": mode, **({"accept_drop": True} if mode == "int8" else {})}
    recipe = trained_recipe(name, assets, evaluation=True, precision=precision)
    with StageClock() as clock:
        report = convert(recipe, path)
    bundle = Bundle.open(path)
    assert recipe.data.evaluation is not None
    one_pass = float_pass_seconds(bundle, Images.open(recipe.resolve(recipe.data.evaluation.images)))
    spent = sum(clock.seconds.get(stage, 0.0) for stage in STAGES)
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
        "float_pass_cpu_seconds": one_pass,
        "passes": spent / one_pass,
        "stages_cpu_seconds": clock.seconds,
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


def measured_peers(
    name: str, assets: Path, folder: Path, settings: Sequence[str], known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The other tools' figures of one model; those that are known and still hold are taken as they are."""
    recipe = trained_recipe(name, assets, evaluation=True)
    path = next(iter(folder.glob(f"{name}-*.edge")), None)
    if path is None:
        path = folder / f"{name}-float.edge"
        convert(trained_recipe(name, assets), path)
    bundle = Bundle.open(path)
    key = key_of(bundle, recipe)
    found = dict(known["settings"]) if known is not None and known["key"] == key else {}
    missing = [setting for setting in settings if setting not in found]
    if missing:
        found |= compared(bundle, recipe, folder, missing)
    return {"key": key, "settings": {setting: found[setting] for setting in SETTINGS if setting in found}}


def lost(figures: Mapping[str, Any]) -> float:
    """What models are ranked by: decisions that flipped, points of mAP lost where there are none."""
    return float(figures["drop"] if figures["flipped"] is None else figures["flipped"])


def against_best(
    ours: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[object, ...]:
    """A row of the last table: the other tools' best of any kind, ours, and whether the bars are kept."""
    there = {setting: found for setting, found in settings.items() if "failure" not in found}
    best = min(there, key=lambda setting: lost(there[setting]))
    theirs, mine = lost(there[best]), lost(ours)
    flips = ours["flipped"] is not None
    kept = mine - theirs <= (BEHIND_FLIPS if flips else BEHIND_POINTS)
    if name == "yolox_nano":
        kept = kept and mine <= YOLOX_DROP
    elif name == "mobilenet_v1_025":
        kept = kept and mine < MOBILENET_SHARE * theirs
    unit = "flips" if flips else "mAP lost"
    told = "{:.0f}" if flips else "{:+.2f}"
    return name, unit, told.format(mine), told.format(theirs), best, "yes" if kept else "NO"


def tell(figures: Mapping[str, Any], models: tuple[str, ...]) -> None:
    """All tables."""
    for mode in ("auto", "int8", "fp16"):
        rows = [(name, *_row(f), f"{f['passes']:.1f}") for name, f in figures.get(mode, {}).items()]
        if not rows:
            continue
        print(f"\nprecision.mode = {mode}")
        print_table(("model", *COLUMNS, "passes"), rows)
        drops = [f["drop"] for f in figures[mode].values()]
        print(f"mean drop {statistics.mean(drops):+.3f} points")
    peers = figures.get("peers", {})
    for name in (n for n in models if n in peers):
        mine = [(f"edgesmith {m}", figures[m][name]) for m in ("auto", "int8") if name in figures.get(m, {})]
        found = peers[name]["settings"]
        print(f"\n{name}")
        good = [(s, f) for s, f in found.items() if "failure" not in f]
        print_table(("setting", *COLUMNS), [(s, *_row(f)) for s, f in (*mine, *good)])
        for setting, one in found.items():
            if "failure" in one:
                print(f"{setting}: no figure: {one['failure']}")
    both = [n for n in MODELS if n in peers and n in figures.get("int8", {})]
    if both:
        print("\nint8 against the best of the others, of any kind")
        rows = [against_best(figures["int8"][n], peers[n]["settings"], n) for n in both]
        print_table(("model", "measure", "edgesmith int8", "best other", "which", "bar kept"), rows)


def _row(f: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f["metric"], f"{f['float']:.2f}", f"{f['chosen']:.2f}", f"{f['drop']:+.2f}",
        f"{f['interval'][0]:+.2f} .. {f['interval'][1]:+.2f}",
        "" if f["flipped"] is None else f"{f['flipped']:.0f}",
        f"{100 * f['share_of_macs']:.1f} %",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--modes", nargs="*", default=("auto", "int8"), choices=("auto", "int8", "fp16"))
    parser.add_argument("--peers", action="store_true", help="the other tools' files too")
    parser.add_argument("--settings", nargs="+", default=tuple(SETTINGS), choices=SETTINGS, help="of --peers")
    parser.add_argument("--again", action="store_true", help="measure the other tools anew")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    figures = read_results("accuracy")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in options.models:
            for mode in options.modes:
                models = figures.setdefault(mode, {})
                try:
                    models[name] = found = measured(
                        name, mode, options.assets, folder / f"{name}-{mode}.edge"
                    )
                except AccuracyBudgetError as error:
                    models.pop(name, None)
                    print(f"{mode} {name}: refused: {error}", file=sys.stderr)
                else:
                    drop, passes = found["drop"], found["passes"]
                    print(f"{mode} {name}: {drop:+.2f} points, {passes:.0f} passes", file=sys.stderr)
            if options.peers:
                peers = figures.setdefault("peers", {})
                known = None if options.again else peers.get(name)
                peers[name] = measured_peers(name, options.assets, folder, options.settings, known)
                print(f"peers {name}: done", file=sys.stderr)
            # After each model: a run that is cut off has not been in vain.
            write_results("accuracy", figures)
    tell(figures, options.models)


if __name__ == "__main__":
    main()
