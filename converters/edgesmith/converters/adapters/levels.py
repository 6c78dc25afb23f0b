"""Feature maps of a detector: which stride each has, and where its cells lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgesmith.converters.adapters.base import Declined, Undecided

_POWERS = tuple(2**n for n in range(1, 8))


@dataclass(frozen=True)
class Level:
    """One map of ``rows`` x ``columns`` cells, each ``stride`` pixels of the input wide and high."""

    rows: int
    columns: int
    stride: int

    @property
    def cells(self) -> int:
        """How many cells it has."""
        return self.rows * self.columns


def levels_from_maps(
    maps: Sequence[tuple[int, int]], size: tuple[int, int], strides: tuple[int, ...] | None
) -> tuple[Level, ...] | Declined:
    """Levels of maps with ``(rows, columns)``, for an input of ``size`` (H, W).

    A stride is H / rows = W / columns where that is a power of two. Networks round up odd sizes,
    so next the power of two that fits when rounded up is taken, if there is just one, and if there
    is none, H / rows = W / columns. Given ``strides`` are checked against the maps.
    """
    if strides is not None:
        if len(strides) != len(maps):
            return Declined(f"{len(maps)} maps, but head_options.strides has {len(strides)} numbers")
        for (rows, columns), stride in zip(maps, strides, strict=True):
            if not (_covers(size[0], stride, rows) and _covers(size[1], stride, columns)):
                return Declined(
                    f"a map of {rows} x {columns} has no stride {stride} on {size[0]} x {size[1]}"
                )
        return tuple(Level(r, c, s) for (r, c), s in zip(maps, strides, strict=True))
    found = []
    for rows, columns in maps:
        derived = _stride(rows, columns, size)
        if derived is None:
            return Declined(
                f"no one stride makes a map of {rows} x {columns} from {size[0]} x {size[1]}; "
                "if there is one, say it in head_options.strides"
            )
        found.append(Level(rows, columns, derived))
    if len({level.stride for level in found}) != len(found):
        return Declined(f"two maps have the same stride: {[level.stride for level in found]}")
    return tuple(found)


def levels_from_count(
    count: int, size: tuple[int, int], strides: tuple[int, ...] | None
) -> tuple[Level, ...] | Declined:
    """Levels of ``count`` cells that were joined to one axis, level by level.

    Strides 8, 16, 32 and 8, 16, 32, 64 are tried unless ``strides`` are given.
    """
    for trial in (strides,) if strides is not None else ((8, 16, 32), (8, 16, 32, 64)):
        levels = tuple(Level(math.ceil(size[0] / s), math.ceil(size[1] / s), s) for s in trial)
        if sum(level.cells for level in levels) == count:
            return levels
    tried = "head_options.strides" if strides is not None else "strides 8, 16, 32 (and 64)"
    return Declined(f"{count} rows are not the cells of {tried} on {size[0]} x {size[1]}")


def cells_of(levels: Sequence[Level], *, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Cell numbers ``(1, K, 2)`` as x, y and strides ``(1, K, 1)``, float32, K over all levels.

    Cells run row by row. ``repeat`` puts that many copies of a level one after another (anchors).
    """
    cells, strides = [], []
    for level in levels:
        y, x = torch.meshgrid(torch.arange(level.rows), torch.arange(level.columns), indexing="ij")
        grid = torch.stack((x, y), -1).reshape(1, -1, 2).repeat(1, repeat, 1)
        cells.append(grid.float())
        strides.append(torch.full((1, level.cells * repeat, 1), float(level.stride)))
    return torch.cat(cells, 1), torch.cat(strides, 1)


def joined(maps: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
    """Maps (N, channels, rows, columns) to float32 (N, K, channels), level after level, row by row."""
    # The batch is the axis left open (-1): the exported Reshape then has a constant shape.
    rows = [m.reshape(-1, m.shape[1], level.cells) for m, level in zip(maps, levels, strict=True)]
    return torch.cat(rows, 2).transpose(1, 2).float()


def describe_levels(levels: Sequence[Level], classes: int) -> str:
    """For a message: ``3 levels with strides 8, 16, 32 and 80 classes``."""
    strides = ", ".join(str(level.stride) for level in levels)
    many = "1 level with stride" if len(levels) == 1 else f"{len(levels)} levels with strides"
    return f"{many} {strides} and {classes} class{'' if classes == 1 else 'es'}"


def maps_of(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, int]] | Declined:
    """``(rows, columns)`` of maps (1, channels, rows, columns) that agree in their channels."""
    if any(len(shape) != 4 for shape in shapes):
        return Declined("it takes maps (N, channels, rows, columns)")
    if len({shape[1] for shape in shapes}) != 1:
        return Declined(f"the maps have different channels: {[shape[1] for shape in shapes]}")
    return [(shape[2], shape[3]) for shape in shapes]


def classes_declined(classes: int, labels: int | None, arithmetic: str) -> Declined | None:
    """Why a number of classes cannot be; None where it can."""
    if classes < 1:
        return Declined(f"{arithmetic} leaves no class")
    if labels is not None and classes != labels:
        return Declined(f"{arithmetic} makes {classes} classes, the recipe's labels are {labels}")
    return None


def are_activated(values: Sequence[Tensor], told: bool | None) -> bool | Declined:
    """Whether objectness and class values went through a sigmoid already.

    One value outside 0..1 proves that they did not. Without such a value only the recipe can
    tell (``told``): logits may lie in 0..1 by chance.
    """
    inside = all(bool(((v >= 0) & (v <= 1)).all()) for v in values)
    if told is None:
        if not inside:
            return False
        return Undecided(
            "its objectness and class values all lie in 0..1 on the example, so they may be logits or not; "
            "say head_options.activated = true or false"
        )
    if told and not inside:
        return Declined("head_options.activated is true, but values outside 0..1 show that these are logits")
    return told


def _stride(rows: int, columns: int, size: tuple[int, int]) -> int | None:
    height, width = size
    whole = height // rows if height * columns == width * rows and height % rows == 0 else None
    fits = [s for s in _POWERS if math.ceil(height / s) == rows and math.ceil(width / s) == columns]
    if whole in fits or not fits:
        return whole
    # Whole but no power of two, as 25 of 100 pixels on 4 cells, is a rounded-up 32.
    return fits[0] if len(fits) == 1 else None


def _covers(length: int, stride: int, cells: int) -> bool:
    return cells in (math.ceil(length / stride), length // stride)
