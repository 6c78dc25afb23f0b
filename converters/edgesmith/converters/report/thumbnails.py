"""The golden pictures with what the graph finds in them, small enough to stand in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.decode import canonical
from edgesmith.sdk.manifest import Manifest
from edgesmith.sdk.preprocess import Frame8, prepared

WIDTH = 420
QUALITY = 82


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
    return picture


def _jpeg(picture: Frame8) -> bytes:
    height, width = picture.shape[:2]
    if width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()
