"""Classifiers: one tensor of logits."""

from __future__ import annotations

import logging
from typing import ClassVar

from torch import Tensor, nn

from edgesmith.converters.adapters.base import Declined, Outputs, tensors_of

logger = logging.getLogger(__name__)


class ClassifierHead(nn.Module):
    """Logits (N, C). Of several outputs the first is taken (the others are auxiliary), with a note."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset()
    output_names = ("logits",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @classmethod
    def from_outputs(cls, seen: Outputs) -> ClassifierHead | Declined:
        shape = seen.shapes[0]
        if len(shape) != 2 or shape[0] != 1 or shape[1] < 1:
            advice = "; flatten it to (N, C) in the module" if shape[2:] == (1, 1) else ""
            return Declined(f"a classifier gives logits (N, C), the first output is {shape}{advice}")
        if not seen.tensors[0].is_floating_point():
            return Declined(f"logits are floating point, the first output is {seen.tensors[0].dtype}")
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
        return f"logits of {self.classes} classes"

    def forward(self, raw: object) -> tuple[Tensor]:
        return (tensors_of(raw)[0].float(),)
