"""Peak signal-to-noise ratio of enlarged pictures, and how far outputs are from another model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import length_hint

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import CameraError, DataError
from edgesmith.sdk.evaluate.answers import Frame8, I, Outputs, Pictures, Progress, answers, refuse_none
from edgesmith.sdk.evaluate.bootstrap import Counts, Floats, Paired, drawn, interval
from edgesmith.sdk.evaluate.data import EvaluationData, picture_pixels, unlabelled_images
from edgesmith.sdk.maps import pixels_of
from edgesmith.sdk.models import TensorModel
from edgesmith.sdk.preprocess import Geometry, Preprocess

Array = NDArray[np.generic]
PEAK = 255.0
# Pixels left out at each side, for each step of enlarging: there every method guesses.
BORDER = 2
_MOST = 100.0  # dB of two pictures that are the same


@dataclass(eq=False)
class Ratios:
    """PSNR in dB of each picture: ``models`` holds a list for each model, ``bicubic`` plain enlarging's."""

    models: list[list[float]]
    bicubic: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def figures(self, number: int) -> dict[str, float]:
        """``psnr``, the mean over the pictures, and ``psnr_bicubic`` where pictures were enlarged."""
        found = {"psnr": float(np.mean(self.models[number]))}
        if self.bicubic:
            found["psnr_bicubic"] = float(np.mean(self.bicubic))
        return found


def mean_psnr(
    model: TensorModel, data: EvaluationData, progress: Progress | None
) -> tuple[dict[str, float], int, list[str]]:
    """The figures of :meth:`Ratios.figures`, the number of pictures, a line for each unreadable one.

    Raises:
        DataError: the model's output is no picture of the size that is asked for, or none could be read.
    """
    got = ratios([model], data, progress)
    return got.figures(0), len(got.models[0]), got.faults


def paired_psnr(
    models: Sequence[TensorModel],
    names: Iterable[str],
    data: EvaluationData,
    draws: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Paired]:
    """The first model against each other one, called by ``names``, on pictures that are made smaller."""
    got = ratios(models, data, progress)
    counts = drawn(len(got.models[0]), draws, seed)
    exact = got.figures(0)
    result = {}
    for number, name in enumerate(names, 1):
        mine = got.figures(number)
        lost = np.array(got.models[0]) - np.array(got.models[number])
        result[name] = Paired(
            metric="psnr", exact=exact["psnr"], other=mine["psnr"],
            values={key: (exact[key], mine[key]) for key in exact}, drop=float(lost.mean()),
            interval=interval(counts @ lost / len(lost)), images=len(lost), labelled=True, agreement=None,
            faults=tuple(got.faults),
        )  # fmt: skip
    return result


def ratios(models: Sequence[TensorModel], data: EvaluationData, progress: Progress | None) -> Ratios:
    """The PSNR of every model on every picture, one picture held at a time.

    A picture is brought to the network's own channels (the luma of a luma network), made smaller by
    ``downscale`` with bicubic interpolation and rounded to 8 bits; the model's first output, rounded
    likewise, is held against the picture, but for :data:`BORDER` times ``downscale`` pixels at each side.

    Raises:
        DataError: the evaluation is another, or an output does not have the picture's size.
    """
    if data.metric != "psnr":
        raise DataError(
            f'{data.images}: a model of task "tensor" is scored by PSNR: give metric = "psnr" and downscale'
        )
    factor = data.downscale or 1
    got = Ratios([[] for _ in models])
    pictures = unlabelled_images(data)
    preprocess = models[0].bundle.manifest.preprocess
    for done, picture in enumerate(pictures, 1):
        try:
            sharp = _sharp(picture_pixels(picture), preprocess, factor)
        except CameraError as error:
            got.faults.append(str(error))
        else:
            small = _small(sharp, factor)
            one = answers(models, [_frame(small, preprocess)], lambda frame: frame, _first)
            for numbers, result in zip(got.models, one.results, strict=True):
                numbers.append(psnr(_fitting(result[0], sharp, small), sharp, BORDER * factor))
            if factor > 1:
                got.bicubic.append(psnr(_resized(small, sharp.shape[:2]), sharp, BORDER * factor))
        if progress is not None:
            progress(done, len(pictures))
    if not got.models[0]:
        refuse_none(f"{data.images}: none of the pictures", got.faults)
    return got


def psnr(found: Floats, sharp: Floats, border: int) -> float:
    """10 log10(255^2 / mean squared error) in dB of pictures ``(H, W, C)`` in 0..255, without the border."""
    inner = np.s_[border : found.shape[0] - border, border : found.shape[1] - border]
    error = float(np.mean((found[inner] - sharp[inner]) ** 2))
    return _MOST if error == 0 else min(_MOST, 10 * float(np.log10(PEAK**2 / error)))


