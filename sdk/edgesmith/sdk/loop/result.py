"""What came of one frame."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.maps import Segmentation, Tensors
from edgesmith.sdk.results import Classifications, Detections

Answer = Detections | Classifications | Segmentation | Tensors


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A frame and what the model said of it.

    Attributes:
        frame: the picture; ``frame.dropped`` counts those passed over right before it.
        answer: what the model said.
        stages_ms: time of each stage by name; frames of one batch share their stages' times.
        done_ns: ``time.monotonic_ns`` when the answer was ready.
        ages_ms: age of the frame, from its grab, at the end of each stage; ``taken`` is when its
            preprocess began.
        camera: name of the camera; ``frame.source_id`` may say more (the path of a picture).
        batch: how many frames went through the model together.
    """

    frame: Frame
    answer: Answer
    stages_ms: dict[str, float] = field(default_factory=dict)
    done_ns: int = field(default_factory=time.monotonic_ns)
    ages_ms: dict[str, float] = field(default_factory=dict)
    camera: str = ""
    batch: int = 1

    @property
    def detections(self) -> Detections:
        """The answer of a detector.

        Raises:
            TypeError: the model is of another task.
        """
        if not isinstance(self.answer, Detections):
            raise TypeError(f"this result holds {type(self.answer).__name__}: read .answer")
        return self.answer

    @property
    def age_ms(self) -> float:
        """Time from the grab of the frame to its answer."""
        return (self.done_ns - self.frame.captured_ns) / 1e6

    @property
    def dropped(self) -> int:
        """Frames passed over right before this one."""
        return self.frame.dropped


def after(older: Frame, newer: Frame) -> Frame:
    """The newer frame, which tells that the older one and those before it were passed over."""
    return replace(newer, dropped=newer.dropped + older.dropped + 1)
