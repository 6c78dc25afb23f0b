"""Sums of overlapping patches, and resizing with a filter, as products with constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

_IMAGE_RANK = 4


def transposed_convolution(
    x: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Fold: patches (N, C * kh * kw, L) summed where they overlap, (N, C, H, W).

    A transposed convolution whose weight sends value (i, j) of a patch to place (i, j) of its window.
    """
    tall, wide = (int(k) for k in kernel_size)
    cells = tall * wide
    channels = int(x.shape[1]) // cells
    grid = [
        (int(size) + 2 * int(p) - int(d) * (k - 1) - 1) // int(s) + 1
        for size, p, d, k, s in zip(output_size, padding, dilation, (tall, wide), stride, strict=True)
    ]
    rest = [
        int(size) - ((cell - 1) * int(s) - 2 * int(p) + int(d) * (k - 1) + 1)
        for size, cell, p, d, k, s in zip(
            output_size, grid, padding, dilation, (tall, wide), stride, strict=True
        )
    ]
    weight = torch.eye(cells, dtype=x.dtype, device=x.device).reshape(cells, 1, tall, wide)
    return functional.conv_transpose2d(
        x.reshape(-1, channels * cells, *grid),
        weight.repeat(channels, 1, 1, 1),
        stride=tuple(stride),
        padding=tuple(padding),
        output_padding=tuple(rest),
        groups=channels,
        dilation=tuple(dilation),
    )


def has_batch(node: Node) -> bool:
    """Whether patches come with a batch axis."""
    source = node.args[0]
    assert isinstance(source, Node)
    return len(source.meta["val"].shape) == 3


def fixed_size(node: Node) -> bool:
    """Whether a picture's height and width are fixed, before and after."""
    source = node.args[0]
    assert isinstance(source, Node)
    sides = [*source.meta["val"].shape[-2:], *node.meta["val"].shape[-2:]]
    return len(source.meta["val"].shape) == _IMAGE_RANK and all(isinstance(side, int) for side in sides)


def _products(
    x: Tensor,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
    *,
    mode: str,
) -> Tensor:
    """Resizing along one axis is a linear map of it: y = W_h x W_w^T, with W from the operator itself."""
    rows, columns = (int(side) for side in x.shape[-2:])
    if output_size is not None:
        height, width = (int(side) for side in output_size)
        factors: tuple[float | None, float | None] = (None, None)
    else:
        assert scale_factors is not None
        height, width = int(rows * scale_factors[0]), int(columns * scale_factors[1])
        factors = scale_factors[0], scale_factors[1]
    tall = weights(rows, height, mode, align_corners, factors[0]).to(x.dtype)
    wide = weights(columns, width, mode, align_corners, factors[1]).to(x.dtype)
    return torch.matmul(torch.matmul(tall, x), wide.transpose(0, 1))


def weights(length: int, wanted: int, mode: str, align_corners: bool, factor: float | None) -> Tensor:
    """What each of ``wanted`` values takes of ``length`` ones, (wanted, length).

    The columns are what the operator makes of unit vectors side by side; along an axis that keeps its length
    it is the identity.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    with unset_fake_temporarily(), disable_proxy_modes_tracing():
        resized = _AA[mode](torch.eye(length)[None, None], [wanted, length], align_corners, factor, None)
        found: Tensor = resized[0, 0].contiguous()
        return found


_AA: dict[str, Callable[..., Tensor]] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
}
bilinear_products = partial(_products, mode="bilinear")
bicubic_products = partial(_products, mode="bicubic")
