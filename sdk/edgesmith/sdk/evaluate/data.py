"""Labelled images: what there is, and how it is read."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.pictures import PICTURES, read_image
from edgesmith.sdk.errors import DataError

Image = NDArray[np.uint8]


class EvaluationData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where labelled images are; the recipe's ``data.evaluation`` with absolute paths.

    ``images``: a folder, or an ``.npz`` with ``images`` uint8 ``(N, H, W, 3)`` RGB and ``labels`` int
    ``(N,)``. ``annotations``: COCO JSON. ``labels``: csv with ``file,class``. A folder with neither has
    a sub-folder a class, in the order of the class names. ``limit``: the first images only.
    """

    images: Path
    annotations: Path | None = None
    labels: Path | None = None
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


def pixels(item: LabelledImage) -> Image:
    """The picture as BGR uint8 ``(H, W, 3)``.

    Raises:
        CameraError: its file cannot be read.
    """
    return read_image(item.image) if isinstance(item.image, Path) else item.image


def _from_npz(path: Path) -> list[LabelledImage]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{path}: needs arrays images (N, H, W, 3) uint8 RGB and labels (N,): {error}"
        ) from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(labels) != len(images):
        raise DataError(f"{path}: images is {images.dtype} {images.shape}, labels {labels.shape}")
    return [
        LabelledImage(f"{path.name}[{n}]", int(label), image[..., ::-1])
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


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
