"""Maxima and products over windows, by slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

aten = torch.ops.aten


def shifted_products(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """cumprod with doubling steps: y_k[i] = y_k-1[i] * y_k-1[i - 2^k]."""
    y = x if dtype is None else x.to(dtype)
    length, step = int(y.shape[dim]), 1
    while step < length:
        product = y.narrow(dim, step, length - step) * y.narrow(dim, 0, length - step)
        y = torch.cat((y.narrow(dim, 0, step), product), dim)
        step *= 2
    return y


def fixed_length(node: Node) -> bool:
    """Whether the axis that cumprod runs along has a fixed length."""
    source = node.args[0]
    assert isinstance(source, Node)
    assert isinstance(node.args[1], int)
    return isinstance(source.meta["val"].shape[node.args[1]], int)


def is_dilated(node: Node) -> bool:
    """Whether a max_pool2d has a dilation, which TensorRT refuses."""
    given = node.args[4] if len(node.args) > 4 else node.kwargs.get("dilation", 1)
    return any(value != 1 for value in _pair(given))


def pooled_sides(node: Node) -> bool:
    """Whether a dilated max_pool2d has a fixed size, and no ceil_mode, so that its slices are known."""
    source = node.args[0]
    assert isinstance(source, Node)
    ceil = node.args[5] if len(node.args) > 5 else node.kwargs.get("ceil_mode", False)
    return not ceil and all(isinstance(side, int) for side in source.meta["val"].shape[-2:])


def dilated_maxima(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """max_pool2d: along each axis the maximum of one strided slice for each place in the kernel."""
    if all(value == 1 for value in _pair(dilation)):
        values: Tensor = aten.max_pool2d_with_indices.default(
            x, kernel_size, stride, padding, dilation, ceil_mode
        )[0]
        return values
    kernel, pad, spread = _pair(kernel_size), _pair(padding), _pair(dilation)
    strides = _pair(stride) if len(stride) else kernel
    y = functional.pad(x, (pad[1], pad[1], pad[0], pad[0]), value=float("-inf"))
    for axis in (0, 1):
        reach = spread[axis] * (kernel[axis] - 1) + 1
        count = (int(y.shape[axis - 2]) - reach) // strides[axis] + 1
        last = (count - 1) * strides[axis] + 1
        parts = [
            aten.slice.Tensor(y, axis - 2, at * spread[axis], at * spread[axis] + last, strides[axis])
            for at in range(kernel[axis])
        ]
        y = parts[0]
        for part in parts[1:]:
            y = torch.maximum(y, part)
    return y


def indices_unread(node: Node) -> bool:
    """Whether a pooling's indices are read by nobody, and its input has a fixed size."""
    source = node.args[0]
    assert isinstance(source, Node)
    fixed = all(isinstance(side, int) for side in source.meta["val"].shape[-2:])
    return fixed and all(user.args[1] == 0 or not user.users for user in node.users)


def window_maxima(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """adaptive_max_pool2d: the windows of cell i are floor(i n / m) to ceil((i + 1) n / m); no indices."""
    rows, columns = (int(side) for side in x.shape[-2:])
    height, width = _pair(output_size)
    lines = [x[..., low:high, :].amax(-2, keepdim=True) for low, high in _windows(rows, height)]
    y = torch.cat(lines, -2)
    y = torch.cat([y[..., low:high].amax(-1, keepdim=True) for low, high in _windows(columns, width)], -1)
    return y, torch.zeros_like(y, dtype=torch.int64)


def _windows(length: int, cells: int) -> list[tuple[int, int]]:
    return [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return int(numbers[0]), int(numbers[-1])
