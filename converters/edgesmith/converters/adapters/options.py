"""``model.head_options``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from edgesmith.sdk.errors import RecipeError

Pixels = Annotated[int, msgspec.Meta(ge=1)]
Length = Annotated[float, msgspec.Meta(gt=0)]


class HeadOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a head may need to be told; each family takes some of these.

    ``strides``: pixels of the input a cell, one number a level. ``anchors``: for each level, finest
    first (in the order of ``strides`` where these are given), width, height, width, height ... in
    pixels. ``bins``: distances a side. ``activated``: objectness and classes went through their
    sigmoid already. ``decoded``: boxes are centre, width and height in pixels already.
    """

    strides: tuple[Pixels, ...] | None = None
    anchors: tuple[tuple[Length, ...], ...] | None = None
    bins: Annotated[int, msgspec.Meta(ge=2)] | None = None
    activated: bool | None = None
    decoded: bool | None = None

    def __post_init__(self) -> None:
        for index, level in enumerate(self.anchors or ()):
            if not level or len(level) % 2:
                raise ValueError(
                    f"anchors[{index}] has {len(level)} numbers; anchors are pairs: width, height, ..."
                )


def read_options(options: Mapping[str, object]) -> HeadOptions:
    """The options as a struct.

    Raises:
        RecipeError: a name is unknown or a value is not of the right kind.
    """
    try:
        return msgspec.convert(dict(options), HeadOptions)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `int`, got `str` - at `$.strides[0]`": the place is the key.
        what, _, place = str(error).partition(" - at `$")
        key = "model.head_options" + place.rstrip("`")
        raise RecipeError(f"{key}: {what}", key=key) from error
