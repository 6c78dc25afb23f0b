"""Tasks whose outputs stay as they are: segmentation maps, and tensors of any kind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

import msgspec
from torch import Tensor, nn

from edgesmith.converters.adapters.base import Declined, Outputs, tensors_of
from edgesmith.converters.adapters.options import read_as

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


class TensorOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``model.head_options`` of task ``tensor``.

    ``names``: what the outputs are called, in their order. ``alphabet``: the characters of a text recognizer
    whose output ``(N, T, C)`` scores them at each step, the blank first: C is one more than their number.
    """

    names: tuple[str, ...] | None = None
    alphabet: str | tuple[str, ...] | None = None

    @classmethod
    def read(cls, options: Mapping[str, object]) -> TensorOptions:
        """The options as a struct.

        Raises:
            RecipeError: a value is not of the right kind.
        """
        return read_as(options, cls)


class TensorsHead(nn.Module):
    """Every output as it is, under its own key: of a dict its keys, of a tuple ``output_0`` ..."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset(TensorOptions.__struct_fields__)
    classes = 0

    def __init__(self, output_names: tuple[str, ...]) -> None:
        super().__init__()
        self.output_names = output_names

    @classmethod
    def from_outputs(cls, seen: Outputs) -> TensorsHead | Declined:
        given = TensorOptions.read(seen.options)
        if given.names is None:
            names = tuple(_name(key) for key in seen.keys)
        elif len(given.names) == len(seen.keys) == len(set(given.names)):
            names = given.names
        else:
            return Declined(f"head_options.names are {len(given.names)}, the outputs are {len(seen.keys)}")
        if given.alphabet is not None and not any(
            len(shape) == 3 and shape[2] == len(given.alphabet) + 1 for shape in seen.shapes
        ):
            return Declined(
                f"an alphabet of {len(given.alphabet)} characters goes with an output (N, T, "
                f"{len(given.alphabet) + 1}), the blank first"
            )
        return cls(names)

    def describe(self) -> str:
        return f"the tensors {', '.join(self.output_names)}"

    def forward(self, raw: object) -> tuple[Tensor, ...]:
        return tuple(tensors_of(raw))


def _name(key: str) -> str:
    if not key:
        return "output"
    return f"output_{key}" if key[0].isdigit() else key
