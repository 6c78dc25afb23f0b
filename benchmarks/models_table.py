"""The models of ``docs/models.md``: what each row is, and the draw of models that nobody chose.

A row is a recipe of ``samples/recipes``, a trained model of ``benchmarks/recipes``, or an architecture of
torchvision or timm by its name in the recipe's ``model.zoo``.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from common import HERE

SAMPLES = HERE.parent / "samples" / "recipes"
TRAINED = HERE / "recipes"
LARGEST_DRAWN = 60_000_000  # parameters
# Heavy rows may take longer: NASNet-large and ViT-L class networks.
LARGE = frozenset({"timm:nasnetalarge", "torchvision:vit_l_16", "torchvision:vgg16"})


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ``source``: ``zoo``, ``sample`` (a recipe of the samples) or ``trained`` (of the assets)."""

    name: str
    family: str
    source: Literal["zoo", "sample", "trained"]

    @property
    def recipe(self) -> Path:
        """The recipe's file, for rows that have one."""
        return (SAMPLES if self.source == "sample" else TRAINED) / f"{self.name}.toml"


CLASSIFIERS = (
    "torchvision:alexnet", "torchvision:squeezenet1_1", "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large", "torchvision:resnet18",
    "torchvision:resnet50", "torchvision:googlenet", "torchvision:inception_v3", "torchvision:densenet121",
    "torchvision:efficientnet_b0", "torchvision:efficientnet_v2_s", "torchvision:shufflenet_v2_x1_0",
    "torchvision:mnasnet1_0", "torchvision:regnet_y_400mf", "torchvision:convnext_tiny",
    "torchvision:swin_t", "timm:vit_tiny_patch16_224", "timm:mobilenetv4_conv_small",
    "torchvision:vgg11", "torchvision:vgg16", "torchvision:vit_b_16", "timm:nasnetalarge",
)  # fmt: skip
SAMPLE_FAMILIES: dict[str, tuple[str, ...]] = {
    "one-stage detection": (
        "yolov3", "yolov5", "yolox", "yolov8", "end_to_end", "centernet", "cornernet", "cornernet_squeeze",
        "detr", "rtdetr", "torchvision_ssd300_vgg16", "torchvision_ssdlite320_mobilenet_v3_large",
        "torchvision_retinanet_resnet50_fpn", "torchvision_retinanet_resnet50_fpn_v2",
        "torchvision_fcos_resnet50_fpn",
    ),
    "two-stage detection": (
        "torchvision_fasterrcnn_mobilenet_v3_large_320_fpn", "torchvision_fasterrcnn_mobilenet_v3_large_fpn",
        "torchvision_fasterrcnn_resnet50_fpn", "torchvision_fasterrcnn_resnet50_fpn_v2",
        "torchvision_maskrcnn_resnet50_fpn", "torchvision_maskrcnn_resnet50_fpn_v2",
    ),
    "segmentation": ("fcn", "deeplabv3", "unet"),
    "enhancement": ("espcn", "dncnn"),
    "sequence": ("crnn", "wav2vec"),
}  # fmt: skip
TRAINED_FAMILIES: dict[str, tuple[str, ...]] = {
    "classification": ("mobilenet_v1_025", "efficientnet_lite0", "resnet20_cifar", "resnet56_cifar"),
    "one-stage detection": ("yolox_nano", "nanodet_m", "fastestdet"),
    "segmentation": ("sinet",),
    "enhancement": ("fsrcnn",),
}


def table() -> list[Row]:
    """Every row whose recipe is there, in the order of the page."""
    rows = [Row(name=name, family="classification", source="zoo") for name in CLASSIFIERS]
    for family, names in SAMPLE_FAMILIES.items():
        rows += [Row(name=name, family=family, source="sample") for name in names]
    known = {row.name for row in rows}
    rows += [
        Row(name=path.stem, family="other", source="sample")
        for path in sorted(SAMPLES.glob("*.toml"))
        if path.stem not in known
    ]
    for family, names in TRAINED_FAMILIES.items():
        rows += [Row(name=name, family=family, source="trained") for name in names]
    return [row for row in rows if row.source == "zoo" or row.recipe.is_file()]


def drawn(count: int, seed: int) -> list[Row]:
    """Classifiers of torchvision and timm at random, each of fewer than 60 million parameters."""
    import torchvision

    listed = [f"torchvision:{n}" for n in torchvision.models.list_models(module=torchvision.models)]
    rest = [*listed, *(f"timm:{name}" for name in _timm_names())]
    random.Random(seed).shuffle(rest)
    rows: list[Row] = []
    for name in rest:
        if len(rows) == count:
            break
        if parameters(name) < LARGEST_DRAWN:
            rows.append(Row(name=name, family="drawn", source="zoo"))
    return rows


def _timm_names() -> Sequence[str]:
    import timm

    names: Sequence[str] = timm.list_models()
    return names


def parameters(name: str) -> int:
    """How many parameters an architecture has; nothing is allocated for them."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in architecture(name).parameters())


def architecture(name: str) -> Any:
    """An architecture of a zoo, without weights of anybody's."""
    zoo, _, model = name.partition(":")
    if zoo == "timm":
        import timm

        return timm.create_model(model, pretrained=False, exportable=True)
    import torchvision

    settings: dict[str, Any] = {"weights": None}
    if model in ("googlenet", "inception_v3"):
        settings["init_weights"] = False  # takes a minute
    builder = torchvision.models.get_model_builder(model)
    if "weights_backbone" in inspect.signature(builder).parameters:
        settings["weights_backbone"] = None  # would be downloaded
    return builder(**settings)


def zoo_input(name: str, module: Any) -> dict[str, Any]:
    """The recipe's ``[input]`` for an architecture: size, mean and std that its library states."""
    zoo, _, model = name.partition(":")
    if zoo == "timm":
        config = module.pretrained_cfg
        size = list(config.get("input_size", (3, 224, 224)))[1:]
        crop = float(config.get("crop_pct") or 0.875)
        mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
        shorter = round(max(size) / crop)
    else:
        import torchvision

        preset = torchvision.models.get_model_weights(model).DEFAULT.transforms()
        size, shorter = [preset.crop_size[0]] * 2, preset.resize_size[0]
        mean, std = preset.mean, preset.std
    return {
        "size": size, "shorter_side": max(shorter, *size), "mean": [255 * v for v in mean],
        "std": [255 * v for v in std], "scale": 1.0,
    }  # fmt: skip
