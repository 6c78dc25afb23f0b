"""SSD and SSDlite of torchvision (Liu et al., 2016, arXiv 1512.02325)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.torchvision.base import Deltas, Setup, StaticDetector
from edgesmith.sdk.errors import RecipeError


class StaticSsd(StaticDetector):
    """Every default box, K = 8,732 of SSD300 and 3,234 of SSDlite320; class scores by softmax.

    torchvision takes its best 400 (300) boxes of each class into the suppression; here all may enter, up to
    ``nms.candidates``.

    Raises:
        RecipeError: the input is not of the one size that the default boxes are made for.
    """

    defaults: Tensor

    def __init__(self, network: nn.Module, setup: Setup) -> None:
        width, height = network.transform.fixed_size  # type: ignore[union-attr, misc]
        if setup.size != (height, width):
            raise RecipeError(
                f"recipe: input.size: {list(setup.size)}, but this SSD takes [{height}, {width}] (height, "
                "width), the size that its default boxes are made for",
                key="input.size",
            )
        columns = int(network.head.classification_head.num_columns)  # type: ignore[union-attr, arg-type]
        super().__init__(network, setup, columns=columns, background=True)
        self.coder = Deltas(network.box_coder)
        maps = list(self.probe().values())
        self.register_buffer("defaults", self.anchors(network.anchor_generator, maps)[None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.network.head(list(self.features(images).values()))
        boxes = self.clipped(self.coder.boxes(raw["bbox_regression"].float(), self.defaults))
        return boxes, self.foreground(torch.softmax(raw["cls_logits"].float(), -1))
