"""torchvision's detectors, found by their class and rebuilt with static shapes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, cast

import msgspec
from torch import Tensor, nn

from edgesmith.converters.adapters.base import Declined, Outputs
from edgesmith.converters.adapters.options import read_as
from edgesmith.converters.adapters.torchvision.base import Setup, StaticDetector
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Nms

HEAD = "torchvision"
_HERE = "edgesmith.converters.adapters.torchvision"
_THERE = "torchvision.models.detection"
# torchvision's class: what rebuilds it. Named by path, so that torchvision need not be installed.
REBUILT: dict[str, str] = {
    f"{_THERE}.ssd.SSD": f"{_HERE}.ssd:StaticSsd",
    f"{_THERE}.retinanet.RetinaNet": f"{_HERE}.dense:StaticRetinaNet",
    f"{_THERE}.fcos.FCOS": f"{_HERE}.dense:StaticFcos",
    f"{_THERE}.faster_rcnn.FasterRCNN": f"{_HERE}.rcnn:StaticRcnn",  # Mask R-CNN is one of these
}
# What is called anew here: a subclass that changes one of these computes something else.
_REWRITTEN = ("forward", "postprocess_detections")
Builder = Callable[[nn.Module, Setup], StaticDetector]
Region = Annotated[tuple[float, float, float, float], msgspec.Meta(description="x1, y1, x2, y2")]


class TorchvisionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``model.head_options`` of these detectors.

    ``normalized``: input.mean and input.std of the recipe are those of the module's transform, which
    then stay out of the graph. ``masks``: false leaves out the masks of Mask R-CNN. ``proposals``: fixed
    regions, x1, y1, x2, y2 in pixels of the input, in place of the region proposal network.
    """

    normalized: bool = False
    masks: bool = True
    proposals: Annotated[tuple[Region, ...], msgspec.Meta(min_length=1)] | None = None


class TorchvisionDetectors:
    """The entry in the table of heads: these are known by the module's class, not by its outputs."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"normalized", "masks", "proposals"})

    @classmethod
    def from_outputs(cls, seen: Outputs) -> Declined:
        return Declined("it takes the modules of torchvision.models.detection, known by their class")


def rebuilt(
    module: nn.Module,
    *,
    example: Tensor,
    options: Mapping[str, object],
    nms: Nms | None,
    names: int | None,
) -> StaticDetector | Declined:
    """The detector of torchvision with static shapes, or why the module is none.

    Args:
        module: any module.
        example: one input (1, 3, H, W).
        options: ``model.head_options``.
        nms: what the candidates are for; a two-stage detector chooses them by it.
        names: number of class names, None where there are none.

    Raises:
        RecipeError: an option, the names or the NMS setting cannot be used.
        SourceError: the network is altered in a way that is not known here, or fails on the input.
    """
    known = known_class(module)
    if known is None:
        return Declined(f"{type(module).__name__} is none of torchvision's detectors")
    given = read_as(options, TorchvisionOptions)
    _check_range(module, example, given.normalized)
    setup = Setup(
        size=(int(example.shape[2]), int(example.shape[3])),
        names=names,
        nms=nms,
        normalized=given.normalized,
        masks=given.masks,
        proposals=given.proposals,
    )
    path, attribute = REBUILT[known].split(":")
    kind = cast(Builder, getattr(importlib.import_module(path), attribute))
    # Inside, the module's parts are called as they stand.
    module.eval()
    try:
        return kind(module, setup)
    except AttributeError as error:
        raise SourceError(
            f"a part of this {type(module).__name__} is not as torchvision makes it: {error}. Return boxes "
            '(N, K, 4) and scores (N, K, C) from a module of your own and set model.head = "canonical"'
        ) from error


def known_class(module: nn.Module) -> str | None:
    """The entry of :data:`REBUILT` that the module is an instance of, None where it is of none.

    Raises:
        SourceError: it is of a subclass with a forward of its own.
    """
    for kind in type(module).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in REBUILT:
            continue
        for method in _REWRITTEN:
            owner = next((k for k in type(module).__mro__ if method in vars(k)), kind)
            if not owner.__module__.startswith(_THERE):
                raise SourceError(
                    f"{type(module).__name__} is a {kind.__name__} of torchvision with a {method} of its own "
                    f"(in {owner.__module__}): its decode is not known. Return boxes (N, K, 4) and scores "
                    '(N, K, C) from a module of your own and set model.head = "canonical"'
                )
        return name
    return None


def _check_range(module: nn.Module, example: Tensor, normalized: bool) -> None:
    """The transform's mean and std are applied once: by the graph, or by the recipe's preprocess.

    Raises:
        RecipeError: the example shows that they would be applied twice, or never.
    """
    transform = module.transform
    mean = [float(v) for v in transform.image_mean]  # type: ignore[union-attr]
    std = [float(v) for v in transform.image_std]  # type: ignore[union-attr]
    if len(mean) != example.shape[1]:
        raise RecipeError(
            f"recipe: input.color: {type(module).__name__} takes {len(mean)} channels, the recipe gives "
            f"{example.shape[1]}",
            key="input.color",
        )
    plain = float(example.min()) >= 0 and float(example.max()) <= 1
    if not normalized and not plain:
        low, high = float(example.min()), float(example.max())
        raise RecipeError(
            f"recipe: input: {type(module).__name__} of torchvision takes RGB in 0..1 and normalizes by "
            f"itself, but the images run from {low:.3g} to {high:.3g}. Take input.mean and input.std out and "
            "leave input.scale at 1/255, or set model.head_options.normalized = true to keep the "
            "normalization in the recipe",
            key="input",
        )
    identity = all(v == 0 for v in mean) and all(v == 1 for v in std)
    if normalized and plain and not identity:
        raise RecipeError(
            f"recipe: model.head_options.normalized is true, but the images run from 0 to 1: set "
            f"input.mean = {[round(v, 5) for v in mean]} and input.std = {[round(v, 5) for v in std]}, "
            "or take the option out",
            key="model.head_options.normalized",
        )
