"""R-CNN from two bundles: one proposes regions, the other names what is in each of them.

    python samples/rcnn.py regions.edge classes.edge photo.jpg

Girshick et al., 2014 (arXiv 1311.2524): regions, a crop of each, a classifier, a suppression class by class.
Any detector may propose; what it calls its regions does not count.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk import Cascade, Classifier, Detections, Detector, EdgesmithError
from edgesmith.sdk.cameras import read_image
from edgesmith.sdk.decode.nms import greedy


def recognised(
    cascade: Cascade, frame: NDArray[np.uint8], *, min_score: float = 0.5, iou: float = 0.3
) -> Detections:
    """Objects in a frame, BGR uint8 ``(H, W, 3)``: the classifier's best class of each region, best first."""
    regions = cascade(frame)
    tops = [classes.top for classes in regions.classes]
    scores = np.array([top.score for top in tops], np.float32)
    labels = np.array([top.label for top in tops], np.int64)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > min_score]
    keep = order[greedy(regions.boxes[order], labels[order], iou, most=100)]
    names = cascade.classifier.names
    return Detections(regions.boxes[keep], scores[keep], labels[keep].astype(np.int32), names)


def main(regions: str, classes: str, photo: str) -> None:
    frame = read_image(photo)
    # Regions are many and poor: the classifier is what decides.
    with Cascade(Detector.load(regions), Classifier.load(classes), score=0.05, margin=0.1) as cascade:
        for item in recognised(cascade, frame):
            x1, y1, x2, y2 = (round(float(v)) for v in item.box)
            print(f"{item.name} {item.score:.2f} at {x1}, {y1}, {x2}, {y2}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EdgesmithError as error:
        sys.exit(f"{error}")
