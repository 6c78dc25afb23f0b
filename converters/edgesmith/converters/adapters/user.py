"""A decode of the user's own, ``module:function``, traced into the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Outputs, tensors_of
from edgesmith.converters.adapters.canonical import shape_fault
from edgesmith.converters.sources.base import import_attribute, told
from edgesmith.sdk.errors import RecipeError, SourceError

Decode = Callable[..., Any]


class UserHead(nn.Module):
    """Calls ``function(outputs, **head_options)`` with the module's result as it was returned.

    The function gives boxes (N, K, 4) xyxy in input pixels and scores (N, K, C) in 0..1, as a pair
    or a dict with these names, with torch operators that ``torch.export`` can follow.
    """

    output_names = DETECTOR_OUTPUTS

    def __init__(self, function: Decode, options: Mapping[str, object]) -> None:
        super().__init__()
        self.function, self.options = function, dict(options)
        self.classes = 0

    @classmethod
    def from_outputs(cls, path: str, seen: Outputs, python_path: Sequence[Path]) -> UserHead:
        """The decode at ``path``, tried on what the module gave.

        Raises:
            RecipeError: it is not a function.
            SourceError: it cannot be imported, fails, or gives something other than boxes and scores.
        """
        head = cls(load_function(path, python_path), seen.options)
        try:
            with torch.no_grad():
                boxes, scores = head(seen.raw)
        except SourceError:
            raise
        except Exception as error:
            what = f"the decode {path} fails on the module's outputs ({seen.describe()})"
            raise SourceError(told(what, error)) from error
        fault = shape_fault(boxes, scores, seen.labels)
        if fault is not None:
            raise SourceError(f"the decode {path} does not give canonical boxes and scores: {fault}")
        head.classes = int(scores.shape[2])
        return head

    def describe(self) -> str:
        return f"{self.classes} classes by a decode of your own"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        result = self.function(raw, **self.options)
        if isinstance(result, Mapping) and set(DETECTOR_OUTPUTS) <= set(result):
            result = (result["boxes"], result["scores"])
        tensors = tensors_of(result)
        if len(tensors) != 2:
            raise SourceError(
                f"the decode {self.function.__name__} must return boxes and scores, "
                f"it returned {len(tensors)} tensor{'' if len(tensors) == 1 else 's'}"
            )
        return tensors[0].float(), tensors[1].float()


def load_function(path: str, python_path: Sequence[Path]) -> Decode:
    """Import ``module:function``, looking in ``python_path`` before the usual places.

    Raises:
        SourceError: the module cannot be imported or has no such name.
        RecipeError: the name is not a function; ``key`` is ``model.head``.
    """
    function = import_attribute(path, python_path, "model.head")
    if not callable(function):
        raise RecipeError(
            f"model.head: {path} is {type(function).__name__}, not a function from raw outputs to "
            "boxes and scores",
            key="model.head",
        )
    found: Decode = function
    return found
