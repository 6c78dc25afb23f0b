"""For the dev box: a trained module of one's own, from Python, into a bundle.

    python samples/convert_model.py model.edge

Makes a small classifier, saves its weights as one would after training, and converts it with a
recipe written in Python instead of TOML.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from edgesmith.converters import Recipe, convert
from edgesmith.sdk import EdgesmithError


def shape_classifier() -> nn.Module:
    """Three classes from 64 x 64 pictures: the part that a project of its own would bring."""
    layers = nn.Sequential()
    channels = 3
    for width in (8, 16, 32):
        layers.append(nn.Conv2d(channels, width, 3, 2, 1, bias=False))
        layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        channels = width
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def main(out: str) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "shapes.safetensors"
        save_file(shape_classifier().state_dict(), weights)
        recipe = Recipe.from_dict(
            {
                "task": "classify",
                "labels": ["circle", "square", "triangle"],
                "model": {
                    "factory": "convert_model:shape_classifier",
                    "weights": str(weights),
                    "python_path": [str(Path(__file__).parent)],
                },
                "input": {"size": [64, 64], "batch": {"min": 1, "opt": 4, "max": 8}},
            },
            base=Path.cwd(),
        )
        report = convert(recipe, out=out)
    print(f"{report.bundle}: {report.precision}, {report.seconds:.1f} s")
    print(f"next: edgesmith inspect {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except EdgesmithError as error:
        sys.exit(f"{error}")
