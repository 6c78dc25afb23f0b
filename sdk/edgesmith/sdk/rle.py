"""COCO's run lengths of a mask, and the text that they are written as.

Runs go down the columns, one column after the other, and begin with a run of zeros (possibly of length 0).
In the text each number has as many characters as it needs, 5 bits a character, lowest first; from the fourth
number on the difference to the number two before it is written (Lin et al. 2014, the mask interface).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_BITS, _MORE, _SIGN, _FIRST = 5, 0x20, 0x10, 48
_PLAIN = 3  # numbers that are written as they are


def encode(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask ``(H, W)`` as ``{"size": [H, W], "counts": text}``; what is not zero belongs to it."""
    height, width = mask.shape
    flat = np.asarray(mask, np.bool_).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(flat)]))).tolist()
    if len(flat) and flat[0]:
        runs.insert(0, 0)
    return {"size": [int(height), int(width)], "counts": _text_of(runs)}


def decode(value: dict[str, Any]) -> Mask:
    """The inverse of :func:`encode`; ``counts`` may also be the list of run lengths.

    Raises:
        ValueError: the runs do not fill the size.
    """
    height, width = (int(side) for side in value["size"])
    counts = value["counts"]
    runs = [int(run) for run in counts] if isinstance(counts, list) else _runs_of(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"run lengths of {sum(runs)} pixels in all for a mask of {height} x {width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _text_of(runs: list[int]) -> str:
    letters = []
    for number, run in enumerate(runs):
        left = run - runs[number - 2] if number >= _PLAIN else run
        more = True
        while more:
            part = left & 0x1F
            left >>= _BITS
            more = left != (-1 if part & _SIGN else 0)
            letters.append(chr(part + (_MORE if more else 0) + _FIRST))
    return "".join(letters)


def _runs_of(text: str | bytes) -> list[int]:
    letters = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for letter in letters:
        part = letter - _FIRST
        value |= (part & 0x1F) << shift
        shift += _BITS
        if part & _MORE:
            continue
        if part & _SIGN:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) >= _PLAIN else value)
        value = shift = 0
    if shift:
        raise ValueError("the text of run lengths ends within a number")
    return runs
