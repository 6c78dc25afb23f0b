"""The course of a training, as it stands in reports."""

from __future__ import annotations

import msgspec


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch. ``metric`` is top-1 in percent, else the loss below zero, on the held-out images."""

    loss: float
    parts: dict[str, float]
    rate: float
    metric: float | None
    seconds: float


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """The course of a training; ``best`` is the number of the epoch whose weights were kept.

    ``metric`` says what the epochs' ``metric`` is; ``resumed`` whether a run was taken up again.
    """

    epochs: tuple[Epoch, ...]
    best: int
    metric: str
    images: int
    held_out: int
    steps: int
    seconds: float
    resumed: bool = False
