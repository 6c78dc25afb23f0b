"""torchvision's detectors, rebuilt: the same detections as its own forward, and both suppressions agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters.adapters import adapt
from edgesmith.converters.adapters.nms_graph import NMS_OUTPUTS
from edgesmith.converters.adapters.torchvision import rebuilt
from edgesmith.converters.adapters.torchvision.rcnn import FastRcnn, StaticRcnn
from edgesmith.sdk.decode.nms import suppress
from edgesmith.sdk.manifest import Nms

KINDS = ("ssd", "retinanet", "fcos", "faster", "mask")
SIZE = (96, 128)
LIBRARY = {  # with the smaller sizes that robots use, where the library's own is 800 x 1333
    "ssdlite320_mobilenet_v3_large": (320, 320),
    "ssd300_vgg16": (300, 300),
    "retinanet_resnet50_fpn": (480, 640),
    "retinanet_resnet50_fpn_v2": (480, 640),
    "fcos_resnet50_fpn": (480, 640),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 320),
    "fasterrcnn_mobilenet_v3_large_fpn": (480, 640),
    "fasterrcnn_resnet50_fpn": (480, 640),
    "fasterrcnn_resnet50_fpn_v2": (480, 640),
    "maskrcnn_resnet50_fpn": (480, 640),
    "maskrcnn_resnet50_fpn_v2": (480, 640),
}
REAL = 20


def drawn(count: int) -> list[Tensor]:
    """Seeded pseudo-images (1, 3, H, W) in 0..1."""
    frames = pseudo_images(count, 3, SIZE)
    return [torch.from_numpy(np.ascontiguousarray(f[..., ::-1])).permute(2, 0, 1)[None] / 255 for f in frames]


def settings(network: Any, where: Any = "host") -> Nms:
    """torchvision's own thresholds, a hair below its score so that a score on it does not count as lost."""
    heads = getattr(network, "roi_heads", network)
    heads.score_thresh = 0.05
    most = 5000 if where == "host" else 500
    return Nms(
        where=where, score=0.049, evaluation_score=0.049, iou=heads.nms_thresh, classes="all",
        candidates=most, max_detections=heads.detections_per_img,
    )  # fmt: skip


def adapted(network: Any, image: Tensor, nms: Nms | None, **options: Any) -> Any:
    return adapt(
        network, "auto", example=image, task="detect", options=options, nms=nms, names=None, python_path=[]
    ).module


def columns(network: Any) -> int:
    """1 where torchvision's labels count the background and ours do not."""
    return int(hasattr(network, "rpn") or type(network).__name__ == "SSD")


def raw_answer(network: Any, image: Tensor) -> dict[str, Any]:
    """torchvision's detections with its masks as they leave the mask head, not pasted."""
    with torch.no_grad():
        images, _ = network.transform([image[0]])
        features = network.backbone(images.tensors)
        proposals, _ = network.rpn(images, features)
        (found,), _ = network.roi_heads(features, proposals, images.image_sizes)
    found = {name: value.numpy() for name, value in found.items()}
    return {**found, "masks": found["masks"][:, 0]}


