"""Detectors of Ultralytics as factories for a recipe; nothing is ever downloaded.

Ultralytics and its weights are under AGPL-3.0, or under an enterprise license that is bought. Code that
imports it, and a product that its weights are part of, come under these terms: see to that before one ships.

A checkpoint of theirs is a pickled object, which the conversion does not open. This file does, where
Ultralytics is installed, and writes the weights alone and the names of the classes, as a recipe reads them:

    python ultralytics_yolo.py yolo11n my_checkpoint.pt
    edgesmith convert ultralytics_yolo11n.toml -o model.edge --data.calibration pictures

That writes ``weights/ultralytics_yolo11n.safetensors`` and ``weights/ultralytics_yolo11n.txt``. Without
a checkpoint the weights are drawn, so that a recipe can be tried. ``YOLO_CLASSES`` in the environment is the
number of classes where it is not 80.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 80


def part(module: str) -> Any:
    """A module of ``ultralytics``, told neither to fetch nor to install anything."""
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    return importlib.import_module(f"ultralytics.{module}")


class Maps(nn.Module):
    """A detector without its decode: of each level distances and class logits, (N, 4 * bins + C, h, w).

    The module's own one tensor of boxes in pixels and scores in 0..1 would get one scale for both in int8.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        # Kept under the library's own name, so that the keys of a state dict are the library's.
        self.model = detector.model
        self.saved = frozenset(detector.save)

    def forward(self, images: Tensor) -> list[Tensor]:
        *layers, head = self.model
        kept: dict[int, Tensor] = {}
        value = images
        for layer in layers:
            value = layer(_inputs(layer, value, kept))
            if layer.i in self.saved:
                kept[layer.i] = value
        levels = [kept[at] for at in head.f]
        return [
            torch.cat((boxes(level), scores(level)), 1)
            for boxes, scores, level in zip(head.cv2, head.cv3, levels, strict=True)
        ]


def _inputs(layer: Any, last: Tensor, kept: dict[int, Tensor]) -> Tensor | list[Tensor]:
    """What a layer takes: the last output, another one, or several."""
    if isinstance(layer.f, int):
        return last if layer.f == -1 else kept[layer.f]
    return [last if at == -1 else kept[at] for at in layer.f]


def network(name: str) -> Any:
    """An architecture of the library with drawn weights."""
    classes = int(os.environ.get("YOLO_CLASSES", CLASSES))
    return part("nn.tasks").DetectionModel(f"{name}.yaml", nc=classes, verbose=False).eval()


def yolov8n() -> nn.Module:
    return Maps(network("yolov8n"))


def yolo11n() -> nn.Module:
    return Maps(network("yolo11n"))


def yolov10n() -> nn.Module:
    """The detections themselves, (N, 300, 6): chosen by the one-to-one head, nothing is left to suppress."""
    detector = network("yolov10n")
    head = detector.model[-1]
    head.end2end = True  # the head without suppression; late releases take the other one unless told
    head.export = True  # one tensor alone
    module: nn.Module = detector
    return module


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "yolov8n": yolov8n,
    "yolo11n": yolo11n,
    "yolov10n": yolov10n,
}


def write(name: str, checkpoint: Path | None, into: Path) -> Path:
    """The weights and class names that ``ultralytics_NAME.toml`` reads; returns the file of weights."""
    from safetensors.torch import save_file

    given = network(name) if checkpoint is None else part("models").YOLO(checkpoint).model.float()
    names: Sequence[str] = [given.names[number] for number in sorted(given.names)]
    into.mkdir(parents=True, exist_ok=True)
    weights = into / f"ultralytics_{name}.safetensors"
    save_file({key: value.contiguous().clone() for key, value in given.state_dict().items()}, weights)
    weights.with_suffix(".txt").write_text("".join(f"{text}\n" for text in names))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files that ultralytics_NAME.toml reads.")
    parser.add_argument("name", choices=FACTORIES)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "weights")
    given = parser.parse_args()
    print(write(given.name, given.checkpoint, given.into))


if __name__ == "__main__":
    main()
