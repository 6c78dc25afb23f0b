"""YOLOv5: anchors, objectness and classes by sigmoid (Jocher, 2020, doi 10.5281/zenodo.3908559)."""

from __future__ import annotations

from torch import Tensor

from edgesmith.converters.adapters.anchored import AnchoredHead


class Yolov5Head(AnchoredHead):
    """Raw maps of anchors, see :class:`AnchoredHead`. With s = sigmoid:

    x, y = (2 s - 0.5 + (column, row)) * stride     w, h = (2 s)^2 * anchor
    score = s(objectness) * s(class)
    """

    @staticmethod
    def behind_sigmoids(flat: Tensor) -> Tensor:
        return flat

    def places(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        values = flat[..., :4] if self.activated else flat[..., :4].sigmoid()
        centre = (values[..., :2] * 2 - 0.5 + self.cells) * self.strides
        double = values[..., 2:] * 2
        return centre, double * double * self.anchors
