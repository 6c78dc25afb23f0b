"""What torchvision's detectors share once taken apart: normalisation, padding, anchors, box decode, classes.

torchvision's own forward takes a list of images and returns as many boxes as it finds; nothing of that has a
static shape. So its parts are called one by one instead: backbone, heads, and what stands between them is
written anew with a fixed number of rows (TopK and masks in place of boolean indices).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS
from edgesmith.converters.adapters.nms_graph import NMS_OUTPUTS, GraphNms, WithNms
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Nms

log = logging.getLogger(__name__)
FROZEN = "FrozenBatchNorm2d"


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a detector is rebuilt for.

    ``size`` is the input's (H, W). ``names`` counts the recipe's class names, None where there are none.
    ``nms`` is None where no suppression is asked for. ``normalized`` tells that the recipe's preprocess
    subtracts mean and std already; ``masks`` (Mask R-CNN) that masks are wanted; ``proposals`` are regions
    (xyxy in input pixels) that take the place of those that a two-stage detector proposes itself.
    """

    size: tuple[int, int]
    names: int | None = None
    nms: Nms | None = None
    normalized: bool = False
    masks: bool = True
    proposals: tuple[tuple[float, float, float, float], ...] | None = None


class StaticDetector(nn.Module):
    """One of torchvision's detectors with static shapes: images (N, 3, H, W) to boxes and scores.

    Images are RGB in 0..1, as torchvision's own module takes them: mean and std of its transform are in
    the graph, unless ``setup.normalized``. The transform's resize is not: the recipe's preprocess does
    it. Sides that the network needs as multiples (of 32) are padded with zeros at the right and at the
    bottom, as torchvision does.

    Attributes:
        network: torchvision's module, whole, so that weights keep their names.
        classes: C of the scores.
        skip: leading classes of the network that are left out (the background, 0 or 1).
    """

    mean: Tensor
    std: Tensor
    limits: Tensor
    shown: Tensor

    def __init__(self, network: nn.Module, setup: Setup, *, columns: int, background: bool) -> None:
        """``columns`` is the network's number of classes; with ``background`` the first is none of them."""
        super().__init__()
        melt_frozen(network)
        self.network: Any = network
        self.size, self.normalized = setup.size, setup.normalized
        transform: Any = network.transform
        for name in ("mean", "std"):
            values = torch.tensor(getattr(transform, f"image_{name}"), dtype=torch.float32)
            self.register_buffer(name, values.reshape(1, -1, 1, 1))
        multiple = int(transform.size_divisible)
        self.padding = (-setup.size[1] % multiple, -setup.size[0] % multiple)
        height, width = setup.size
        self.register_buffer("limits", torch.tensor([width, height, width, height], dtype=torch.float32))
        self.skip = _skipped(setup.names, columns, background, type(network).__name__)
        self.classes = columns - self.skip
        # Where the names have the background too, it keeps its place and is never found.
        self.blank = background and not self.skip
        self.register_buffer("shown", (torch.arange(self.classes) > 0).float())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs of the forward."""
        return DETECTOR_OUTPUTS

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's maps by name, finest first."""
        if not self.normalized:
            images = (images - self.mean) / self.std
        if any(self.padding):
            images = functional.pad(images, (0, self.padding[0], 0, self.padding[1]))
        found = self.network.backbone(images)
        return dict(found) if isinstance(found, Mapping) else {"0": found}

    def with_nms(self, nms: Nms, rows: int) -> tuple[nn.Module, tuple[str, ...]]:
        """The detector with the suppression in the graph, and its output names; ``rows`` is K."""
        return WithNms(self, GraphNms(nms, rows=rows, classes=self.classes)), NMS_OUTPUTS

    def anchors(self, generator: Any, features: Sequence[Tensor]) -> Tensor:
        """The anchors (A, 4) xyxy that torchvision's generator gives for such maps."""
        from torchvision.models.detection.image_list import ImageList

        height, width = self.size
        canvas = torch.empty(1, 1, height + self.padding[1], width + self.padding[0])
        anchors: Tensor = generator(ImageList(canvas, [self.size]), list(features))[0]
        return anchors.float()

    def probe(self) -> dict[str, Tensor]:
        """The maps of one black image, for their shapes.

        Raises:
            SourceError: the backbone fails on an input of this size.
        """
        try:
            with torch.no_grad():
                return self.features(torch.zeros(1, 3, *self.size))
        except Exception as error:
            raise SourceError(
                f"the backbone of {type(self.network).__name__} fails on an input of {self.size}: {error}. "
                "Check input.size"
            ) from error

    def clipped(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) xyxy inside the image."""
        return torch.minimum(boxes.clamp(min=0), self.limits)

    def foreground(self, scores: Tensor) -> Tensor:
        """Scores (..., columns) of the network as the C of the labels."""
        scores = scores[..., self.skip :] if self.skip else scores
        return scores * self.shown if self.blank else scores

    def describe(self) -> str:
        """What was rebuilt, for the log."""
        return f"{type(self.network).__name__} of torchvision with {self.classes} classes"


class Deltas:
    """torchvision's ``BoxCoder``: boxes from regions (Girshick et al., 2014, arXiv 1311.2524, appendix C).

    x, y = region's centre + (dx, dy) * region's size     w, h = region's size * exp(dw, dh)
    """

    def __init__(self, coder: Any) -> None:
        self.weights = tuple(float(w) for w in coder.weights)
        self.limit = float(coder.bbox_xform_clip)

    def boxes(self, deltas: Tensor, regions: Tensor) -> Tensor:
        """Boxes (..., 4) xyxy from deltas (..., 4) and regions (..., 4) xyxy; both may broadcast."""
        size = regions[..., 2:] - regions[..., :2]
        centre = regions[..., :2] + 0.5 * size
        x, y, w, h = self.weights
        # One number where the two weights are equal, as in all of torchvision's models: no constant to carry.
        shift, grow = deltas[..., :2], deltas[..., 2:]
        shift = shift / x if x == y else shift / shift.new_tensor((x, y))
        grow = grow / w if w == h else grow / grow.new_tensor((w, h))
        centre = shift * size + centre
        half = 0.5 * (grow.clamp(max=self.limit).exp() * size)
        return torch.cat((centre - half, centre + half), -1)


def picked(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, k, D) of ``values`` (N, K, D) at ``index`` (N, k)."""
    # Times ones and not expanded: that would bring the batch size into the graph as a Shape.
    ones = torch.ones(1, 1, values.shape[2], dtype=torch.int64)
    return values.gather(1, index.unsqueeze(2) * ones)


