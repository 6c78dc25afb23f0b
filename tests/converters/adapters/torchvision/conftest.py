"""torchvision's detectors with seeded weights that find things, and its own answers to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.preprocess import prepared

Floats = NDArray[np.float32]
FOUND = 60  # pairs of box and class above LEAST, on average an image, before any suppression
LEAST = 0.05
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@pytest.fixture(scope="session")
def inputs(assets: Path) -> Callable[..., list[Tensor]]:
    """``inputs(size, count, folder)``: real images (1, 3, H, W), RGB in 0..1, letterboxed to ``size``."""

    def read(size: tuple[int, int], count: int, folder: str = "coco_val") -> list[Tensor]:
        preprocess = Preprocess(size=size)
        paths = sorted((assets / folder).glob("*.jpg"))[:count]
        assert len(paths) == count
        frames = [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) for path in paths]
        tensors = [prepared(preprocess, np.asarray(frame, np.uint8))[0] for frame in frames]
        return [torch.from_numpy(np.array(tensor)).reshape(1, 3, *size) for tensor in tensors]

    return read


@pytest.fixture(scope="session")
def alive() -> Callable[..., Any]:
    """``alive(network, images)``: seeded weights under which the detector finds some tens of objects.

    Convolutions are scaled to outputs of unit variance, batch norms get the statistics of the images,
    and the class layer's offset is set so that :data:`FOUND` scores an image lie above :data:`LEAST`.
    """

    def enliven(network: Any, images: Sequence[Tensor], seed: int = 0) -> Any:
        batch = torch.cat(list(images))
        _as_prepared(network, batch)
        _draw(network, seed)
        network.eval()
        with torch.no_grad(), _statistics(network):
            _answers(network, batch)
        _scale_boxes(network)
        _set_offset(network, batch)
        return network.eval().requires_grad_(False)

    return enliven


@pytest.fixture(scope="session")
def tuned() -> Callable[..., None]:
    """``tuned(network, image)``: the class layer's offset anew, for :data:`FOUND` scores on this image."""

    def tune(network: Any, image: Tensor) -> None:
        _as_prepared(network, image)
        _set_offset(network, image)

    return tune


@pytest.fixture(scope="session")
def own_answer() -> Callable[..., dict[str, Floats]]:
    """``own_answer(network, image)``: torchvision's detections of a prepared image, by its own forward."""

    def answer(network: Any, image: Tensor) -> dict[str, Floats]:
        _as_prepared(network, image)
        with torch.no_grad():
            (found,) = network.eval()([image[0]])
        return {name: value.numpy() for name, value in found.items()}

    return answer


@pytest.fixture(scope="session")
def same_detections() -> Callable[..., int]:
    """``same_detections(theirs, boxes, scores, labels, offset)`` asserts that both sides found the same.

    ``offset`` is what is added to our labels. Every detection above :data:`LEAST` needs a partner of its own
    on the other side: label, box within half a pixel, score within 1e-3, and where ``masks`` are given, each
    pixel of the mask within 1e-3. The number of theirs comes back.
    """

    def compare(
        theirs: dict[str, Floats], boxes: Floats, scores: Floats, labels: Any, offset: int, masks: Any = None
    ) -> int:
        distance = np.abs(theirs["boxes"][:, None] - boxes[None]).max(2, initial=0.0)
        fits = distance <= 0.5
        fits &= np.abs(theirs["scores"][:, None] - scores[None]) <= 1e-3
        fits &= theirs["labels"][:, None] == np.asarray(labels)[None] + offset
        free = np.ones(len(boxes), np.bool_)
        for number in np.flatnonzero(theirs["scores"] > LEAST):
            partners = np.flatnonzero(fits[number] & free)
            assert len(partners), f"{number} of {len(fits)} (score {theirs['scores'][number]}) was not found"
            mine = partners[distance[number, partners].argmin()]
            free[mine] = False
            if masks is not None:
                assert np.abs(theirs["masks"][number] - masks[mine]).max() < 1e-3
        # A score on the threshold may fall either way.
        invented = free & (scores > LEAST + 1e-3)
        assert not invented.any(), f"{np.flatnonzero(invented)} are none of theirs"
        return int((theirs["scores"] > LEAST).sum())

    return compare


