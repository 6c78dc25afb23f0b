"""The golden pictures with what the graph finds in them, small enough to stand in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.decode import canonical
from edgesmith.sdk.manifest import Manifest
from edgesmith.sdk.maps import Segmentation
from edgesmith.sdk.preprocess import Frame8, prepared
from edgesmith.sdk.results import Classifications, Detections

WIDTH = 420
QUALITY = 82
QUIET = (225, 225, 225)  # BGR of boxes that are no news


def thumbnails(
    pictures: Sequence[Frame8], outputs: Mapping[str, NDArray[Any]], manifest: Manifest
) -> list[bytes]:
    """Each picture as JPEG, with boxes or classes drawn where the task has them."""
    return [_jpeg(_drawn(picture, row, outputs, manifest)) for row, picture in enumerate(pictures)]


def _drawn(picture: Frame8, row: int, outputs: Mapping[str, NDArray[Any]], manifest: Manifest) -> Frame8:
    if manifest.task == "detect" and manifest.nms is not None and manifest.nms.where == "host":
        _, geometry = prepared(manifest.preprocess, picture)
        found = canonical.detections(outputs, row, geometry, manifest.nms, manifest.labels)
        return found.draw(picture)
    if manifest.task == "classify":
        return canonical.classifications(outputs, row, manifest.labels).draw(picture)
    if manifest.task == "segment":
        _, geometry = prepared(manifest.preprocess, picture)
        return canonical.segmentation(outputs, row, geometry, manifest.labels).draw(picture)
    if manifest.task == "tensor":
        return canonical.tensors(outputs, row, manifest.preprocess).draw(picture)
    return picture


def jpeg(
    picture: Frame8,
    found: Detections | Classifications | Segmentation,
    quiet: NDArray[np.float32] | None = None,
    *,
    side: int,
    quality: int,
) -> bytes:
    """A picture of at most ``side`` pixels with what was found on it: text is drawn after the shrinking.

    ``quiet`` are boxes ``(n, 4)`` xyxy in its pixels that are outlined thinly, without text.
    """
    factor = min(1.0, side / max(picture.shape[:2]))
    if factor < 1:
        height, width = (max(1, round(length * factor)) for length in picture.shape[:2])
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if isinstance(found, Detections):
        found = Detections(found.boxes * np.float32(factor), found.scores, found.labels, found.names)
    canvas = picture.copy()
    for x1, y1, x2, y2 in [] if quiet is None else np.rint(quiet * factor).astype(int).tolist():
        cv2.rectangle(canvas, (x1, y1), (x2, y2), QUIET, 1, cv2.LINE_AA)
    return _encoded(found.draw(canvas), quality)


def _jpeg(picture: Frame8) -> bytes:
    height, width = picture.shape[:2]
    if width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return _encoded(picture, QUALITY)


def _encoded(picture: Frame8, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()
