"""One model, one number format, in a process of its own: ``python benchmarks/models_worker.py JOB.json``.

Makes the seeded weights where there are none, converts, opens the bundle with the SDK's class, runs it on
real pictures, and prints one line of JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, cast

import cv2
import msgspec
import numpy as np
import torch
from safetensors.torch import save_model

from common import ASSETS
from edgesmith.calibration.images import Images, tensors
from edgesmith.converters import Recipe, convert
from edgesmith.converters.sources.base import search_path
from edgesmith.sdk import load_model
from edgesmith.sdk.errors import AccuracyBudgetError, EdgesmithError
from models_table import Row, architecture, zoo_input
from seeded import seed_detector, seed_weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEEDED_FROM = 8  # pictures that the statistics come from
CALIBRATION, SEARCH = 12, 24
SHOWN = 3  # pictures that the SDK's class is run on


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: a row, a number format, a folder to work in, CPU threads."""

    row: Row
    mode: str
    folder: str
    threads: int = 1
    seed: int = 0


def listed(folder: Path, source: str, count: int, name: str, skip: int = 0) -> Path:
    """A list file of some pictures of the assets."""
    source_folder = ASSETS / source
    names = Images.open(source_folder).names[skip : skip + count]
    path = folder / f"{name}.txt"
    path.write_text("".join(f"{source_folder / n}\n" for n in names))
    return path


def recipe_of(job: Job) -> Recipe:
    """The row's recipe with weights, pictures and number format filled in."""
    row, folder = job.row, Path(job.folder)
    detector_like = row.source != "zoo" and "classification" not in row.family
    pictures, others = ("coco_calib", "coco_val") if detector_like else ("imagenet_calib", "imagenet_val")
    if row.source == "trained":
        table = tomllib.loads(row.recipe.read_text())
        table["data"].pop("evaluation", None)
        if "cifar" in row.name:
            return _with_mode(table, job, ASSETS)
    elif row.source == "zoo":
        table = {"task": "classify", "model": {"zoo": row.name}}
    else:
        table = tomllib.loads(row.recipe.read_text())
    table["data"] = {
        "calibration": str(listed(folder, pictures, CALIBRATION, "calibration")),
        "search": str(listed(folder, others, SEARCH, "search")),
    }
    if row.source != "trained":
        weights = folder / "weights.safetensors"
        module = _architecture(row, table)
        if row.source == "zoo":
            table["input"] = zoo_input(row.name, module)
        table["model"]["weights"] = str(weights)
        if not weights.is_file():
            weights.touch()  # the recipe's check of files
            _write_weights(module, table, job, weights)
    return _with_mode(table, job, ASSETS if row.source == "trained" else row.recipe.parent)


def _with_mode(table: dict[str, Any], job: Job, base: Path) -> Recipe:
    table["precision"] = {"mode": job.mode, **({"accept_drop": True} if job.mode == "int8" else {})}
    if job.mode == "int8":
        table["target"] = {"variants": ["fp16"]}
    return Recipe.from_dict(table, base=base)


def _architecture(row: Row, table: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    if row.source == "zoo":
        module = architecture(row.name)
    elif "zoo" in table["model"]:
        module = architecture(table["model"]["zoo"])
    else:
        name, _, attribute = table["model"]["factory"].partition(":")
        with search_path([row.recipe.parent / folder for folder in table["model"].get("python_path", ())]):
            module = getattr(importlib.import_module(name), attribute)()
    assert isinstance(module, torch.nn.Module)
    return module


def _write_weights(module: torch.nn.Module, table: dict[str, Any], job: Job, path: Path) -> None:
    recipe = Recipe.from_dict(table, base=job.row.recipe.parent)
    images = Images.open(recipe.resolve(str(recipe.data.calibration))).sample(SEEDED_FROM, job.seed)
    inputs = np.concatenate(list(tensors(images, recipe.preprocess())))
    if recipe.model.head == "torchvision":
        seed_detector(module, torch.from_numpy(inputs), seed=job.seed)
    else:
        seed_weights(module, torch.from_numpy(inputs), classifier=recipe.task == "classify", seed=job.seed)
    save_model(module, str(path))
    del module
    gc.collect()


def measured(job: Job) -> dict[str, Any]:
    """Convert and run; what came of it."""
    recipe = recipe_of(job)
    path = Path(job.folder) / f"{job.mode}.edge"
    started, before = time.perf_counter(), _cpu_seconds()
    report = convert(recipe, path)
    seconds, spent = time.perf_counter() - started, _cpu_seconds() - before
    with zipfile.ZipFile(path) as bundle:
        told = json.loads(bundle.read("report.json"))
    exported = told["exported"]
    found: dict[str, Any] = {
        "seconds": seconds,
        "cpu_seconds": spent,
        "stages": told["stages_s"],
        "nodes": sum(told["operators"].values()),
        "weights": told["weights"]["values"],
        "size": list(recipe.preprocess().size or ()),
        "head": told["head"],
        "task": recipe.task,
        "float_bytes": told["sizes_bytes"]["model.float.onnx"],
        "parity": {
            "relative": max(o["max_abs"] / (o["range"] or 1.0) for o in exported["outputs"]),
            "cosine": min(o["cosine"] for o in exported["outputs"]),
            "agreement": exported["agreement"],
            "decisions": exported["decisions"],
            "images": exported["images"],
        },
        "compiled": {
            c["variant"]: {k: c[k] for k in ("outcome", "seconds", "layers", "meant", "note", "version")}
            | {"float_instead": len(c["float_instead"])}
            for c in told["compiled"]
        },
    }
    if job.mode == "int8":
        found |= {"drop": report.drop, "metric": report.metric, "int8_share": report.int8_macs_share}
        tried = [trial["decibels"] for trial in told["precision"]["trials"] if trial["taken"]]
        found["decibels"] = tried[0] if tried else None
        found["int8_bytes"] = told["sizes_bytes"]["model.onnx"]
    found["sdk"] = run_in_sdk(path, recipe, "float" if job.mode == "fp32" else None)
    return found


def _cpu_seconds() -> float:
    """Processor time of this process and of those it started, which other work hardly changes."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_in_sdk(path: Path, recipe: Recipe, variant: str | None) -> dict[str, Any]:
    """Milliseconds a picture and what the SDK's own class gave."""
    assert recipe.data.calibration is not None
    frames = list(Images.open(recipe.resolve(recipe.data.calibration)).sample(SHOWN, 1))
    with load_model(path, backend="cpu", variant=variant, threads=1) as model:
        answers, times = [], []
        for frame in frames:
            started = time.perf_counter()
            answers.append(cast(Any, model)(frame))
            times.append(1000 * (time.perf_counter() - started))
        counts = [len(answer) if hasattr(answer, "__len__") else 1 for answer in answers]
        return {"class": type(model).__name__, "ms": min(times), "counts": counts}


def main() -> None:
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    torch.set_num_threads(job.threads)
    cv2.setNumThreads(job.threads)
    try:
        answer = measured(job)
    except AccuracyBudgetError as error:
        answer = {"failure": f"AccuracyBudgetError: {error}"}
    except EdgesmithError as error:
        answer = {"failure": f"{type(error).__name__}: {error}"}
        answer |= {key: getattr(error, key) for key in ("operator", "module") if hasattr(error, key)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
