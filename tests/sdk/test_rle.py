"""COCO's run lengths, against the evaluator's own code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgesmith.sdk import rle

masks = arrays.arrays(
    np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.booleans()
)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_there_and_back(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    value = rle.encode(mask)
    assert value["size"] == list(mask.shape)
    np.testing.assert_array_equal(rle.decode(value), mask)


@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_that_of_coco(seed: int) -> None:
    mask_api = pytest.importorskip("faster_coco_eval.core.mask", reason="needs edgesmith[eval]")
    random = np.random.default_rng(seed)
    mask = np.zeros((480, 640), np.bool_)
    for _ in range(6):
        y, x = random.integers(0, 400), random.integers(0, 500)
        mask[y : y + random.integers(1, 300), x : x + random.integers(1, 300)] ^= True
    mask ^= random.random(mask.shape) < 0.001 * seed
    theirs = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = theirs["counts"].decode() if isinstance(theirs["counts"], bytes) else theirs["counts"]
    assert rle.encode(mask)["counts"] == text
    np.testing.assert_array_equal(rle.decode({"size": [480, 640], "counts": text}), mask)


def test_a_list_of_run_lengths_is_read() -> None:
    mask = rle.decode({"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


@pytest.mark.parametrize("counts", [[1, 2], [7], [8, -2], "o", ""])
def test_runs_that_do_not_fill_the_mask_are_refused(counts: object) -> None:
    with pytest.raises(ValueError, match=r"run lengths"):
        rle.decode({"size": [2, 3], "counts": counts})