class Backbone(nn.Module):
    """Three maps of 32 channels with strides 8, 16 and 32; frozen batch norms as in pretrained backbones."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import FrozenBatchNorm2d

        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 5, 4, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)
        )
        self.norm = FrozenBatchNorm2d(32)
        self.norm.running_var.fill_(1.3)
        self.norm.bias.fill_(0.1)
        self.down = nn.ModuleList(nn.Conv2d(32, 32, 3, 2, 1) for _ in range(2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {"0": torch.relu(self.norm(self.stem(images)))}
        for number, layer in enumerate(self.down):
            maps[str(number + 1)] = torch.relu(layer(maps[str(number)]))
        return maps


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """``tiny(kind)``: a detector of torchvision over three small maps, six classes with the background."""

    def make(kind: str, **settings: Any) -> Any:
        from torchvision.models import detection
        from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
        from torchvision.ops import MultiScaleRoIAlign

        sizes, ratios = ((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3
        backbone = Backbone()
        if kind == "ssd":
            generator = DefaultBoxGenerator([[2], [2, 3], [2]], min_ratio=0.2, max_ratio=0.8)
            backbone.out_channels = [32, 32, 32]  # type: ignore[assignment]
            return detection.ssd.SSD(backbone, generator, (128, 96), 6, **settings)
        if kind == "retinanet":
            return detection.RetinaNet(
                backbone, 6, anchor_generator=AnchorGenerator(sizes, ratios), **settings
            )
        if kind == "fcos":
            points = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
            head = detection.fcos.FCOSHead(32, 1, 6, 1)
            return detection.FCOS(backbone, 6, anchor_generator=points, head=head, **settings)
        names = ["0", "1", "2"]
        common = {
            "rpn_anchor_generator": AnchorGenerator(sizes, ratios),
            "box_roi_pool": MultiScaleRoIAlign(names, 7, 2),
            "box_head": detection.faster_rcnn.TwoMLPHead(32 * 49, 32),
            "box_predictor": detection.faster_rcnn.FastRCNNPredictor(32, 6),
            "rpn_pre_nms_top_n_test": 120,
            "rpn_post_nms_top_n_test": 100,
        }
        if kind == "faster":
            return detection.FasterRCNN(backbone, **common, **settings)
        return detection.MaskRCNN(
            backbone,
            **common,
            mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
            mask_head=detection.mask_rcnn.MaskRCNNHeads(32, (16,), 1),
            mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(16, 16, 6),
            **settings,
        )

    return make


def _as_prepared(network: Any, images: Tensor) -> None:
    """The images are prepared: nothing is left to resize."""
    sides = tuple(images.shape[2:])
    network.transform.min_size, network.transform.max_size = (min(sides),), max(sides)


def _draw(network: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, WEIGHTED):
            fan = module.weight[0].numel()
            module.weight.data.normal_(0, math.sqrt(2 / fan), generator=generator)
            if module.bias is not None:
                module.bias.data.zero_()
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)


@contextmanager
def _statistics(network: Any) -> Iterator[None]:
    """Batch norms take the statistics of what passes, layers are scaled at their first call."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that passes
        norm.train()
    hooks = [m.register_forward_hook(_Unit()) for m in network.modules() if isinstance(m, WEIGHTED)]
    yield
    for hook in hooks:
        hook.remove()
    network.eval()


