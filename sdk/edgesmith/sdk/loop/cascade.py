"""Detect, crop, classify: two models as one.

cascade = Cascade(Detector.load("faces.edge"), Classifier.load("moods.edge"))
found = cascade(frame)                    # Detections, each with its classes
for face, mood in zip(found, found.classes): ...
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.stages import ModelStages
from edgesmith.sdk.manifest import Nms
from edgesmith.sdk.models import Classifier, Detector
from edgesmith.sdk.results import Classifications, Detection, Detections

Frame8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ClassifiedDetections(Detections):
    """Detections with the classes of each box: ``classes`` has one entry a box.

    Raises:
        ValueError: the arrays do not go together.
    """

    classes: tuple[Classifications, ...] = ()

    def __post_init__(self) -> None:
        Detections.__post_init__(self)
        if len(self.classes) != len(self.scores):
            raise ValueError(f"classes has {len(self.classes)} entries for {len(self.scores)} boxes")

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(
        self, index: slice | NDArray[Any] | Sequence[int] | Sequence[bool]
    ) -> ClassifiedDetections: ...
    def __getitem__(self, index: Any) -> Detection | ClassifiedDetections:
        """One item by number; a part, with its classes, by slice, mask or list of numbers."""
        if isinstance(index, int | np.integer):
            return Detections.__getitem__(self, int(index))
        numbers = np.arange(len(self))[index if isinstance(index, slice) else _mask(index)]
        part = Detections.__getitem__(self, numbers)
        return _with_classes(part, tuple(self.classes[n] for n in numbers))

    def draw(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the image, BGR uint8 ``(H, W, 3)``, with boxes, names, and the best class of each."""
        from edgesmith.sdk.draw import draw_boxes  # needs OpenCV, which arrays alone do not

        texts, colors = [], []
        for item, classes in zip(self, self.classes, strict=True):
            track = "" if item.track_id is None else f"#{item.track_id} "
            best = f" {classes.top.name} {classes.top.score:.2f}" if len(classes) else ""
            texts.append(f"{track}{item.name} {item.score:.2f}{best}")
            colors.append(item.label if item.track_id is None else item.track_id)
        return draw_boxes(image, self.boxes, texts, colors)

    def to_dict(self) -> list[dict[str, Any]]:
        """As of :class:`Detections`, and in each item ``classes``, the best five."""
        items = Detections.to_dict(self)
        for item, classes in zip(items, self.classes, strict=True):
            item["classes"] = classes.top_k(5).to_dict()
        return items

    @classmethod
    def from_dict(cls, items: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> ClassifiedDetections:
        """The inverse of :meth:`to_dict`, as far as that goes: the best five classes of each box."""
        classes = tuple(Classifications.from_dict(item.get("classes", [])) for item in items)
        return _with_classes(Detections.from_dict(items, names), classes)


class Cascade:
    """A detector and a classifier as one model: callable on frames, and at home in a capture loop.

    The boxes of all frames of a batch go through the classifier together, as many at once as its
    batch range allows. In a loop the detector's graph and the classifier run in threads of their own,
    one frame apart. Closing it closes both models.

    Args:
        detector: finds what to look at.
        classifier: is given each box as a picture of its own.
        score, iou: the detector's thresholds in place of the bundle's.
        margin: share of a box's sides that is added around it before it is cut out.
        labels: classes (numbers or names) of the detector whose boxes are classified; None for all.
            The other boxes have no classes.
        smallest: boxes with a side below so many pixels are not classified.

    Raises:
        ConfigError: thresholds that the detector's graph cannot serve, an unknown class, or a margin below 0.
    """

    def __init__(
        self,
        detector: Detector,
        classifier: Classifier,
        *,
        score: float | None = None,
        iou: float | None = None,
        margin: float = 0.0,
        labels: Sequence[int | str] | None = None,
        smallest: int = 2,
    ) -> None:
        self._stages = ModelStages(detector, score=score, iou=iou)
        if margin < 0:
            raise ConfigError(f"margin is {margin:g}; it is a share of the box, 0 or more")
        self.detector = detector
        self.classifier = classifier
        self.limit = self._stages.limit
        self.timings: dict[str, int] = {}
        self._score, self._iou = score, iou
        self._margin, self._smallest = margin, max(1, smallest)
        self._labels = None if labels is None else _numbers(labels, detector.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The detector's class names by index."""
        return self.detector.names

    @property
    def nms(self) -> Nms:
        """The detector's thresholds."""
        return self.detector.nms

    def close(self) -> None:
        """Free both models."""
        self.detector.close()
        self.classifier.close()

    def __enter__(self) -> Cascade:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def __call__(self, frames: Frame8) -> ClassifiedDetections: ...
    @overload
    def __call__(self, frames: Sequence[Frame8]) -> list[ClassifiedDetections]: ...
    def __call__(
        self, frames: Frame8 | Sequence[Frame8]
    ) -> ClassifiedDetections | list[ClassifiedDetections]:
        """Detections in frame pixels, best first, with the classes of each box.

        Raises:
            CameraFormatError: a frame is not BGR uint8 ``(H, W, 3)``.
            BackendError: a run failed, or another thread is using one of the models.
        """
        single = isinstance(frames, np.ndarray) and frames.ndim <= 3
        several: list[Frame8] = [frames] if single else list(frames)  # type: ignore[list-item]
        found = self.detector(several, score=self._score, iou=self._iou)
        started = time.monotonic_ns()
        answers = self._classified(several, found)
        self.timings = {**self.detector.timings, "classify": time.monotonic_ns() - started}
        return answers[0] if single else answers

    def prepare(self, frames: Sequence[Frame8]) -> Any:
        """The detector's batch and geometries."""
        return self._stages.prepare(frames)

    def infer(self, prepared: Any) -> Any:
        """The detector's outputs."""
        return self._stages.infer(prepared)

    def decode(self, frames: Sequence[Frame8], prepared: Any, outputs: Any) -> Sequence[Any]:
        """The detections, and the classes of what the classifier makes of their crops."""
        return self._classified(frames, self._stages.decode(frames, prepared, outputs))

    def _classified(
        self, frames: Sequence[Frame8], found: Sequence[Detections]
    ) -> list[ClassifiedDetections]:
        crops: list[Frame8] = []
        wanted: list[list[bool]] = []
        for frame, detections in zip(frames, found, strict=True):
            cuts = [self._cut(frame, item) for item in detections]
            wanted.append([cut is not None for cut in cuts])
            crops += [cut for cut in cuts if cut is not None]
        answers: Iterator[Classifications] = iter(self.classifier(crops) if crops else [])
        nothing = Classifications(np.empty(0, np.int32), np.empty(0, np.float32), self.classifier.names)
        return [
            _with_classes(detections, tuple(next(answers) if cut else nothing for cut in cuts))
            for detections, cuts in zip(found, wanted, strict=True)
        ]

    def _cut(self, frame: Frame8, item: Detection) -> Frame8 | None:
        if self._labels is not None and item.label not in self._labels:
            return None
        x1, y1, x2, y2 = item.box
        wide, high = self._margin * (x2 - x1), self._margin * (y2 - y1)
        height, width = frame.shape[:2]
        left, top = max(0, int(np.floor(x1 - wide))), max(0, int(np.floor(y1 - high)))
        right, bottom = min(width, int(np.ceil(x2 + wide))), min(height, int(np.ceil(y2 + high)))
        if min(right - left, bottom - top) < self._smallest:
            return None
        return frame[top:bottom, left:right]


def _with_classes(detections: Detections, classes: tuple[Classifications, ...]) -> ClassifiedDetections:
    return ClassifiedDetections(
        detections.boxes,
        detections.scores,
        detections.labels,
        detections.names,
        detections.masks,
        detections.track_ids,
        classes,
    )


def _mask(index: Any) -> NDArray[Any]:
    part = np.asarray(index)
    return part.astype(np.intp) if part.size == 0 and part.dtype != np.bool_ else part


def _numbers(labels: Sequence[int | str], names: Sequence[str]) -> frozenset[int]:
    for label in labels:
        if isinstance(label, str) and label not in names:
            raise ConfigError(f"no class is called {label!r}; the detector has {', '.join(names) or 'none'}")
    return frozenset(names.index(label) if isinstance(label, str) else int(label) for label in labels)
