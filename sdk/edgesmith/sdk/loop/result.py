"""What came of one frame."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from edgesmith.sdk.cameras.base import Frame
from edgesmith.sdk.results import Classifications, Detections

Answer = Detections | Classifications


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A frame and what the model said of it.

    ``stages_ms`` holds the time of each stage by name; ``done_ns`` is ``time.monotonic_ns`` when
    the answer was ready.
    """

    frame: Frame
    answer: Answer
    stages_ms: dict[str, float] = field(default_factory=dict)
    done_ns: int = field(default_factory=time.monotonic_ns)

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