def agreeing_tensors(
    models: Sequence[TensorModel],
    names: Iterable[str],
    pictures: Pictures[I],
    draws: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Paired]:
    """The first model's outputs against each other one's: 100 less the relative error in percent.

    That is 100 (1 - |x - y| / |x|), norms over all images, of the output that is furthest off. A drop of
    1 is a signal-to-noise ratio of 40 dB, one of 0.1 is 60 dB.
    """
    energies: list[list[tuple[Floats, Floats]]] = [[] for _ in models]
    faults: list[str] = []
    total = length_hint(pictures.items, 0)
    for done, item in enumerate(pictures.items, 1):
        one = answers(models, [item], pictures.load, _all)
        faults += one.faults
        if one.items:
            for number, result in enumerate(one.results):
                energies[number].append(_energies(one.results[0][0], result[0]))
        if progress is not None:
            progress(done, max(done, total))
    images = len(energies[0])
    if not images:
        refuse_none(pictures.called, faults)
    counts = drawn(images, draws, seed)
    found = {}
    for number, name in enumerate(names, 1):
        lost = float(_relative(energies[number], np.ones((1, images), np.int64))[0])
        spread = interval(_relative(energies[number], counts))
        found[name] = Paired.agreeing(100 - lost, spread, images, faults)
    return found


def _relative(energies: Sequence[tuple[Floats, Floats]], counts: Counts) -> Floats:
    """Relative error in percent, ``(draws,)``, of the worst output."""
    signal = counts @ np.stack([signal for signal, _ in energies])
    noise = counts @ np.stack([noise for _, noise in energies])
    return np.asarray(100 * np.sqrt(noise / np.maximum(signal, np.finfo(np.float64).tiny)).max(1))


def _energies(exact: Sequence[Array], other: Sequence[Array]) -> tuple[Floats, Floats]:
    """Sums of squares of each output and of its error; infinite where the shapes differ."""
    signal, noise = [], []
    for a, b in zip(exact, other, strict=True):
        x = np.asarray(a, np.float64)
        signal.append(float((x * x).sum()))
        noise.append(float(((x - b) ** 2).sum()) if a.shape == b.shape else float("inf"))  # type: ignore[operator]
    return np.array(signal), np.array(noise)


def _all(model: TensorModel, outputs: Outputs, row: int, geometry: Geometry) -> list[Array]:
    return [np.array(values[row], np.float32) for values in outputs.values() if values.ndim]


def _first(model: TensorModel, outputs: Outputs, row: int, geometry: Geometry) -> Floats:
    """The first output in pixels 0..255, rounded, ``(h, w, C)``; of another shape as it is."""
    values = next(iter(outputs.values()))[row]
    if values.ndim != 3:
        return np.asarray(values, np.float64)
    pixels = pixels_of(values, model.bundle.manifest.preprocess)
    return np.clip(np.rint(pixels), 0, PEAK).transpose(1, 2, 0)


def _sharp(image: Frame8, preprocess: Preprocess, factor: int) -> Floats:
    """The picture ``(H, W, C)`` in the network's channels, its sides multiples of the factor."""
    if preprocess.color == "y":
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)[..., :1], np.uint8)
    elif preprocess.color == "rgb":
        image = image[..., ::-1]
    height, width = image.shape[:2]
    if preprocess.size is not None and preprocess.fit == "none":
        # A network of one size that resizes nothing gets the middle of the picture.
        rows, columns = (side * factor for side in preprocess.size)
        if rows > height or columns > width:
            raise CameraError(f"a picture of {height} x {width} has no {rows} x {columns} in it")
        top, left = (height - rows) // 2, (width - columns) // 2
        return np.asarray(image[top : top + rows, left : left + columns], np.float64)
    return np.asarray(image[: height // factor * factor, : width // factor * factor], np.float64)


def _small(sharp: Floats, factor: int) -> Floats:
    return _resized(sharp, (sharp.shape[0] // factor, sharp.shape[1] // factor))


def _resized(picture: Floats, size: tuple[int, ...]) -> Floats:
    """Bicubic, rounded to 8 bits."""
    if picture.shape[:2] == tuple(size):
        return picture
    made = cv2.resize(np.asarray(picture, np.float32), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(made.reshape(*size, -1)), 0, PEAK).astype(np.float64)


def _frame(small: Floats, preprocess: Preprocess) -> Frame8:
    """A picture in the network's channels as a frame; a grey frame has just the luma it was made of."""
    pixels = small.astype(np.uint8)
    if preprocess.color == "y":
        return np.repeat(pixels, 3, 2)
    return np.ascontiguousarray(pixels[..., ::-1] if preprocess.color == "rgb" else pixels)


def _fitting(found: Floats, sharp: Floats, small: Floats) -> Floats:
    """The output, where it has the picture's size.

    Raises:
        DataError: it has another.
    """
    if found.shape != sharp.shape:
        raise DataError(
            f"the model makes {found.shape} of an input of {small.shape}, the picture has {sharp.shape}: set "
            "downscale to the factor by which the model enlarges; its first output must be a picture"
        )
    return found
