"""Strides from the sizes of maps, never a guess."""

from __future__ import annotations

import pytest
import torch

from edgesmith.converters.adapters.base import Declined
from edgesmith.converters.adapters.levels import Level, cells_of, levels_from_count, levels_from_maps


@pytest.mark.parametrize(
    ("maps", "size", "strides", "found"),
    [
        ([(52, 52), (26, 26)], (416, 416), None, (8, 16)),
        ([(10, 20)], (320, 640), None, (32,)),
        ([(4, 4)], (100, 100), None, (32,)),  # not 25
        ([(13, 19), (7, 10)], (100, 150), None, (8, 16)),
        ([(8, 8)], (96, 96), None, (12,)),  # no power of two fits
        ([(1, 1)], (64, 64), None, (64,)),
        ([(3, 3)], (100, 100), [32], (32,)),  # rounded down: only when told
        ([(1, 1)], (20, 20), None, None),  # 32, 64 and 128 all do
        ([(3, 3)], (100, 100), None, None),
        ([(8, 8)], (64, 96), None, None),
        ([(8, 8), (8, 8)], (64, 64), None, None),
        ([(8, 8)], (64, 64), [16], None),
        ([(8, 8)], (64, 64), [8, 16], None),
    ],
)
def test_levels_from_maps(
    maps: list[tuple[int, int]],
    size: tuple[int, int],
    strides: list[int] | None,
    found: tuple[int, ...] | None,
) -> None:
    levels = levels_from_maps(maps, size, None if strides is None else tuple(strides))
    if found is None:
        assert isinstance(levels, Declined)
    else:
        assert not isinstance(levels, Declined)
        assert tuple(level.stride for level in levels) == found


def test_levels_from_count() -> None:
    assert levels_from_count(3549, (416, 416), None) == (
        Level(52, 52, 8),
        Level(26, 26, 16),
        Level(13, 13, 32),
    )
    with_64 = levels_from_count(64 + 16 + 4 + 1, (64, 64), None)
    assert not isinstance(with_64, Declined)
    assert [level.stride for level in with_64] == [8, 16, 32, 64]
    turned = levels_from_count(16 + 64, (64, 64), (16, 8))
    assert not isinstance(turned, Declined)
    assert [level.stride for level in turned] == [16, 8]
    assert isinstance(levels_from_count(3548, (416, 416), None), Declined)


def test_cells_run_row_by_row_and_anchor_by_anchor() -> None:
    cells, strides = cells_of([Level(1, 2, 8), Level(1, 1, 16)], repeat=2)
    assert cells.tolist() == [[[0, 0], [1, 0], [0, 0], [1, 0], [0, 0], [0, 0]]]
    assert strides.flatten().tolist() == [8, 8, 8, 8, 16, 16]
    assert cells.dtype == strides.dtype == torch.float32
