"""Labelled images: what there is, and how it is read."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.pictures import PICTURES, list_pictures, read_image
from edgesmith.sdk.errors import CameraError, DataError

Image = NDArray[np.uint8]
IGNORED = -1  # of a class map: the pixel counts for nothing
_NPZ_ARRAYS = {"images": "images (N, H, W, 3) uint8 RGB", "labels": "labels (N,)"}


class EvaluationData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where labelled images are; the recipe's ``data.evaluation`` with absolute paths.

    ``images``: a folder, or an ``.npz`` with ``images`` uint8 ``(N, H, W, 3)`` RGB and ``labels`` int
    ``(N,)``. ``annotations``: COCO JSON. ``labels``: csv with ``file,class``. A folder with neither has
    a sub-folder a class, in the order of the class names. ``masks``: folder with a grey PNG of each picture's
    name; ``mask_values`` is the pixel value of each class there (left out: the number of the class), and
    other values count for nothing. ``metric = "psnr"``: pictures that are made smaller by ``downscale``, and
    held against what the model makes of that. ``limit``: the first images only.
    """

    images: Path
    annotations: Path | None = None
    labels: Path | None = None
    masks: Path | None = None
    mask_values: tuple[int, ...] | None = None
    metric: Literal["psnr"] | None = None
    downscale: int | None = None
    limit: int | None = None

    @classmethod
    def found(cls, path: Path, *, limit: int | None = None) -> EvaluationData:
        """What lies at ``path``: an ``.npz``, or a folder whose labels are found by their usual names.

        Raises:
            DataError: nothing is there.
        """
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder")
        annotations, labels = path / "instances.json", path / "labels.csv"
        return cls(
            images=path,
            annotations=annotations if annotations.is_file() else None,
            labels=labels if labels.is_file() else None,
            limit=limit,
        )


class LabelledImage(msgspec.Struct, frozen=True):
    """A picture to be read, or one that is there, with its class index."""

    name: str
    label: int
    image: Path | Image


class MaskedImage(msgspec.Struct, frozen=True):
    """A picture's file and its mask's."""

    image: Path
    mask: Path


def masked_images(data: EvaluationData) -> list[MaskedImage]:
    """Pictures that have a mask of the same name; both may lie in one folder.

    Raises:
        DataError: there are none.
    """
    folder = data.masks or data.images
    try:
        pictures = list_pictures(data.images)
    except CameraError as error:
        raise DataError(str(error)) from error
    pairs = [MaskedImage(picture, folder / f"{picture.stem}.png") for picture in pictures]
    masks = {pair.mask for pair in pairs if pair.mask != pair.image}
    found = [pair for pair in pairs if pair.image not in masks and pair.mask.is_file()]
    found = [pair for pair in found if pair.mask != pair.image]
    if not found:
        raise DataError(
            f"{data.images}: no picture has a mask: {folder} must hold a grey PNG of each picture's name"
        )
    return found[: data.limit]


