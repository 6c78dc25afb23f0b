"""Answers with a value for every pixel, and answers of any other kind.

:class:`Segmentation` for segmenters, :class:`Tensors` for task ``tensor``. Boxes and classes stand in
:mod:`edgesmith.sdk.results`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk import rle
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.results import names_in

Array = NDArray[Any]
Frame8 = NDArray[np.uint8]
# What data sets call the class of everything else: it is not painted, and does not count as found.
BACKGROUND = frozenset({"background", "__background__", "bg", "unlabeled", "unlabelled", "void"})
_LEAST_SIDE = 8  # pixels: a smaller output is no picture
_SHOWN_LINES = 8


def background_of(names: Sequence[str]) -> int | None:
    """The class that stands for everything else: by its name; class 0 where there are no names."""
    if not names:
        return 0
    return next((number for number, name in enumerate(names) if name.lower() in BACKGROUND), None)


@dataclass(frozen=True, slots=True)
class Region:
    """All pixels of one class: their number, and their ``share`` of the image, 0..1."""

    label: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of each pixel of one image.

    Iterating gives a :class:`Region` for each class in view, the largest first, without the background.

    Attributes:
        class_map: unsigned integers ``(H, W)`` at the image's size, class indices.
        names: class names by index; empty where the model has none.

    Raises:
        ValueError: the map is not one of whole numbers ``(H, W)``.
    """

    class_map: NDArray[np.integer]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.class_map.ndim != 2 or self.class_map.dtype.kind not in "iu":
            raise ValueError(
                f"a class map is whole numbers (H, W), got {self.class_map.dtype} {self.class_map.shape}"
            )

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """All classes in view, the largest first, the background among them."""
        counts = np.bincount(self.class_map.ravel())
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda label: (-counts[label], label))
        total = self.class_map.size
        return tuple(Region(n, self.name_of(n), int(counts[n]), float(counts[n] / total)) for n in order)

    def __iter__(self) -> Iterator[Region]:
        background = background_of(self.names)
        return (region for region in self.regions if region.label != background)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def name_of(self, label: int) -> str:
        """The class name, or the number as text where there are no names."""
        return self.names[label] if 0 <= label < len(self.names) else str(label)

    def mask(self, label: int | str) -> NDArray[np.bool_]:
        """Where a class is, bool ``(H, W)``; by number or name.

        Raises:
            ValueError: no class is called so.
        """
        if isinstance(label, str):
            if label not in self.names:
                raise ValueError(
                    f"no class is called {label!r}; the classes are {', '.join(self.names) or 'unnamed'}"
                )
            label = self.names.index(label)
        return np.asarray(self.class_map == label)

    def draw(self, image: Frame8) -> Frame8:
        """A copy of the image, BGR uint8 ``(H, W, 3)``, each class but the background tinted and named."""
        from edgesmith.sdk.draw import draw_classes, draw_lines  # needs OpenCV, which arrays alone do not

        shown = list(self)
        tinted = draw_classes(image, self.class_map, [region.label for region in shown])
        texts = [f"{r.name} {100 * r.share:.0f} %" for r in shown[:_SHOWN_LINES]]
        return draw_lines(tinted, texts, [r.label for r in shown[:_SHOWN_LINES]])

    def to_dict(self) -> list[dict[str, Any]]:
        """A list of ``label``, ``name``, ``share`` and ``mask``, ready for JSON; the background is in it.

        ``mask`` has COCO's run lengths (``size``, ``counts``).
        """
        return [
            {"label": r.label, "name": r.name, "share": r.share, "mask": rle.encode(self.mask(r.label))}
            for r in self.regions
        ]

    @classmethod
    def from_dict(cls, items: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> Segmentation:
        """The inverse of :meth:`to_dict`; without ``names`` those in the items are used.

        Raises:
            ValueError: there is no item, or a mask's run lengths do not fill its size.
        """
        if not items:
            raise ValueError("a segmentation without any class has no size")
        most = max(int(item["label"]) for item in items)
        class_map = np.zeros([int(side) for side in items[0]["mask"]["size"]], map_type(most + 1))
        for item in items:
            class_map[rle.decode(item["mask"])] = item["label"]
        return cls(class_map, tuple(names) or names_in(items))


def map_type(classes: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type of a class map."""
    return np.uint8 if classes <= 256 else np.uint16


@dataclass(frozen=True, eq=False)
class Tensors(Mapping[str, Array]):
    """One image's outputs by name, as the model gives them, without the batch axis.

    Attributes:
        arrays: by output name.
        preprocess: how the image went in; with it an output that is a picture can be shown.
        text: what a text recognizer read, and how sure it is, 0..1; None of all other models.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    text: tuple[str, float] | None = None

    def __getitem__(self, name: str) -> Array:
        if name not in self.arrays:
            raise KeyError(f"no output is called {name!r}; there are {', '.join(self.arrays)}")
        return self.arrays[name]

    def __eq__(self, other: object) -> bool:
        return self is other  # arrays have no single answer, which a mapping's own comparison would ask for

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def picture(self, image: Frame8) -> Frame8 | None:
        """The model's picture, BGR uint8 ``(h, w, 3)``, made of what it was given; None where it gives none.

        That is the first output ``(C, h, w)`` with the input's number of channels, back in pixels. A model
        of the luma alone takes the colours from ``image``, enlarged bicubically.
        """
        if self.preprocess is None:
            return None
        channels = self.preprocess.channels
        for values in self.arrays.values():
            if values.ndim == 3 and len(values) == channels and min(values.shape[1:]) >= _LEAST_SIDE:
                return _picture(values, image, self.preprocess)
        return None

    def draw(self, image: Frame8) -> Frame8:
        """The model's picture where it makes one, else a copy of the image with a line for each output."""
        made = self.picture(image)
        if made is not None:
            return made
        from edgesmith.sdk.draw import draw_lines  # needs OpenCV, which arrays alone do not

        texts = [f"{name} {_shape_of(values)}" for name, values in self.arrays.items()][:_SHOWN_LINES]
        if self.text is not None:
            texts = [f"{self.text[0]} {self.text[1]:.2f}"]
        return draw_lines(image, texts, range(len(texts)))

    def to_dict(self) -> list[dict[str, Any]]:
        """A list of ``name``, ``dtype``, ``shape`` and ``data``: the bytes, little-endian, as base64."""
        return [
            {
                "name": name,
                "dtype": values.dtype.name,
                "shape": list(values.shape),
                "data": base64.b64encode(
                    np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
                ).decode(),
            }
            for name, values in self.arrays.items()
        ]

    @classmethod
    def from_dict(cls, items: Sequence[dict[str, Any]]) -> Tensors:
        """The inverse of :meth:`to_dict`."""
        arrays = {}
        for item in items:
            kind = np.dtype(item["dtype"])
            values = np.frombuffer(base64.b64decode(item["data"]), kind.newbyteorder("<"))
            arrays[str(item["name"])] = values.astype(kind).reshape(item["shape"])
        return cls(arrays)

    def summary(self) -> list[dict[str, Any]]:
        """For logs: ``name``, ``dtype``, ``shape``, and ``least``, ``largest`` and ``mean``."""
        return [
            {
                "name": name, "dtype": values.dtype.name, "shape": list(values.shape),
                "least": float(values.min()) if values.size else None,
                "largest": float(values.max()) if values.size else None,
                "mean": float(values.mean()) if values.size else None,
            }
            for name, values in self.arrays.items()
        ]  # fmt: skip


def _shape_of(values: Array) -> str:
    return f"{values.dtype.name} {' x '.join(map(str, values.shape)) or 'scalar'}"


def pixels_of(values: Array, preprocess: Preprocess) -> NDArray[np.float64]:
    """An output ``(C, h, w)`` in the input's units back as pixels 0..255, neither rounded nor cut."""
    count = len(values)
    mean, std = (
        np.resize(np.array(given, np.float64), count).reshape(-1, 1, 1)
        for given in (preprocess.mean, preprocess.std)
    )
    return np.asarray((values.astype(np.float64) * std + mean) / preprocess.scale)


def _picture(values: Array, image: Frame8, preprocess: Preprocess) -> Frame8:
    import cv2

    planes = np.clip(np.rint(pixels_of(values, preprocess)), 0, 255).astype(np.uint8)
    if preprocess.color != "y":
        ordered = planes[::-1] if preprocess.color == "rgb" else planes
        return np.ascontiguousarray(ordered.transpose(1, 2, 0))
    size = planes.shape[2], planes.shape[1]
    enlarged = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb), size, interpolation=cv2.INTER_CUBIC)
    enlarged[..., 0] = planes[0]
    return np.asarray(cv2.cvtColor(enlarged, cv2.COLOR_YCrCb2BGR), np.uint8)
