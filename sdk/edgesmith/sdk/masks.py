"""Instance masks: probabilities in each box's frame, pasted into the image when they are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
# Zeros around a mask before it is enlarged, so that it can end inside of its box (He et al. 2017 and the
# libraries that train it).
PADDING = 1


@dataclass(frozen=True, slots=True, eq=False)
class BoxMasks:
    """Masks of ``n`` boxes in an image of ``size`` (H, W): a sequence of bool ``(H, W)``.

    Each is made when it is asked for: a hundred of them at full size would be hundreds of megabytes.
    ``numpy.asarray`` gives all as bool ``(n, H, W)``.

    Attributes:
        probabilities: float32 ``(n, h, w)``, 0..1, each over the whole of its box.
        boxes: float32 ``(n, 4)`` xyxy in image pixels; they may reach beyond the image.
        size: (H, W) of the image.
        threshold: a pixel of more than this probability belongs to the object.
    """

    probabilities: Floats
    boxes: Floats
    size: tuple[int, int]
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n, H, W)``, that of the array."""
        return len(self), *self.size

    @property
    def dtype(self) -> np.dtype[np.bool_]:
        """bool."""
        return np.dtype(np.bool_)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | Sequence[int]) -> BoxMasks: ...
    def __getitem__(self, index: Any) -> Mask | BoxMasks:
        if isinstance(index, int | np.integer):
            return self._pasted(int(index))
        return BoxMasks(self.probabilities[index], self.boxes[index], self.size, self.threshold)

    def __iter__(self) -> Iterator[Mask]:
        return (self._pasted(number) for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.zeros(self.shape, np.bool_)
        for number, mask in enumerate(self):
            whole[number] = mask
        return whole if dtype is None else whole.astype(dtype)

    def _pasted(self, number: int) -> Mask:
        """One mask at the image's size: its frame, padded by a ring of zeros, lies over the grown box."""
        import cv2

        inner = np.pad(self.probabilities[number], PADDING)
        grown = _grown(self.boxes[number], self.probabilities.shape[1:])
        x0, y0, x1, y1 = grown
        width, height = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
        mask = np.zeros(self.size, np.bool_)
        left, top = max(x0, 0), max(y0, 0)
        right, bottom = min(x1 + 1, self.size[1]), min(y1 + 1, self.size[0])
        if right > left and bottom > top:
            enlarged = cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR)
            part = enlarged[top - y0 : bottom - y0, left - x0 : right - x0]
            mask[top:bottom, left:right] = part > self.threshold
        return mask


def _grown(box: Floats, frame: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box xyxy in whole pixels, larger by what the ring of zeros adds on each side of its mask."""
    rows, columns = frame
    x1, y1, x2, y2 = (np.float32(value) for value in box)
    half_x = (x2 - x1) * np.float32(0.5) * np.float32((columns + 2 * PADDING) / columns)
    half_y = (y2 - y1) * np.float32(0.5) * np.float32((rows + 2 * PADDING) / rows)
    middle_x, middle_y = (x2 + x1) * np.float32(0.5), (y2 + y1) * np.float32(0.5)
    # Cut, not rounded, as the reference does.
    return (
        int(middle_x - half_x), int(middle_y - half_y), int(middle_x + half_x), int(middle_y + half_y)
    )  # fmt: skip
