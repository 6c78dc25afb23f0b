"""What an adapter is: a head that turns a family's raw outputs into canonical tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from edgesmith.sdk.errors import SourceError

DETECTOR_OUTPUTS = ("boxes", "scores")


@dataclass(frozen=True)
class Adapted:
    """A module whose forward gives canonical tensors, ready for the export.

    ``module(images)`` returns a tuple, one tensor for each name in ``output_names``. ``family`` is
    the name of the adapter (``module:function`` for a decode of the user's own). ``classes`` is
    the number of classes, 0 where the task has none.
    """

    module: nn.Module
    output_names: tuple[str, ...]
    family: str
    classes: int


@dataclass(frozen=True)
class Declined:
    """The outputs are not those of the family, and why, in words for the user."""

    reason: str


class Undecided(Declined):
    """They may be those of the family, but what would tell is not known: ``auto`` is in doubt."""


@dataclass(frozen=True)
class Outputs:
    """What the user's module gave for one example of ``size`` (H, W), and what else is known.

    ``tensors`` are the tensors of the result in order, however it was nested, ``keys`` where each
    stood (``0``, ``out``, ``1.boxes``). ``raw`` is the result itself. ``labels`` is the number of
    class names, None where the recipe has none; ``options`` is ``model.head_options``.
    """

    raw: object
    tensors: tuple[Tensor, ...]
    keys: tuple[str, ...]
    size: tuple[int, int]
    labels: int | None
    options: Mapping[str, object]

    @classmethod
    def from_run(
        cls, module: nn.Module, example: Tensor, *, labels: int | None, options: Mapping[str, object]
    ) -> Outputs:
        """Run ``module`` once on ``example`` (1, C, H, W), in eval mode.

        Raises:
            SourceError: the module fails on it, or gives no tensor.
        """
        module.eval()
        try:
            with torch.no_grad():
                raw = module(example)
        except Exception as error:
            raise SourceError(
                f"{type(module).__name__} fails on an input of shape {tuple(example.shape)}: {error}. "
                "Check input.size and input.color, and that forward takes one image tensor"
            ) from error
        found = list(flatten(raw))
        if not found:
            raise SourceError(
                f"{type(module).__name__} returned {type(raw).__name__} without a tensor in it; "
                "its forward must return a tensor, or a tuple, list or dict of tensors"
            )
        keys, tensors = zip(*found, strict=True)
        height, width = int(example.shape[-2]), int(example.shape[-1])
        return cls(raw, tensors, keys, (height, width), labels, options)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each tensor."""
        return tuple(tuple(t.shape) for t in self.tensors)

    def describe(self) -> str:
        """The shapes, for a message."""
        named = (
            f"{key} {shape}" if not key.isdigit() and key else str(shape)
            for key, shape in zip(self.keys, self.shapes, strict=True)
        )
        return ", ".join(named)


class Head(Protocol):
    # A protocol, not a base class: a head is a torch module already, which is base enough. What
    # the rest needs of it is three attributes and the call.
    """Raw outputs of one family to canonical tensors; a torch module without weights of its own.

    Where the network gives one box an object, so that nothing needs suppressing, the head has
    ``ONE_BOX_AN_OBJECT = True``, and a recipe that suppresses all the same is told.
    """

    @property
    def output_names(self) -> tuple[str, ...]:
        """One name for each tensor that it gives."""

    @property
    def classes(self) -> int:
        """Number of classes, 0 where there are none."""

    def __call__(self, raw: object, /) -> tuple[Tensor, ...]:
        """The module's result, as it returned it, to one tensor a name in ``output_names``."""

    def describe(self) -> str:
        """What it took the outputs for, for a message: levels, strides, classes."""


class Family(Protocol):
    # A protocol, so that a class with a class method is one, and so is anything else in the table.
    """Knows one family of heads by its outputs."""

    OPTIONS: ClassVar[frozenset[str]]

    @classmethod
    def from_outputs(cls, seen: Outputs) -> Head | Declined:
        """The head that decodes such outputs, or why there is none.

        Raises:
            RecipeError: an option's value is not of the right kind.
        """


class WithHead(nn.Module):
    """The user's module with a head after it: images (N, C, H, W) to canonical tensors."""

    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.network(images))


def flatten(raw: object, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a nested result with the place of each, depth first; other values are passed over."""
    if isinstance(raw, Tensor):
        yield key, raw
        return
    if isinstance(raw, Mapping):
        parts: Sequence[tuple[object, object]] = list(raw.items())
    elif isinstance(raw, Sequence) and not isinstance(raw, str | bytes):
        parts = list(enumerate(raw))
    else:
        return
    for name, part in parts:
        yield from flatten(part, f"{key}.{name}" if key else str(name))


def tensors_of(raw: object) -> list[Tensor]:
    """Tensors of a nested result, depth first."""
    return [tensor for _, tensor in flatten(raw)]
