"""Training images: found by the recipe, changed a little at each pass, prepared as the robot prepares them.

Every sample is a function of the seed, the epoch and the image's number alone: so a run that was killed
goes on with the same samples, in one process or in several.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from edgesmith.calibration.images import Images
from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.errors import DataError, RecipeError
from edgesmith.sdk.evaluate.data import EvaluationData, labelled_images, pixels
from edgesmith.sdk.preprocess import Frame8, Preprocess, prepared

log = logging.getLogger(__name__)
UNLABELLED = -1
MOST_HELD_OUT = 2000
SHIFT = 8  # a side is moved by up to an eighth of it
LEAST_AREA = 0.5  # of a crop
Key = tuple[int, int]  # epoch, number of the image; epoch -1: as it is
Batch = tuple[torch.Tensor, torch.Tensor]


class TrainingImages:
    """Images BGR uint8 ``(H, W, 3)`` with class indices, :data:`UNLABELLED` where there are none."""

    def __init__(self, images: Images, labels: NDArray[np.int64] | None) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def label(self, number: int) -> int:
        """The class of one image."""
        return UNLABELLED if self.labels is None else int(self.labels[number])

    def pick(self, numbers: Sequence[int]) -> TrainingImages:
        """The images of these numbers."""
        labels = None if self.labels is None else self.labels[np.asarray(numbers, np.int64)]
        return TrainingImages(self.images.pick(numbers), labels)

    def divided(self, share: float, seed: int) -> tuple[TrainingImages, TrainingImages]:
        """Those that train, and a share of them, at most 2,000, that chooses the best epoch; by seed."""
        count = min(MOST_HELD_OUT, round(len(self) * share))
        order = np.random.default_rng((seed, 0x5EED)).permutation(len(self)).tolist()
        return self.pick(sorted(order[count:])), self.pick(sorted(order[:count]))

    def fingerprint(self) -> str:
        """SHA-256 of the images and of their labels."""
        labels = "" if self.labels is None else ",".join(map(str, self.labels.tolist()))
        return f"{self.images.fingerprint()}-{labels}" if labels else self.images.fingerprint()


def training_images(recipe: Recipe) -> TrainingImages:
    """The recipe's ``data.training``, else its calibration images.

    Labels are those of an ``.npz``, of a ``labels.csv`` in the folder, or of folders by class; a detector
    takes none.

    Raises:
        RecipeError: the recipe names neither.
        DataError: they cannot be read.
    """
    given = recipe.data.training or recipe.data.calibration
    if given is None:
        raise RecipeError(
            "recipe: data.training: a training stage needs images: a folder, list file, glob or .npz",
            key="data.training",
        )
    if recipe.data.training is None:
        log.warning("the recipe names no training images: the calibration images serve")
    path = recipe.resolve(given)
    if recipe.task != "classify" or not _labelled(path):
        return TrainingImages(Images.open(path), None)
    items = labelled_images(EvaluationData.found(path), recipe.names())
    images = Images(
        str(path),
        tuple(item.name for item in items),
        lambda index: np.ascontiguousarray(pixels(items[index])),
        lambda index: np.ascontiguousarray(pixels(items[index])).tobytes(),
    )
    return TrainingImages(images, np.array([item.label for item in items], np.int64))


def _labelled(path: Path) -> bool:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return "labels" in archive
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a sound .npz file: {error}") from error
    if not path.is_dir():
        return False
    if (path / "labels.csv").is_file():
        return True
    entries = list(path.iterdir())
    return any(e.is_dir() for e in entries) and not any(e.suffix.lower() in PICTURES for e in entries)


class Samples(Dataset[Batch]):
    """Prepared images by epoch and number: ``(C, H, W)`` float32 and the class."""

    def __init__(
        self, data: TrainingImages, preprocess: Preprocess, augment: Sequence[str], seed: int
    ) -> None:
        self.data = data
        self.preprocess = structs.replace(preprocess, layout="nchw")
        self.augment = frozenset(augment)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> Batch:
        epoch, number = key
        frame = self.data.images[number]
        if epoch >= 0 and self.augment:
            frame = augmented(frame, self.augment, np.random.default_rng((self.seed, epoch, number)))
        tensor = prepared(self.preprocess, frame)[0][0]
        return torch.from_numpy(tensor), torch.tensor(self.data.label(number))


def augmented(frame: Frame8, ways: frozenset[str], random: np.random.Generator) -> Frame8:
    """The frame cropped, shifted, flipped, as ``ways`` name it; of any size after a crop, else of its own."""
    rows, columns = frame.shape[:2]
    if "crop" in ways:
        side = random.uniform(LEAST_AREA, 1.0) ** 0.5
        high, wide = max(1, round(rows * side)), max(1, round(columns * side))
        top, left = random.integers(0, rows - high + 1), random.integers(0, columns - wide + 1)
        frame = frame[top : top + high, left : left + wide]
        rows, columns = frame.shape[:2]
    if "shift" in ways:
        down, right = rows // SHIFT, columns // SHIFT
        y, x = int(random.integers(-down, down + 1)), int(random.integers(-right, right + 1))
        moved = np.zeros_like(frame)
        moved[max(y, 0) : rows + min(y, 0), max(x, 0) : columns + min(x, 0)] = frame[
            max(-y, 0) : rows - max(y, 0), max(-x, 0) : columns - max(x, 0)
        ]
        frame = moved
    if "flip" in ways and random.random() < 0.5:
        frame = np.asarray(cv2.flip(frame, 1), np.uint8)
    return np.ascontiguousarray(frame)


class EpochBatches(Sampler[list[Key]]):
    """The batches of one epoch from a step on, those of one process: ``rank`` of ``world``.

    A batch of all processes together holds ``batch`` images; what does not fill one waits for another
    epoch's order.
    """

    def __init__(
        self, count: int, batch: int, *, epoch: int, seed: int, begin: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.batch = count, min(batch, count)
        self.epoch, self.seed, self.begin = epoch, seed, begin
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return steps_of(self.count, self.batch) - self.begin

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist()
        for step in range(self.begin, steps_of(self.count, self.batch)):
            together = order[step * self.batch : (step + 1) * self.batch]
            yield [(self.epoch, number) for number in together[self.rank :: self.world]]


def steps_of(count: int, batch: int) -> int:
    """Steps of an epoch."""
    return max(1, count // min(batch, count))


def in_order(count: int, batch: int, rank: int, world: int) -> list[list[Key]]:
    """All images as they are, once, those of one process."""
    mine = [(-1, number) for number in range(count)][rank::world]
    return [mine[start : start + batch] for start in range(0, len(mine), batch)]


def loader(
    samples: Samples, batches: Sampler[list[Key]] | list[list[Key]], workers: int
) -> DataLoader[Batch]:
    """Batches ``(N, C, H, W)`` float32 and ``(N,)`` int64."""
    # Each iterator draws a seed: from the common random numbers that would set a resumed run apart.
    own = torch.Generator().manual_seed(samples.seed)
    return DataLoader(samples, batch_sampler=batches, num_workers=workers, generator=own)
