"""The operators that are rewritten one at a time, each by a function of its own arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node


@dataclass(frozen=True)
class Decomposition:
    """One operator written with others.

    ``function`` takes the operator's arguments. ``wanted`` tells a call that has to be rewritten,
    ``possible`` one that can be; where one call of a program cannot, all of them stay.
    """

    function: Callable[..., Any]
    possible: Callable[[Node], bool]
    wanted: Callable[[Node], bool] = lambda node: True


def decompositions() -> dict[Any, Decomposition]:
    """The rewrites that take one operator at a time, by overload; running maxima are a pass of their own."""
    from edgesmith.converters.rewrites import folding, pooling

    aten = torch.ops.aten
    return {
        aten.cumprod.default: Decomposition(pooling.shifted_products, pooling.fixed_length),
        aten.max_pool2d.default: Decomposition(
            pooling.dilated_maxima, pooling.pooled_sides, wanted=pooling.is_dilated
        ),
        aten.adaptive_max_pool2d.default: Decomposition(pooling.window_maxima, pooling.indices_unread),
        aten.col2im.default: Decomposition(folding.transposed_convolution, folding.has_batch),
        aten._upsample_bilinear2d_aa.vec: Decomposition(folding.bilinear_products, folding.fixed_size),
        aten._upsample_bicubic2d_aa.vec: Decomposition(folding.bicubic_products, folding.fixed_size),
    }
