"""What every benchmark shares: the machine's description, interleaved timing, the results file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgesmith.converters import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# Trained models and labelled images; the recipes' paths are relative to this folder.
ASSETS = Path(os.environ.get("EDGESMITH_ASSETS", HERE.parent.parent / "shared" / "assets"))
PACKAGES = ("edgesmith", "numpy", "onnxruntime", "opencv-python-headless", "torch", "onnx")


def trained_recipe(name: str, assets: Path, *, evaluation: bool = False, **changes: Any) -> Recipe:
    """The recipe of a trained model, with its labelled images or not; ``changes`` replace whole tables."""
    table = tomllib.loads((HERE / "recipes" / f"{name}.toml").read_text())
    if not evaluation:
        table["data"].pop("evaluation")
    return Recipe.from_dict({**table, **changes}, base=assets)


def machine() -> dict[str, Any]:
    """Processor, cores, Python and package versions."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text()
    vector = [f for f in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if f in flags]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": model,
        "vector": vector,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions,
    }


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round, so that a disturbance falls on all alike."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # warm caches and lazy set-up
        call()
    for number in range(rounds):
        order = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in order:
            started = time.perf_counter()
            calls[name]()
            spent[name].append(time.perf_counter() - started)
    return spent


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over the rounds of a's time over b's."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def write_results(name: str, figures: Mapping[str, Any]) -> Path:
    """``results/NAME.json`` with the figures, the machine and the date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    date = datetime.now(timezone.utc).date().isoformat()
    content = {"benchmark": name, "date": date, "machine": machine(), "figures": figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read_results(name: str) -> dict[str, Any]:
    """The figures in ``results/NAME.json``; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())["figures"]) if path.exists() else {}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, out: Any = None) -> None:
    """An aligned table on stdout."""
    texts = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(len(c), *(len(t[i]) for t in texts)) for i, c in enumerate(columns)]
    stream = out or sys.stdout
    for cells in ([*columns], ["-" * w for w in widths], *texts):
        print("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip(), file=stream)
