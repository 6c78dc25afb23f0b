"""A camera whose clock runs while its picture stands still."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.session import Grab

GRID = 64  # rows and columns that are looked at while all is well
LOOKS = 20  # looks in the time after which a picture counts as frozen


def sampled_hash(image: NDArray[np.uint8]) -> int:
    """Hash of at most ``GRID x GRID`` pixels spread over the picture, and of its shape."""
    rows, columns = (max(1, -(-n // GRID)) for n in image.shape[:2])
    return zlib.crc32(
        np.ascontiguousarray(image[::rows, ::columns]).tobytes(), hash(image.shape) & 0xFFFFFFFF
    )


class FrozenWatch:
    """Says whether the pixels have been the very same for ``limit_ns``.

    While the picture moves this costs a hash of a sparse sample, ``LOOKS`` times in the limit. Once the
    sample has been equal for half of it, every frame is compared in full: movement between the sampled
    pixels is movement, and one different frame is enough.

    A frozen picture stays remembered across reconnections, until a different one comes.
    """

    def __init__(self, limit_ns: int) -> None:
        self.limit_ns = limit_ns
        self.frozen = False
        self._hash: int | None = None
        self._since = 0
        self._next = 0
        self._reference: NDArray[np.uint8] | None = None

    def look(self, grab: Grab) -> bool:
        """Whether the picture is frozen as of this grab."""
        now = grab.captured_ns
        if not self.frozen and now < self._next:
            return False
        image = grab.image()
        if self._reference is not None:
            if not np.array_equal(image, self._reference):
                self._start(sampled_hash(image), now)
            elif now - self._since >= self.limit_ns:
                self.frozen = True
            return self.frozen
        sample = sampled_hash(image)
        if sample != self._hash:
            self._start(sample, now)
            return False
        if now - self._since >= self.limit_ns // 2:
            # A copy: whoever is handed the frame may draw on it.
            self._reference = image.copy()
        else:
            self._next = now + self.limit_ns // LOOKS
        return False

    def _start(self, sample: int, now: int) -> None:
        """The picture moved."""
        self.frozen = False
        self._hash, self._since, self._reference = sample, now, None
        self._next = now + self.limit_ns // LOOKS
