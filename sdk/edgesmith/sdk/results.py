"""What a model answers: arrays first, items on demand, no vendor names.

:class:`Detections` for detectors, :class:`Classifications` for classifiers; class maps and plain tensors
stand in :mod:`edgesmith.sdk.maps`. An empty result is a value like any other, never None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk import rle
from edgesmith.sdk.masks import BoxMasks

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Detection:
    """One item of :class:`Detections`: ``box`` xyxy in image pixels, ``label`` the class index."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str
    track_id: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects found in one image, best first.

    Attributes:
        boxes: float32 ``(n, 4)`` xyxy in image pixels.
        scores: float32 ``(n,)``, 0..1.
        labels: int32 ``(n,)`` class indices.
        names: class names by index; empty where the model has none.
        masks: a sequence of bool ``(H, W)`` at the image's size, one a box, or None. Those of a model are
            made when they are looked at; ``numpy.asarray(masks)`` is bool ``(n, H, W)``.
        track_ids: int32 ``(n,)``, or None.

    Raises:
        ValueError: the arrays do not go together.
    """

    boxes: Floats
    scores: Floats
    labels: Ints
    names: tuple[str, ...] = ()
    masks: NDArray[np.bool_] | BoxMasks | None = None
    track_ids: Ints | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.labels.shape != (n,) or self.scores.ndim != 1:
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape}, labels {self.labels.shape} "
                "do not go together: (n, 4), (n,), (n,)"
            )
        for name, extra in (("masks", self.masks), ("track_ids", self.track_ids)):
            if extra is not None and len(extra) != n:
                raise ValueError(f"{name} has {len(extra)} entries for {n} boxes")

    @classmethod
    def empty(cls, names: Sequence[str] = ()) -> Detections:
        """No objects."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), tuple(names))

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        tracks = [None] * len(self) if self.track_ids is None else self.track_ids.tolist()
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), tracks, strict=True)
        for box, score, label, track in rows:
            yield Detection(tuple(box), score, label, self.name_of(label), track)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | Sequence[int] | Sequence[bool]) -> Detections: ...
    def __getitem__(self, index: Any) -> Detection | Detections:
        """One item by number; a part by slice, mask or list of numbers."""
        if isinstance(index, int | np.integer):
            at = int(index)
            if not -len(self) <= at < len(self):
                raise IndexError(f"detection {at} of {len(self)}")
            return next(iter(self[[at]]))
        part = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(part, np.ndarray) and part.size == 0:
            part = part.astype(np.intp) if part.dtype != np.bool_ else part
        return Detections(
            self.boxes[part],
            self.scores[part],
            self.labels[part],
            self.names,
            None if self.masks is None else self.masks[part],
            None if self.track_ids is None else self.track_ids[part],
        )

    def name_of(self, label: int) -> str:
        """The class name, or the number as text where there are no names."""
        return self.names[label] if 0 <= label < len(self.names) else str(label)

    def filter(
        self, *, min_score: float | None = None, labels: Sequence[int | str] | None = None
    ) -> Detections:
        """Those of at least ``min_score``, and of the given classes (numbers or names).

        Raises:
            ValueError: a name is not among the model's classes.
        """
        keep: NDArray[np.bool_] = np.ones(len(self), np.bool_)
        if min_score is not None:
            keep &= self.scores >= min_score
        if labels is not None:
            numbers = [self._number(label) for label in labels]
            keep &= np.isin(self.labels, np.array(numbers, np.int32))
        return self[keep]

    def _number(self, label: int | str) -> int:
        if not isinstance(label, str):
            return int(label)
        if label not in self.names:
            raise ValueError(
                f"no class is called {label!r}; the classes are {', '.join(self.names) or 'unnamed'}"
            )
        return self.names.index(label)

    def draw(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the image, BGR uint8 ``(H, W, 3)``, with masks, boxes, names and scores on it."""
        from edgesmith.sdk.draw import draw_boxes  # needs OpenCV, which arrays alone do not

        texts, colors = [], []
        for item in self:
            track = "" if item.track_id is None else f"#{item.track_id} "
            texts.append(f"{track}{item.name} {item.score:.2f}")
            colors.append(item.label if item.track_id is None else item.track_id)
        return draw_boxes(image, self.boxes, texts, colors, self.masks)

    def to_dict(self) -> list[dict[str, Any]]:
        """A list of ``box``, ``score``, ``label``, ``name``, ready for JSON.

        Where there are any, ``track_id`` and ``mask`` as well, COCO's run lengths (``size``, ``counts``).
        """
        items = []
        for number, d in enumerate(self):
            item: dict[str, Any] = {"box": list(d.box), "score": d.score, "label": d.label, "name": d.name}
            if d.track_id is not None:
                item["track_id"] = d.track_id
            if self.masks is not None:
                item["mask"] = rle.encode(self.masks[number])
            items.append(item)
        return items

    @classmethod
    def from_dict(cls, items: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> Detections:
        """The inverse of :meth:`to_dict`; without ``names`` those in the items are used."""
        if not items:
            return cls.empty(names)
        tracks = [i.get("track_id") for i in items]
        masks = [i.get("mask") for i in items]
        return cls(
            np.array([i["box"] for i in items], np.float32).reshape(-1, 4),
            np.array([i["score"] for i in items], np.float32),
            np.array([i["label"] for i in items], np.int32),
            tuple(names) or names_in(items),
            None if None in masks else np.stack([rle.decode(mask) for mask in masks if mask is not None]),
            None if any(t is None for t in tracks) else np.array(tracks, np.int32),
        )

    def to_coco(self, image_id: int, categories: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results: ``bbox`` is x, y, width, height; ``categories`` gives the id of each class.

        With masks there is ``segmentation`` too, as run lengths.
        """
        items = []
        for number, d in enumerate(self):
            category = d.label if categories is None else categories[d.label]
            x1, y1, x2, y2 = d.box
            bbox = [x1, y1, x2 - x1, y2 - y1]
            item = {"image_id": image_id, "category_id": category, "bbox": bbox, "score": d.score}
            if self.masks is not None:
                item["segmentation"] = rle.encode(self.masks[number])
            items.append(item)
        return items


@dataclass(frozen=True, slots=True)
class Classification:
    """One item of :class:`Classifications`."""

    label: int
    score: float
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Classifications:
    """The classes of one image, best first: ``labels`` int32 ``(k,)``, ``scores`` float32 ``(k,)`` 0..1.

    Raises:
        ValueError: the arrays do not go together.
    """

    labels: Ints
    scores: Floats
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.shape != self.scores.shape:
            raise ValueError(
                f"labels {self.labels.shape} and scores {self.scores.shape} do not go together: (k,), (k,)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Classification]:
        for label, score in zip(self.labels.tolist(), self.scores.tolist(), strict=True):
            yield Classification(label, score, self.name_of(label))

    def __getitem__(self, index: int) -> Classification:
        label, score = int(self.labels[index]), float(self.scores[index])
        return Classification(label, score, self.name_of(label))

    def name_of(self, label: int) -> str:
        """The class name, or the number as text where there are no names."""
        return self.names[label] if 0 <= label < len(self.names) else str(label)

    @property
    def top(self) -> Classification:
        """The best class."""
        return self[0]

    def top_k(self, k: int) -> Classifications:
        """The ``k`` best classes."""
        return Classifications(self.labels[:k], self.scores[:k], self.names)

    def draw(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the image, BGR uint8 ``(H, W, 3)``, with the best three classes on it."""
        from edgesmith.sdk.draw import draw_lines  # needs OpenCV, which arrays alone do not

        best = list(self.top_k(3))
        return draw_lines(image, [f"{c.name} {c.score:.2f}" for c in best], [c.label for c in best])

    def to_dict(self) -> list[dict[str, Any]]:
        """A list of ``label``, ``score``, ``name``, ready for JSON."""
        return [{"label": c.label, "score": c.score, "name": c.name} for c in self]

    @classmethod
    def from_dict(cls, items: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> Classifications:
        """The inverse of :meth:`to_dict`; without ``names`` those in the items are used."""
        return cls(
            np.array([i["label"] for i in items], np.int32),
            np.array([i["score"] for i in items], np.float32),
            tuple(names) or names_in(items),
        )


def names_in(items: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Class names by index, as far as the items tell them; the number as text elsewhere."""
    known = {int(i["label"]): str(i["name"]) for i in items if "name" in i}
    return tuple(known.get(n, str(n)) for n in range(max(known, default=-1) + 1))
