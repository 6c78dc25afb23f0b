"""Models of Hugging Face's ``transformers`` as factories for a recipe; nothing is ever downloaded.

Each factory makes the published architecture. ``HF_MODEL`` in the environment names a folder with the
``config.json`` of another one of its kind: of ``save_pretrained``, or a clone of a model's repository.

    HF_MODEL=FOLDER python hugging_face.py rtdetr
    HF_MODEL=FOLDER edgesmith convert transformers_rtdetr.toml -o model.edge --data.calibration pictures

The first line writes what the recipe reads: ``weights/transformers_rtdetr.safetensors`` with the folder's
weights, under the names that the library's module has for them, and ``weights/transformers_rtdetr.txt`` with
the classes. Without ``HF_MODEL`` the weights are drawn, so that a recipe can be tried.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

CLASSIFIER = "AutoModelForImageClassification"
DETECTOR = "AutoModelForObjectDetection"
SEGMENTER = "AutoModelForSemanticSegmentation"


class Outputs(nn.Module):
    """A module of the library that takes one tensor of pictures and gives the outputs named, alone.

    What else the library returns (hidden states, the outputs of every decoder layer) would be in the graph.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        found = self.network(pixel_values=pixel_values)
        return {name: found[name] for name in self.names}


def library() -> Any:
    """``transformers``, told not to reach for anything."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return importlib.import_module("transformers")


def folder() -> Path | None:
    """What ``HF_MODEL`` names."""
    named = os.environ.get("HF_MODEL")
    if not named:
        return None
    if not (Path(named) / "config.json").is_file():
        raise FileNotFoundError(f"HF_MODEL={named}: there is no config.json in it")
    return Path(named)


def model(kind: str, config: str, **published: Any) -> Any:
    """A model of ``kind`` with drawn weights: of the folder's config, else the published one."""
    theirs = library()
    given = folder()
    read = getattr(theirs, config)(**published) if given is None else theirs.AutoConfig.from_pretrained(given)
    # A backbone's own weights would be fetched; ours come from the recipe's file.
    if hasattr(read, "use_pretrained_backbone"):
        read.use_pretrained_backbone = False
    return getattr(theirs, kind).from_config(read).eval()


def resnet() -> nn.Module:
    """ResNet-50 of 1000 classes."""
    return Outputs(model(CLASSIFIER, "ResNetConfig", num_labels=1000), ["logits"])


def vit() -> nn.Module:
    """ViT-B/16 at 224 x 224, of 1000 classes."""
    return Outputs(model(CLASSIFIER, "ViTConfig", num_labels=1000), ["logits"])


def detr() -> nn.Module:
    """DETR on ResNet-50: 91 classes and, last, no object."""
    return Outputs(model(DETECTOR, "DetrConfig", num_labels=91), ["logits", "pred_boxes"])


def rtdetr() -> nn.Module:
    """RT-DETR on ResNet-50-vd, of 80 classes; any other whose outputs are logits and boxes, too."""
    return Outputs(model(DETECTOR, "RTDetrConfig", num_labels=80), ["logits", "pred_boxes"])


def segformer() -> nn.Module:
    """SegFormer-B0 of 150 classes: maps of logits at a fourth of the input's sides."""
    return Outputs(model(SEGMENTER, "SegformerConfig", num_labels=150), ["logits"])


FACTORIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet": (resnet, CLASSIFIER),
    "vit": (vit, CLASSIFIER),
    "detr": (detr, DETECTOR),
    "rtdetr": (rtdetr, DETECTOR),
    "segformer": (segformer, SEGMENTER),
}


def write(name: str, into: Path) -> Path:
    """The weights and class names that ``transformers_NAME.toml`` reads; returns the file of weights."""
    from safetensors.torch import save_file

    factory, kind = FACTORIES[name]
    module: Any = factory()
    given = folder()
    if given is not None:
        # The library's loader knows the names that older versions wrote; a state dict's reader does not.
        network = getattr(library(), kind).from_pretrained(
            given, config=module.network.config, local_files_only=True
        )
        module.network.load_state_dict(network.state_dict())
    into.mkdir(parents=True, exist_ok=True)
    weights = into / f"transformers_{name}.safetensors"
    # Tensors that share memory are written one by one.
    save_file({key: value.contiguous().clone() for key, value in module.state_dict().items()}, weights)
    names = module.network.config.id2label
    weights.with_suffix(".txt").write_text("".join(f"{names[number]}\n" for number in sorted(names)))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files that transformers_NAME.toml reads.")
    parser.add_argument("name", choices=FACTORIES)
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "weights")
    given = parser.parse_args()
    print(write(given.name, given.into))


if __name__ == "__main__":
    main()