def taken(table: Tensor, index: Tensor) -> Tensor:
    """Rows (N, k, D) of a constant ``table`` (K, D) at ``index`` (N, k)."""
    return functional.embedding(index, table)


def roomy(boxes: Tensor, least: float) -> Tensor:
    """bool (...): boxes (..., 4) whose width and height are at least ``least`` pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)


def flat_rows(maps: Tensor, width: int) -> Tensor:
    """A head's map (N, A * width, h, w) as rows (N, h * w * A, width), cell after cell."""
    height, columns = maps.shape[2:]
    rows = maps.reshape(-1, maps.shape[1] // width, width, height, columns).permute(0, 3, 4, 1, 2)
    return rows.reshape(-1, height * columns * (maps.shape[1] // width), width)


def melt_frozen(network: nn.Module) -> None:
    """Turn torchvision's frozen batch norms into ordinary ones in eval mode, equal in value.

    Frozen ones are arithmetic on buffers to the exporter; ordinary ones fold into their convolutions.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == FROZEN and type(child).__module__ == "torchvision.ops.misc":
                setattr(parent, name, _melted(child))


def _melted(frozen: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(frozen.weight), eps=frozen.eps).eval().requires_grad_(False)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).copy_(getattr(frozen, name))
    return norm


def _skipped(names: int | None, columns: int, background: bool, kind: str) -> int:
    """How many leading classes are left out, by the number of names.

    Raises:
        RecipeError: the names are neither all classes nor all but the first.
    """
    if names is None:
        return int(background)
    if names not in (columns, columns - 1):
        first = "the background" if background else "index 0, which COCO's own numbering leaves empty"
        raise RecipeError(
            f"recipe: labels: {names} names, but this {kind} has {columns} classes; give {columns} names, or "
            f"{columns - 1} without {first}",
            key="labels",
        )
    return columns - names
