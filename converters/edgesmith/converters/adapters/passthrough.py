"""Tasks whose outputs stay as they are: segmentation maps, and tensors of any kind."""

from __future__ import annotations

import logging
from typing import ClassVar

from torch import Tensor, nn

from edgesmith.converters.adapters.base import Declined, Outputs, tensors_of

logger = logging.getLogger(__name__)


class SegmenterHead(nn.Module):
    """Logits (N, C, H, W). Of several outputs the first is taken, with a note."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset()
    output_names = ("logits",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @classmethod
    def from_outputs(cls, seen: Outputs) -> SegmenterHead | Declined:
        shape = seen.shapes[0]
        if len(shape) != 4 or shape[0] != 1:
            return Declined(f"a segmenter gives logits (N, C, H, W), the first output is {shape}")
        if not seen.tensors[0].is_floating_point():
            return Declined(
                f"logits are floating point, the first output is {seen.tensors[0].dtype}; "
                "leave the argmax out of the module"
            )
        if seen.labels is not None and shape[1] != seen.labels:
            return Declined(f"the output has {shape[1]} classes, the recipe's labels are {seen.labels}")
        if len(seen.tensors) > 1:
            logger.warning(
                "the module gives %d outputs in eval mode (%s): the first is taken as the logits",
                len(seen.tensors),
                seen.describe(),
            )
        return cls(shape[1])

    def describe(self) -> str:
        return f"logit maps of {self.classes} classes"

    def forward(self, raw: object) -> tuple[Tensor]:
        return (tensors_of(raw)[0].float(),)


class TensorsHead(nn.Module):
    """Every output as it is, under its own key: of a dict its keys, of a tuple ``output_0`` ..."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset()
    classes = 0

    def __init__(self, output_names: tuple[str, ...]) -> None:
        super().__init__()
        self.output_names = output_names

    @classmethod
    def from_outputs(cls, seen: Outputs) -> TensorsHead | Declined:
        return cls(tuple(_name(key) for key in seen.keys))

    def describe(self) -> str:
        return f"the tensors {', '.join(self.output_names)}"

    def forward(self, raw: object) -> tuple[Tensor, ...]:
        return tuple(tensors_of(raw))


def _name(key: str) -> str:
    if not key:
        return "output"
    return f"output_{key}" if key[0].isdigit() else key
