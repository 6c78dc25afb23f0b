"""One pass over pictures for any number of models: read once, prepared once where the preprocess agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import length_hint
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import CameraError, DataError
from edgesmith.sdk.models import Model
from edgesmith.sdk.preprocess import Geometry, Preprocess, prepare

Frame8 = NDArray[np.uint8]
Array = NDArray[Any]
Outputs = dict[str, Array]
Progress = Callable[[int, int], None]
I = TypeVar("I")  # noqa: E741  an item that stands for a picture
R = TypeVar("R")
M = TypeVar("M", bound=Model[Any])


@dataclass(frozen=True, slots=True)
class Pictures(Generic[I]):
    """What stands for the pictures, how each is read, and what they are called in a message."""

    items: Iterable[I]
    load: Callable[[I], Frame8]
    called: str


@dataclass(frozen=True, slots=True)
class Answers(Generic[I, R]):
    """What the models answered.

    Attributes:
        items: those whose picture could be read.
        results: for each model a list with an entry for each of ``items``.
        faults: a line for each picture that could not be read.
    """

    items: list[I] = field(default_factory=list)
    results: list[list[R]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def need_some(self, pictures: str) -> None:
        """Refuse to go on without any picture; ``pictures`` names them in the message.

        Raises:
            DataError: not one picture was read.
        """
        if not self.items:
            refuse_none(pictures, self.faults)


def refuse_none(pictures: str, faults: Sequence[str]) -> None:
    """Say that not one of the pictures was read, and why the first was not.

    Raises:
        DataError: always.
    """
    first = f"; the first: {faults[0]}" if faults else ": there are none"
    raise DataError(f"{pictures} could be read{first}")


def answers(
    models: Sequence[M],
    items: Iterable[I],
    load: Callable[[I], Frame8],
    read: Callable[[M, Outputs, int, Geometry], R],
    *,
    at_once: int = 1,
    progress: Progress | None = None,
) -> Answers[I, R]:
    """Run every model over every picture.

    Args:
        models: any number of one task.
        items: what stands for the pictures.
        load: an item's picture, BGR uint8 ``(H, W, 3)``; where it raises CameraError the item is left out.
        read: what is kept of a row of a model's outputs.
        at_once: pictures held in memory at a time.
        progress: called with pictures done and pictures in all (those done, where that is not known).

    Raises:
        CameraFormatError: a picture is not BGR uint8 ``(H, W, 3)``.
        BackendError: a run failed.
    """
    got: Answers[I, R] = Answers(results=[[] for _ in models])
    groups: dict[Preprocess, list[int]] = {}
    for number, model in enumerate(models):
        groups.setdefault(model.bundle.manifest.preprocess, []).append(number)
    total, done, source = length_hint(items, 0), 0, iter(items)
    while chunk := list(islice(source, at_once)):
        frames = []
        for item in chunk:
            try:
                frames.append(load(item))
            except CameraError as error:
                got.faults.append(str(error))
            else:
                got.items.append(item)
        for preprocess, numbers in groups.items():
            spare = max(models[n].batch.min for n in numbers) - 1
            for tensor, geometries in _prepared(preprocess, frames, spare):
                for n in numbers:
                    got.results[n].extend(_read(models[n], tensor, geometries, read))
        done += len(chunk)
        if progress is not None:
            progress(done, max(done, total))
    return got


def _prepared(
    preprocess: Preprocess, frames: Sequence[Frame8], spare: int
) -> Iterator[tuple[Array, list[Geometry]]]:
    """Tensors ``(frames + spare, ...)`` of frames that share a shape, with the geometry of each frame."""

    def shape(frame: Frame8) -> tuple[int, int, int]:
        height, width = frame.shape[:2] if getattr(frame, "ndim", 0) == 3 else (1, 1)
        return preprocess.tensor_shape(height, width)

    for same, run in groupby(frames, key=shape):
        part = list(run)
        dtype = np.float32 if preprocess.layout == "nchw" else np.uint8
        tensor = np.zeros((len(part) + spare, *same), dtype)
        yield tensor, [prepare(preprocess, frame, out=row) for frame, row in zip(part, tensor, strict=False)]


def _read(
    model: M, tensor: Array, geometries: Sequence[Geometry], read: Callable[[M, Outputs, int, Geometry], R]
) -> Iterator[R]:
    batch = model.batch
    for at in range(0, len(geometries), batch.max):
        part = geometries[at : at + batch.max]
        outputs = model.run_prepared(tensor[at : at + max(len(part), batch.min)])
        for row, geometry in enumerate(part):
            yield read(model, outputs, row, geometry)
