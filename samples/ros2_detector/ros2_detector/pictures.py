"""sensor_msgs/Image as the array that a model takes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Channels of an encoding, and what makes BGR of it.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, cv2.COLOR_GRAY2BGR),
}


def bgr_of(message: Any) -> NDArray[np.uint8]:
    """The picture of a ``sensor_msgs/Image``, BGR uint8 ``(H, W, 3)``.

    Raises:
        ValueError: the encoding is not one of :data:`ENCODINGS`, or the data is too short.
    """
    if message.encoding not in ENCODINGS:
        raise ValueError(f"encoding {message.encoding}: {', '.join(ENCODINGS)} can be read")
    channels, code = ENCODINGS[message.encoding]
    rows, columns, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if step < columns * channels or data.size < rows * step:
        raise ValueError(f"{data.size} bytes are too few for {rows} rows of {step}")
    # A row may be longer than its pixels.
    image = data[: rows * step].reshape(rows, step)[:, : columns * channels].reshape(rows, columns, channels)
    if code is None:
        return np.ascontiguousarray(image)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), code), np.uint8)
