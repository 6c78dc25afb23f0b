"""2:4 sparsity: of four weights along the input channels two are zero, which sparse tensor cores skip.

Which channels share a group of four is ours to choose: they are permuted so that the weights that remain
are as large as can be (Pool and Yu 2021, channel permutations for N:M sparsity), and the network computes
the same.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgesmith.converters.passes.sparsity import FOUR, KEPT
from edgesmith.converters.prune.groups import TOLERANCE, Found, Group, Member, _tensors

MOST_ROWS = 2048  # of a layer's weights that the search looks at
MOST_SWAPS = 400
GAIN = 1e-6  # of the kept weight; less is rounding


@dataclass(frozen=True)
class Sparse:
    """One layer: the share (0..1) of its weights' size that remains, and what it was without permutation."""

    layer: str
    kept: float
    unpermuted: float


def eligible(network: nn.Module, untouched: Sequence[str] = ()) -> dict[str, nn.Conv2d | nn.Linear]:
    """Layers whose input channels come in fours; depthwise and grouped ones have none to choose from."""
    found: dict[str, nn.Conv2d | nn.Linear] = {}
    for name, layer in network.named_modules():
        if any(fnmatch.fnmatch(name, pattern) for pattern in untouched):
            continue
        dense = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if dense and isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.shape[1] % FOUR == 0:
            found[name] = layer
    return found


def mask_of(weight: torch.Tensor) -> torch.Tensor:
    """1 at the two largest of every four weights along axis 1, else 0; ``(O, I, ...)``."""
    last = weight.detach().movedim(1, -1)
    fours = last.reshape(*last.shape[:-1], -1, FOUR)
    best = fours.abs().topk(KEPT, dim=-1).indices
    mask = torch.zeros_like(fours).scatter_(-1, best, 1.0)
    return mask.reshape(last.shape).movedim(-1, 1).contiguous()


class Masks:
    """The masks of some weights; calling it sets what is masked to zero again."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._pairs = [(weight, mask_of(weight)) for weight in weights]

    @torch.no_grad()
    def __call__(self) -> None:
        for weight, mask in self._pairs:
            weight.mul_(mask.to(weight.device))


def sparsify(
    network: nn.Module, found: Found, example: torch.Tensor, untouched: Sequence[str] = ()
) -> tuple[Callable[[], None], list[Sparse]]:
    """Permute the channels of a network, in place, then mask its weights.

    Args:
        network: in eval mode.
        found: its groups, for the permutation.
        example: one input, to prove the permutation.
        untouched: name patterns of layers that stay dense.

    Returns:
        What has to be called after every change of the weights, and the layers.
    """
    layers = eligible(network, untouched)
    before = {name: _kept(layer.weight) for name, layer in layers.items()}
    with torch.no_grad():
        wanted = _tensors(network(example))
        for group in found.groups:
            _permute(network, group, layers)
        got = _tensors(network(example))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=TOLERANCE * max(1e-6, float(b.abs().max()))), "a permutation"
    told = [Sparse(name, _kept(layer.weight), before[name]) for name, layer in layers.items()]
    masks = Masks(layer.weight for layer in layers.values())
    masks()
    return masks, told


def _kept(weight: torch.Tensor) -> float:
    total = float(weight.detach().abs().sum())
    return float((weight.detach().abs() * mask_of(weight)).sum()) / total if total else 1.0


def _permute(network: nn.Module, group: Group, sparse: dict[str, nn.Conv2d | nn.Linear]) -> None:
    """Bring a group's channels into the order in which its readers keep the most."""
    layers = dict(network.named_modules())
    straight = tuple(range(group.width))
    if group.width % FOUR or any(m.channels != straight or m.roots != straight for m in group.members):
        return
    for member in group.members:
        layer = layers[member.name]
        if layer.get_parameter("weight").shape[_axis(layer, member)] != group.width:
            return  # a part of a concatenation
    readers = [m.name for m in group.members if not m.makes and m.name in sparse]
    if not readers:
        return
    rows = torch.cat([layers[name].weight.detach().abs().movedim(1, -1).flatten(0, -2) for name in readers])
    if len(rows) > MOST_ROWS:  # the rows with the most weight decide
        rows = rows[rows.sum(1).topk(MOST_ROWS).indices]
    order = torch.from_numpy(best_order(rows.numpy()))
    for member in group.members:
        layer = layers[member.name]
        for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if name == "weight":
                tensor.data.copy_(tensor.detach().index_select(_axis(layer, member), order))
            elif member.makes and tensor.ndim:
                tensor.data.copy_(tensor.detach().index_select(0, order))


def _axis(layer: nn.Module, member: Member) -> int:
    """The axis of the layer's weight that holds the group's channels."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return 0  # a depthwise filter makes and reads its channel at once
    return 0 if member.makes != isinstance(layer, nn.ConvTranspose2d) else 1


def best_order(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """An order of the columns in which the two largest of every four, summed over the rows, are the most.

    Two columns of different fours are swapped as long as that gains, the best swap first.

    Args:
        rows: sizes of weights ``(R, C)``, C a multiple of four.
    """
    columns = np.arange(rows.shape[1], dtype=np.int64)
    count = len(columns) // FOUR
    gains: dict[tuple[int, int], tuple[float, int, int]] = {}
    stale = {(a, b) for a in range(count) for b in range(a + 1, count)}
    least = GAIN * float(rows.sum())
    for _ in range(MOST_SWAPS):
        for pair in stale:
            gains[pair] = _best_swap(rows, columns, *pair)
        if not gains:
            break
        (a, b), (gain, i, j) = max(gains.items(), key=lambda item: item[1][0])
        if gain <= least:
            break
        columns[[a * FOUR + i, b * FOUR + j]] = columns[[b * FOUR + j, a * FOUR + i]]
        stale = {pair for pair in gains if a in pair or b in pair}
    return columns


def _best_swap(
    rows: NDArray[np.float32], columns: NDArray[np.int64], a: int, b: int
) -> tuple[float, int, int]:
    """What the best swap between two fours gains, and which of their columns it swaps."""
    left = rows[:, columns[a * FOUR : (a + 1) * FOUR]]
    right = rows[:, columns[b * FOUR : (b + 1) * FOUR]]
    now = _largest(left) + _largest(right)
    best = (0.0, 0, 0)
    for i in range(FOUR):
        for j in range(FOUR):
            new_left, new_right = left.copy(), right.copy()
            new_left[:, i], new_right[:, j] = right[:, j], left[:, i]
            gain = _largest(new_left) + _largest(new_right) - now
            best = max(best, (gain, i, j))
    return best


def _largest(four: NDArray[np.float32]) -> float:
    return float(np.partition(four, FOUR - KEPT, axis=1)[:, FOUR - KEPT :].sum(dtype=np.float64))
