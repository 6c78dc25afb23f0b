"""YOLOv3: anchors with exponential sizes (Redmon and Farhadi, 2018, arXiv 1804.02767, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.converters.adapters.anchored import AnchoredHead


class Yolov3Head(AnchoredHead):
    """Raw maps of anchors, see :class:`AnchoredHead`. With s = sigmoid:

        x, y = (s + (column, row)) * stride     w, h = exp * anchor
        score = s(objectness) * s(class)

    The maps look like those of YOLOv5, so ``auto`` takes neither unless the module's own decode is there too.
    """

    @staticmethod
    def behind_sigmoids(flat: Tensor) -> Tensor:
        return torch.cat((flat[..., :2], flat[..., 4:]), -1)

    def places(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        offset = flat[..., :2] if self.activated else flat[..., :2].sigmoid()
        return (offset + self.cells) * self.strides, flat[..., 2:4].exp() * self.anchors