def rows(outputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The first image of a graph with suppression: what is no padding."""
    named = dict(zip((*NMS_OUTPUTS, "masks"), outputs, strict=False))
    count = int(named["count"][0])
    return {n: named[n][0, :count].numpy() for n in ("boxes", "scores", "labels", "masks") if n in named}


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_one_finds_what_torchvision_finds(
    kind: str, tiny: Any, alive: Any, tuned: Any, own_answer: Any, same_detections: Any
) -> None:
    images = drawn(4)
    network = alive(tiny(kind), images)
    nms = settings(network)
    module = adapted(network, images[0], nms, **({"masks": False} if kind == "mask" else {}))
    found = 0
    for image in images:
        tuned(network, image)
        with torch.no_grad():
            boxes, scores = module(image)
        theirs = own_answer(network, image)
        mine = suppress(boxes[0].numpy(), scores[0].numpy(), nms)
        found += same_detections(theirs, *mine, columns(network))
    assert found > 40


@pytest.mark.parametrize("classes", ["all", "best"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_suppression_in_the_graph_equals_the_one_on_the_host(
    kind: str, classes: Any, tiny: Any, alive: Any
) -> None:
    images = drawn(3)
    network = alive(tiny(kind), images)
    graph = msgspec.structs.replace(settings(network, "graph"), classes=classes)
    host = msgspec.structs.replace(graph, where="host")
    inside = adapted(network, images[0], graph)
    outside = adapted(network, images[0], host, **({"masks": False} if kind == "mask" else {}))
    with torch.no_grad():
        out, (boxes, scores) = inside(torch.cat(images)), outside(torch.cat(images))
    named = dict(zip(NMS_OUTPUTS, out, strict=False))
    found = 0
    for number in range(len(images)):
        wanted = suppress(boxes[number].numpy(), scores[number].numpy(), host, score=host.evaluation_score)
        assert named["converged"][number]
        count = int(named["count"][number])
        for name, value in zip(("boxes", "scores", "labels"), wanted, strict=True):
            assert np.array_equal(named[name][number, :count].numpy(), np.asarray(value))
            assert not named[name][number, count:].any()
        found += count
    assert found > 20


def test_masks_are_those_of_the_boxes(tiny: Any, alive: Any, tuned: Any, same_detections: Any) -> None:
    images = drawn(3)
    network = alive(tiny("mask"), images)
    module = adapted(network, images[0], settings(network, "graph"))
    for image in images:
        tuned(network, image)
        with torch.no_grad():
            outputs = module(image)
        assert outputs[-1].shape == (1, 100, 28, 28)
        mine = rows(outputs)
        assert not outputs[-1][0, len(mine["boxes"]) :].any()
        theirs = raw_answer(network, image)
        assert theirs["masks"].std() > 0.1
        assert same_detections(theirs, mine["boxes"], mine["scores"], mine["labels"], 1, mine["masks"]) > 5


def test_fast_rcnn_takes_its_regions_from_outside(
    tiny: Any, alive: Any, tuned: Any, same_detections: Any
) -> None:
    image = drawn(1)[0]
    network = alive(tiny("faster"), drawn(3))
    tuned(network, image)
    nms = settings(network)
    with torch.no_grad():
        images, _ = network.transform([image[0]])
        features = network.backbone(images.tensors)
        (regions,), _ = network.rpn(images, features)
        (theirs,), _ = network.roi_heads(features, [regions], images.image_sizes)
    theirs = {name: value.numpy() for name, value in theirs.items()}
    detector = rebuilt(network, example=image, options={}, nms=nms, names=None)
    assert isinstance(detector, StaticRcnn)
    # Empty regions fill up a list that is shorter than the graph's: here one in front and ten behind.
    filled = torch.cat((torch.zeros(1, 4), regions, torch.zeros(10, 4)))
    with torch.no_grad():
        boxes, scores = FastRcnn(detector)(image, filled[None])
    mine = suppress(boxes[0].numpy(), scores[0].numpy(), nms)
    assert same_detections(theirs, *mine, 1) > 10

    fixed = [tuple(float(v) for v in region) for region in regions]
    module = adapted(network, image, nms, proposals=fixed)
    with torch.no_grad():
        boxes, scores = module(image)
    again = suppress(boxes[0].numpy(), scores[0].numpy(), nms)
    for a, b in zip(again, mine, strict=True):
        assert np.allclose(np.asarray(a), np.asarray(b), atol=1e-4)


@pytest.mark.assets
def test_ssdlite_finds_what_torchvision_finds(
    inputs: Callable[..., list[Tensor]], alive: Any, tuned: Any, own_answer: Any, same_detections: Any
) -> None:
    _library("ssdlite320_mobilenet_v3_large", 2, inputs, alive, tuned, own_answer, same_detections)


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_own_find_the_same_on_real_images(
    name: str, inputs: Any, alive: Any, tuned: Any, own_answer: Any, same_detections: Any
) -> None:
    _library(name, REAL, inputs, alive, tuned, own_answer, same_detections)


def _library(name: str, count: int, inputs: Any, alive: Any, tuned: Any, own: Any, same: Any) -> None:
    from torchvision.models import get_model

    size = LIBRARY[name]
    network = alive(get_model(name, weights=None, weights_backbone=None), inputs(size, 3, "coco_calib"))
    masked = name.startswith("mask")
    nms = settings(network, "graph" if masked else "host")
    images = inputs(size, count)
    module = adapted(network, images[0], nms)
    found = 0
    for image in images:
        tuned(network, image)
        with torch.no_grad():
            outputs = module(image)
        if masked:
            mine = rows(outputs)
            theirs = raw_answer(network, image)
            found += same(theirs, mine["boxes"], mine["scores"], mine["labels"], 1, mine["masks"])
        else:
            boxes, scores, labels = suppress(outputs[0][0].numpy(), outputs[1][0].numpy(), nms)
            found += same(own(network, image), boxes, scores, labels, columns(network))
    assert found > 10 * count
