"""``model.head_options``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import msgspec

from edgesmith.sdk.errors import RecipeError

Options = TypeVar("Options", bound=msgspec.Struct)
Pixels = Annotated[int, msgspec.Meta(ge=1)]
Length = Annotated[float, msgspec.Meta(gt=0)]


class HeadOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a head may need to be told; each family takes some of these.

    ``strides``: pixels of the input a cell, one number a level. ``anchors``: for each level, finest
    first (in the order of ``strides`` where these are given), width, height, width, height ... in
    pixels. ``bins``: distances a side. ``activated``: objectness and classes went through their
    sigmoid already. ``decoded``: boxes are centre, width and height in pixels already. ``boxes``: how
    decoded boxes are written, ``activation``: what makes scores of logits. ``classes``: their number, where
    the outputs do not show it. ``candidates``: peaks taken of a heatmap. ``maps``: what each output is, in
    order.
    """

    strides: tuple[Pixels, ...] | None = None
    anchors: tuple[tuple[Length, ...], ...] | None = None
    bins: Annotated[int, msgspec.Meta(ge=2)] | None = None
    activated: bool | None = None
    decoded: bool | None = None
    boxes: Literal["xyxy", "cxcywh"] | None = None
    activation: Literal["sigmoid", "softmax"] | None = None
    classes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    candidates: Annotated[int, msgspec.Meta(ge=1, le=3840)] | None = None
    maps: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for index, level in enumerate(self.anchors or ()):
            if not level or len(level) % 2:
                raise ValueError(
                    f"anchors[{index}] has {len(level)} numbers; anchors are pairs: width, height, ..."
                )


def read_options(options: Mapping[str, object]) -> HeadOptions:
    """The options of a detector's head as a struct.

    Raises:
        RecipeError: a name is unknown or a value is not of the right kind.
    """
    return read_as(options, HeadOptions)


def read_as(options: Mapping[str, object], kind: type[Options]) -> Options:
    """The options as a struct of a head's own.

    Raises:
        RecipeError: a name is unknown or a value is not of the right kind.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `int`, got `str` - at `$.strides[0]`": the place is the key.
        what, _, place = str(error).partition(" - at `$")
        key = "model.head_options" + place.rstrip("`")
        raise RecipeError(f"{key}: {what}", key=key) from error
