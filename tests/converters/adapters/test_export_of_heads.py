"""Each head as a graph: static shapes, no operator that TensorRT lacks, the same answers for a batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgesmith.converters.adapters import adapt
from edgesmith.converters.compile_check import compile_check
from edgesmith.converters.export import export_module, slim
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.alignment import in_order_of
from edgesmith.sdk.manifest import Batch

pytestmark = pytest.mark.slow
SIZE, CLASSES = (64, 96), 3
PLACES = ((8, 12), (4, 6), (2, 3))
STATIC = {"NonZero", "Loop", "If", "Scan", "NonMaxSuppression", "Shape", "ScatterND"}


class Maps(nn.Module):
    """Raw outputs of the given shapes from an image: seeded mixes of its mean colour."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], activation: dict[str, Any]) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.shapes, self.activation = shapes, activation
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(3, int(np.prod(shape)), generator=random))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        colour = images.mean((2, 3)) * 4 - 2
        found = {}
        for name, shape in self.shapes.items():
            values = torch.matmul(colour, getattr(self, name)).reshape(-1, *shape)
            found[name] = self.activation.get(name, nn.Identity())(values)
        return found


class Detections(Maps):
    """Detections of a module that chose them: boxes from raw values, whole class numbers."""

    def forward(self, images: Tensor) -> Any:
        raw = super().forward(images)["rows"].sigmoid()
        corner, size = raw[..., :2] * 40, raw[..., 2:4] * 20
        number = (raw[..., 5:] * 2.99).floor()
        return torch.cat((corner, corner + size, raw[..., 4:5], number), 2)


def pyramid(channels: int) -> dict[str, tuple[int, ...]]:
    return {f"level{n}": (channels, *place) for n, place in enumerate(PLACES)}


HEADS: dict[str, tuple[nn.Module, str, dict[str, Any]]] = {
    "yolov3": (Maps(pyramid(3 * 8), {}), "yolov3", {}),
    "yolov5": (Maps(pyramid(3 * 8), {}), "yolov5", {}),
    "yolov8": (Maps(pyramid(64 + CLASSES), {}), "yolov8", {}),
    "end_to_end": (Detections({"rows": (20, 6)}, {}), "end_to_end", {}),
    "detr": (
        Maps({"pred_logits": (20, CLASSES), "pred_boxes": (20, 4)}, {"pred_boxes": torch.sigmoid}),
        "detr",
        {},
    ),
    "centernet": (
        Maps({"hm": (CLASSES, 16, 24), "wh": (2, 16, 24), "reg": (2, 16, 24)}, {}), "centernet", {},
    ),
    "cornernet": (
        Maps(
            {
                "tl_heat": (CLASSES, 16, 24), "br_heat": (CLASSES, 16, 24), "tl_tag": (1, 16, 24),
                "br_tag": (1, 16, 24), "tl_off": (2, 16, 24), "br_off": (2, 16, 24),
                "ct_heat": (CLASSES, 16, 24), "ct_regr": (2, 16, 24),
            },
            {},
        ),
        "cornernet",
        {"candidates": 40},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_static_graph_that_answers_the_same(name: str) -> None:
    network, head, options = HEADS[name]
    images = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    adapted = adapt(
        network, head, example=images[:1], task="detect", options=options, nms=None, names=CLASSES,
        python_path=[],
    )  # fmt: skip
    batch = Batch(min=1, opt=3, max=4)
    model = slim(
        export_module(
            adapted.module, network, output_names=adapted.output_names, channels=3, size=SIZE, batch=batch
        )
    )
    assert not STATIC & Counter(node.op_type for node in model.graph.node).keys()
    found = graph_runner(model)(images.numpy())
    with torch.no_grad():
        wanted = [value.numpy() for value in adapted.module(images)]
    boxes, scores = in_order_of(
        (wanted[0], wanted[1]), (found["boxes"], found["scores"]), pixels=1e-2, score=1e-4
    )
    assert np.abs(boxes - wanted[0]).max() < 1e-2
    assert np.abs(scores - wanted[1]).max() < 1e-4
    report = compile_check(model.SerializeToString(), batch=batch, size=SIZE)
    assert report.outcome in ("compiled", "not-installed"), report.errors
