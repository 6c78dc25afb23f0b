"""A few images of a large folder that cover what is in it: brightness, scale and content.

    picked = pick(Images.open("recordings"), 200)
    write_list(Path("calibration.txt"), Path("recordings"), picked.names)      # for data.calibration

Each image becomes some sixty numbers, read once; then the image farthest from all that were chosen is chosen,
again and again: k-center greedy (Gonzalez 1985; Sener and Savarese 2018, algorithm 1), which covers the set
within twice the best possible radius. No random number is involved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.calibration.images import Images
from edgesmith.sdk.errors import DataError
from edgesmith.sdk.preprocess import Frame8

Floats = NDArray[np.float32]
SIDE = 128  # of the square that an image is described at, in pixels
TILES = 6  # of the layout's grid, a side
HUES = 12


@dataclass(frozen=True)
class Picked:
    """What was chosen.

    ``names`` and ``numbers`` of the images, in the order of the source; ``radius`` is the largest
    distance of any image from a chosen one, in standard deviations of the features (0: all are chosen, or
    repeat one that is); ``left_out`` has a line for each image that could not be read.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    radius: float
    left_out: tuple[str, ...]


def pick(images: Images, count: int, *, progress: Callable[[int, int], None] | None = None) -> Picked:
    """Choose ``count`` images that lie as far apart as they can.

    Args:
        images: what to choose from; one image at a time is in memory.
        count: how many, at least 1; where there are fewer, all are taken.
        progress: called with images read and images in all.

    Raises:
        DataError: ``count`` < 1, or no image can be read.
    """
    if count < 1:
        raise DataError(f"{count} images cannot be picked: give 1 or more, 100 to 500 are usual")
    rows: list[list[Floats]] = []
    readable: list[int] = []
    left_out: list[str] = []
    for number, name in enumerate(images.names):
        try:
            rows.append(features(images[number]))
            readable.append(number)
        except DataError as error:
            left_out.append(f"{name}: {error}")
        if progress is not None:
            progress(number + 1, len(images))
    if not rows:
        raise DataError(f"{images.source}: none of its {len(images)} pictures can be read")
    chosen, radius = farthest(_balanced(rows), count)
    numbers = sorted(readable[n] for n in chosen)
    return Picked(tuple(images.names[n] for n in numbers), tuple(numbers), radius, tuple(left_out))


def features(image: Frame8) -> list[Floats]:
    """An image BGR uint8 ``(H, W, 3)`` in groups of numbers that count alike.

    Light (mean, spread, dark and bright end), colour (hues by saturation, and saturation itself), scale
    (edges at three sizes, and the image's own size and shape), content (where it is light, where busy).
    """
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
    ends = np.percentile(grey, (5, 95))
    light = np.array([grey.mean(), grey.std(), *ends], np.float32)
    hsv = cv2.cvtColor(small, cv2.COLOR_BGR2HSV).reshape(-1, 3).astype(np.float32)
    saturation = hsv[:, 1] / 255
    hues = np.bincount((hsv[:, 0] * HUES / 180).astype(np.int64), weights=saturation, minlength=HUES)
    colour = np.array([*hues[:HUES] / len(hsv), saturation.mean()], np.float32)
    sizes = [cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA) for side in (SIDE, 48, 16)]
    edges = [_edges(np.asarray(one, np.float32)) for one in sizes]
    height, width = image.shape[:2]
    own = [np.log2(height * width) / 2, np.log2(width / height)]
    scale = np.array([*(edge.mean() for edge in edges), *own], np.float32)
    # The layout without the light that is described already.
    layout = cv2.resize(grey, (TILES, TILES), interpolation=cv2.INTER_AREA).ravel()
    layout = (layout - layout.mean()) / max(float(grey.std()), 1e-3)
    busy = cv2.resize(edges[0], (3, 3), interpolation=cv2.INTER_AREA).ravel()
    return [light, colour, scale, np.concatenate([layout, busy]).astype(np.float32)]


def farthest(points: NDArray[np.float64], count: int) -> tuple[list[int], float]:
    """Rows of ``points (N, D)`` by k-center greedy, from the one nearest to the mean; and what is left.

    Of equal distances the first row is taken. The second result is the largest distance of any row from
    the chosen ones.
    """
    first = int(((points - points.mean(0)) ** 2).sum(1).argmin())
    chosen = [first]
    nearest = ((points - points[first]) ** 2).sum(1)
    nearest[first] = -1.0  # chosen: behind all others, repeated images too
    while len(chosen) < min(count, len(points)):
        at = int(nearest.argmax())
        chosen.append(at)
        nearest = np.where(nearest < 0, nearest, np.minimum(nearest, ((points - points[at]) ** 2).sum(1)))
        nearest[at] = -1.0
    return chosen, float(np.sqrt(max(nearest.max(), 0.0)))


def write_list(path: Path, folder: Path, names: Sequence[str]) -> None:
    """Write a list file of pictures in ``folder``, with paths relative to the file.

    Raises:
        DataError: it cannot be written, or a name cannot stand in a list of lines.
    """
    lines = []
    for name in names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"{folder / name!s}: a list file cannot hold this name: rename the picture")
        # With its folder in front no name begins like a comment.
        lines.append(Path(os.path.relpath(folder / name, path.parent)).as_posix())
    lines = [f"./{line}" if line.startswith("#") else line for line in lines]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _edges(grey: Floats) -> Floats:
    """Strength of the edges at each pixel."""
    across = cv2.Sobel(grey, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return np.asarray(np.hypot(across, down), np.float32)


def _balanced(rows: Sequence[Sequence[Floats]]) -> NDArray[np.float64]:
    """Each feature in its standard deviations; each group as a whole weighs as much as any other."""
    groups = []
    for parts in zip(*rows, strict=True):
        values = np.stack(parts).astype(np.float64)
        spread = values.std(0)
        # What rounding alone leaves of a constant is no difference.
        moves = spread > 1e-6 * np.maximum(np.abs(values).max(0), 1e-6)
        scaled = np.where(moves, (values - values.mean(0)) / np.where(moves, spread, 1.0), 0.0)
        groups.append(scaled / np.sqrt(values.shape[1]))
    return np.concatenate(groups, axis=1)