def read_mask(
    item: MaskedImage, data: EvaluationData | None, classes: int, shape: tuple[int, ...]
) -> NDArray[np.int16]:
    """A mask as a class map ``(H, W)``; :data:`IGNORED` where its value is none of a class.

    Raises:
        DataError: it cannot be read, is not grey, has another size than ``shape``, or the values given are
            not one a class.
    """
    values = data.mask_values if data is not None else None
    if values is not None and len(values) != classes:
        raise DataError(f"mask_values has {len(values)} values for a model of {classes} classes")
    try:
        mask = cv2.imdecode(np.frombuffer(item.mask.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise DataError(f"{item.mask}: cannot be read: {error}") from error
    if mask is None:
        raise DataError(f"{item.mask}: is not a picture")
    if mask.ndim == 3:
        if (mask[..., :1] != mask[..., :3]).any():
            raise DataError(
                f"{item.mask}: a mask in colour (a palette becomes colours as well): store class numbers grey"
            )
        mask = mask[..., 0]
    if mask.shape != shape:
        raise DataError(f"{item.mask}: has {mask.shape} pixels, its picture {tuple(shape)}")
    table = np.full(1 << (8 * mask.dtype.itemsize), IGNORED, np.int16)
    for label, value in enumerate(values if values is not None else range(classes)):
        if not 0 <= value < len(table):
            raise DataError(f"{item.mask}: mask_values holds {value}; a pixel there is 0..{len(table) - 1}")
        table[value] = label
    return np.asarray(table[mask])


def labelled_images(data: EvaluationData, names: Sequence[str]) -> list[LabelledImage]:
    """Pictures with their class indices, from a csv, class folders or an ``.npz``.

    Raises:
        DataError: nothing usable is there; the message says what was looked for.
    """
    if data.images.suffix == ".npz":
        items = _from_npz(data.images)
    elif data.labels is not None:
        items = _from_csv(data.images, data.labels, names)
    else:
        items = _from_folders(data.images, names)
    if not items:
        raise DataError(
            f"{data.images}: no labelled pictures: a labels.csv (file,class) or a folder for each class"
        )
    return items[: data.limit]


def unlabelled_images(data: EvaluationData) -> list[Path | Image]:
    """Pictures without their labels: those of the folder, else of its sub-folders, or an ``.npz``'s images.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    if data.images.suffix == ".npz":
        return [image[..., ::-1] for image in _npz_arrays(data.images, "images")[0]][: data.limit]
    try:
        pictures = list_pictures(data.images)
    except CameraError as error:
        folders = sorted(p for p in data.images.iterdir() if p.is_dir()) if data.images.is_dir() else []
        pictures = [picture for folder in folders for picture in _pictures(folder)]
        if not pictures:
            raise DataError(str(error)) from error
    return list(pictures[: data.limit])


def pixels(item: LabelledImage) -> Image:
    """The picture as BGR uint8 ``(H, W, 3)``.

    Raises:
        CameraError: its file cannot be read.
    """
    return picture_pixels(item.image)


def picture_pixels(picture: Path | Image) -> Image:
    """A file's picture, or one that is there, as BGR uint8 ``(H, W, 3)``.

    Raises:
        CameraError: the file cannot be read.
    """
    return read_image(picture) if isinstance(picture, Path) else picture


def _from_npz(path: Path) -> list[LabelledImage]:
    images, labels = _npz_arrays(path, "images", "labels")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{path}: images is {images.dtype} {images.shape}, labels {labels.shape}")
    return [
        LabelledImage(f"{path.name}[{n}]", int(label), image[..., ::-1])
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _npz_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """Arrays by name, of which ``images`` is uint8 ``(N, H, W, 3)``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        wanted = " and ".join(_NPZ_ARRAYS[name] for name in names)
        raise DataError(f"{path}: needs arrays {wanted}: {error}") from error
    images = arrays["images"]
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise DataError(f"{path}: images is {images.dtype} {images.shape}, it must be uint8 (N, H, W, 3) RGB")
    return list(arrays.values())


def _from_csv(folder: Path, path: Path, names: Sequence[str]) -> list[LabelledImage]:
    items = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"file", "class"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: the first line must name the columns file,class")
            for line, row in enumerate(reader, 2):
                label = _class_index(row["class"] or "", names)
                if label is None:
                    raise DataError(
                        f"{path}, line {line}: {row['class']!r} is neither a class number nor a name"
                    )
                items.append(LabelledImage(row["file"], label, folder / row["file"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return items


def _class_index(text: str, names: Sequence[str]) -> int | None:
    if text.strip().isdecimal():
        number = int(text)
        return number if not names or number < len(names) else None
    return names.index(text) if text in names else None


def _from_folders(folder: Path, names: Sequence[str]) -> list[LabelledImage]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    folders = sorted(p for p in folder.iterdir() if p.is_dir())
    items = []
    for rank, sub in enumerate(folders):
        label = _class_index(sub.name, names) if names else rank
        if label is None:
            raise DataError(f"{sub}: no class has this name; the classes are {', '.join(names[:8])} ...")
        items += [LabelledImage(f"{sub.name}/{p.name}", label, p) for p in _pictures(sub)]
    return items


def _pictures(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURES)
