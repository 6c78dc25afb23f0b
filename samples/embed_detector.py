"""For robot code: a bundle as a callable, frames in, the nearest object out.

    python samples/embed_detector.py model.edge clip.mp4

What a robot's vision node does in a few lines: load once, take frames, act on the largest object.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk import Detector, EdgesmithError, open_camera


@dataclass(frozen=True)
class Target:
    """What to steer at: its name, and where its centre lies from -1 (left edge) to 1 (right edge)."""

    name: str
    bearing: float
    size: float


def largest_target(detector: Detector, frame: NDArray[np.uint8], *, min_score: float = 0.5) -> Target | None:
    """The object with the largest box in a frame, BGR uint8 ``(H, W, 3)``; None where there is nothing."""
    found = detector(frame).filter(min_score=min_score)
    if not len(found):
        return None
    height, width = frame.shape[:2]
    x1, y1, x2, y2 = found.boxes.T
    areas = (x2 - x1) * (y2 - y1)
    best = int(areas.argmax())
    bearing = float((x1[best] + x2[best]) / width - 1)
    return Target(found[best].name, bearing, float(areas[best]) / (height * width))


def main(bundle: str, source: str) -> None:
    with Detector.load(bundle) as detector:
        camera = open_camera(source)
        try:
            for frame in camera.frames():
                target = largest_target(detector, frame.image)
                if target is None:
                    print(f"frame {frame.sequence}: nothing, turn and look")
                else:
                    side = "left" if target.bearing < -0.1 else "right" if target.bearing > 0.1 else "ahead"
                    print(
                        f"frame {frame.sequence}: {target.name} {side}, {100 * target.size:.1f} % of the view"
                    )
        finally:
            camera.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2])
    except EdgesmithError as error:
        sys.exit(f"{error}")