class _Unit:
    """Scales a layer so that its output has unit variance, once."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, module: Any, _: Any, output: Tensor) -> Tensor | None:
        if self.done or not output.numel():
            return None
        self.done = True
        spread = output.std().clamp(min=1e-6)
        module.weight.data /= spread
        return output / spread


def _answers(network: Any, batch: Tensor) -> tuple[Tensor, ...]:
    """Class logits of the network, and for FCOS the centerness logits; every layer runs."""
    images, _ = network.transform(list(batch))
    features = network.backbone(images.tensors)
    if hasattr(network, "head"):
        raw = network.head(list(features.values()))
        return tuple(raw[name] for name in ("cls_logits", "bbox_ctrness") if name in raw)
    proposals, _ = network.rpn(images, features)
    heads = network.roi_heads
    pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, _ = heads.box_predictor(heads.box_head(pooled))
    if heads.has_mask():
        some = [boxes[:8] for boxes in proposals]
        heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, some, images.image_sizes)))
    return (logits,)


def _last(module: nn.Module) -> Any:
    """The layer at the end of a prediction block."""
    return [m for m in module.modules() if isinstance(m, WEIGHTED)][-1]


def _scale_boxes(network: Any) -> None:
    """Deltas of a size that moves boxes and does not blow them up."""
    if hasattr(network, "rpn"):
        network.rpn.head.bbox_pred.weight.data *= 0.3
        network.rpn.head.cls_logits.weight.data *= 2
        network.roi_heads.box_predictor.cls_score.weight.data *= 2
        if network.roi_heads.has_mask():
            network.roi_heads.mask_predictor.mask_fcn_logits.weight.data *= 2
        return
    kind = type(network).__name__
    classes, boxes = network.head.classification_head, network.head.regression_head
    if kind == "SSD":
        for block in classes.module_list:
            _last(block).weight.data *= 2
        return
    classes.cls_logits.weight.data *= 2
    boxes.bbox_reg.weight.data *= 0.3 if kind == "RetinaNet" else 1.0
    if kind == "FCOS":
        boxes.bbox_reg.bias.data += 2


def _set_offset(network: Any, batch: Tensor) -> None:
    """Shift the class logits (the background's, where there is a softmax) by bisection."""
    with torch.no_grad():
        logits, *rest = _answers(network, batch)
    images, softmax = len(batch), not hasattr(network, "head") or type(network).__name__ == "SSD"
    if not softmax:  # an offset keeps the order, so the best few are all that can count
        centerness = rest[0].sigmoid() if rest else torch.ones(1)
        rank = (logits.sigmoid() * centerness).flatten()
        best = rank.topk(min(20 * FOUND * images, len(rank))).indices
        logits = logits.flatten()[best]
        rest = [centerness.expand(*centerness.shape[:2], network.head.classification_head.num_classes)
                .flatten()[best]] if rest else []  # fmt: skip

    def count(offset: float) -> float:
        if softmax:
            shifted = logits.clone()
            shifted[..., 0] += offset
            scores = shifted.softmax(-1)[..., 1:]
        else:
            scores = (logits + offset).sigmoid()
            scores = (scores * rest[0]).sqrt() if rest else scores
        return float((scores > LEAST).sum()) / images

    low, high = -30.0, 30.0
    for _ in range(30):
        middle = (low + high) / 2
        # More background means fewer finds, a higher class logit means more.
        low, high = (middle, high) if (count(middle) > FOUND) == softmax else (low, middle)
    for layer, columns in _class_layers(network):
        offsets = layer.bias.data.reshape(-1, columns)
        offsets[:, 0 if softmax else slice(None)] += (low + high) / 2


def _class_layers(network: Any) -> list[tuple[Any, int]]:
    if hasattr(network, "rpn"):
        layer = network.roi_heads.box_predictor.cls_score
        return [(layer, layer.out_features)]
    head = network.head.classification_head
    if type(network).__name__ == "SSD":
        return [(_last(block), head.num_columns) for block in head.module_list]
    return [(head.cls_logits, head.num_classes)]
