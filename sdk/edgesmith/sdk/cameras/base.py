"""What a source of frames gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and where it comes from.

    Attributes:
        image: BGR uint8 ``(H, W, 3)``.
        sequence: number in its source, from 0, gaps where frames could not be read.
        captured_ns: ``time.monotonic_ns`` at the grab.
        source_ns: the source's own clock (position in a file), or None.
        source_id: name of the source: a path, a device.
        dropped: frames of this source that were passed over right before this one.
    """

    image: NDArray[np.uint8]
    sequence: int
    captured_ns: int
    source_ns: int | None
    source_id: str
    dropped: int = 0


class Camera(Protocol):  # not a base class: a vendor's camera fits without importing us
    """A source of frames, used in a ``with`` block.

    Attributes:
        name: what to call it in messages; holds no credentials.
        fps: nominal rate in frames a second, or None where there is none (pictures).
        length: frames in all where that is known.
        faults: one line for each part that could not be read; reading goes on after it.
    """

    name: str
    fps: float | None
    length: int | None
    faults: list[str]

    def frames(self) -> Iterator[Frame]:
        """Frames in order, until the source ends.

        Raises:
            CameraLost: a live source stopped.
        """
        ...

    def close(self) -> None:
        """Let go of the device or file."""
        ...
