"""The one preprocess: calibration, evaluation, the demo and the robot all come through here.

A frame is BGR uint8 ``(H, W, 3)``. What a network was trained with is a
:class:`~edgesmith.sdk.manifest.Preprocess`, which travels in the bundle's manifest.
:func:`prepare` writes the network's input and returns the :class:`Geometry` that maps boxes, points
and masks back onto the frame.

    value = (pixel * scale - mean) / std        pixel 0..255, channel by channel
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.errors import CameraFormatError
from edgesmith.sdk.manifest import Color, Preprocess

__all__ = ["Geometry", "Preprocess", "frame_size", "geometry_of", "pixel_tables", "prepare", "prepared"]

Frame8 = NDArray[np.uint8]
Tensor = NDArray[np.float32]
INTERPOLATIONS = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
}
_PIXELS = np.arange(256, dtype=np.float32)


class Geometry(msgspec.Struct, frozen=True):
    """Where the frame lies in the network's input: ``input = frame * scale + offset``, per axis.

    ``height`` and ``width`` are the frame's; ``rows`` and ``columns`` the input's; pixels.
    """

    height: int
    width: int
    rows: int
    columns: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    @property
    def resized(self) -> tuple[int, int]:
        """Rows and columns that the whole frame has at the input's scale, before padding or cropping."""
        return round(self.scale_y * self.height), round(self.scale_x * self.width)

    def boxes_to_image(self, boxes: Tensor) -> Tensor:
        """Boxes ``(n, 4)`` xyxy from input pixels to frame pixels, cut at the frame's border."""
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        offset = np.array([self.offset_x, self.offset_y] * 2, np.float32)
        mapped = (boxes - offset) / scale
        limit = np.array([self.width, self.height] * 2, np.float32)
        np.clip(mapped, 0.0, limit, out=mapped)
        return np.asarray(mapped, np.float32)

    def boxes_to_input(self, boxes: Tensor) -> Tensor:
        """Boxes ``(n, 4)`` xyxy from frame pixels to input pixels."""
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        offset = np.array([self.offset_x, self.offset_y] * 2, np.float32)
        return np.asarray(boxes * scale + offset, np.float32)

    def points_to_image(self, points: Tensor) -> Tensor:
        """Points ``(n, 2)`` as x, y from input pixels to frame pixels (not cut)."""
        scale = np.array([self.scale_x, self.scale_y], np.float32)
        offset = np.array([self.offset_x, self.offset_y], np.float32)
        return np.asarray((points - offset) / scale, np.float32)

    def map_to_image(self, values: Tensor) -> Tensor:
        """A map ``(h, w)`` that covers the whole input, at the frame's size ``(height, width)``.

        The map may be coarser than the input. Interpolation is bilinear; where the input does
        not show the frame (a centre crop), the nearest value stands.
        """
        step_y, step_x = values.shape[0] / self.rows, values.shape[1] / self.columns
        part = self._part_of(step_y, step_x)
        if part is not None:
            # The exact resize; the warp below knows places to a 32nd of a pixel.
            size = self.width, self.height
            return np.asarray(cv2.resize(values[part], size, interpolation=cv2.INTER_LINEAR), np.float32)
        # Pixel centres: frame x + 0.5 lies at (x + 0.5) * scale + offset in input pixels.
        matrix = np.array(
            [
                [self.scale_x * step_x, 0.0, (0.5 * self.scale_x + self.offset_x) * step_x - 0.5],
                [0.0, self.scale_y * step_y, (0.5 * self.scale_y + self.offset_y) * step_y - 0.5],
            ]
        )
        warped = cv2.warpAffine(
            values, matrix, (self.width, self.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return np.asarray(warped, np.float32)

    def _part_of(self, step_y: float, step_x: float) -> tuple[slice, slice] | None:
        """Rows and columns of a map that show the frame; None where it is not whole and in whole pixels."""
        parts = []
        axes = ((self.offset_y, self.resized[0], self.rows, step_y),
                (self.offset_x, self.resized[1], self.columns, step_x))  # fmt: skip
        for offset, length, side, step in axes:
            ends = offset * step, (offset + length) * step
            if offset < 0 or offset + length > side or any(abs(e - round(e)) > 1e-6 for e in ends):
                return None
            parts.append(slice(round(ends[0]), round(ends[1])))
        return parts[0], parts[1]


def prepare(preprocess: Preprocess, frame: Frame8, *, out: NDArray[np.generic] | None = None) -> Geometry:
    """Write one frame, BGR uint8 ``(H, W, 3)``, into ``out`` as the network takes it.

    Args:
        preprocess: what the network was trained with.
        frame: the picture; any memory layout.
        out: C-contiguous array of ``preprocess.tensor_shape(H, W)``, float32 for ``nchw``, uint8
            for ``nhwc``; every element is written.

    Raises:
        CameraFormatError: the frame or ``out`` has another shape or type.
    """
    height, width = frame_size(frame)
    geometry = geometry_of(preprocess, height, width)
    fitted = _fit(preprocess, _colored(frame, preprocess.color), geometry)
    shape = preprocess.tensor_shape(height, width)
    wanted = np.dtype(np.float32 if preprocess.layout == "nchw" else np.uint8)
    if out is None or out.shape != shape or out.dtype != wanted or not out.flags.carray:
        got = "nothing" if out is None else f"{out.dtype} {out.shape}"
        raise CameraFormatError(
            f"prepare writes into a writable C-contiguous {wanted} array of {shape}, got {got}"
        )
    if preprocess.layout == "nhwc":
        np.copyto(out, (fitted[..., ::-1] if preprocess.color == "rgb" else fitted).reshape(shape))
    else:
        _normalise(preprocess, fitted, out)
    return geometry


def prepared(preprocess: Preprocess, frame: Frame8) -> tuple[Tensor, Geometry]:
    """Like :func:`prepare`, into a new tensor with a batch axis: ``(1, C, H, W)`` or ``(1, H, W, C)``."""
    height, width = frame_size(frame)
    shape = (1, *preprocess.tensor_shape(height, width))
    out = np.empty(shape, np.float32 if preprocess.layout == "nchw" else np.uint8)
    return out, prepare(preprocess, frame, out=out[0])


def frame_size(frame: Frame8) -> tuple[int, int]:
    """Height and width of a frame.

    Raises:
        CameraFormatError: it is not BGR uint8 ``(H, W, 3)``.
    """
    if not isinstance(frame, np.ndarray):
        raise CameraFormatError(f"a frame is a numpy array, got {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise CameraFormatError(
            f"a frame is BGR uint8 (H, W, 3), got {frame.dtype} {frame.shape}; "
            "convert grey pictures with cv2.cvtColor(x, cv2.COLOR_GRAY2BGR)"
        )
    return frame.shape[0], frame.shape[1]


def _colored(frame: Frame8, color: Color) -> Frame8:
    if not frame.flags.c_contiguous:
        frame = np.ascontiguousarray(frame)
    if color == "y":
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2YCrCb)[..., :1])
    return frame  # BGR to RGB is a matter of which plane goes where: see _normalise


def geometry_of(preprocess: Preprocess, height: int, width: int) -> Geometry:
    """Where a frame of ``height`` x ``width`` pixels lies in the network's input.

    Raises:
        CameraFormatError: the network takes frames of one size as they are, and this is another.
    """
    if preprocess.size is None:
        return Geometry(height, width, height, width)
    rows, columns = preprocess.size
    if preprocess.fit == "none":
        if (height, width) != (rows, columns):
            raise CameraFormatError(
                f"this model takes frames of {rows} x {columns} (H x W) as they are, got {height} x {width}"
            )
        return Geometry(height, width, rows, columns)
    if preprocess.fit == "stretch":
        return Geometry(height, width, rows, columns, columns / width, rows / height)
    if preprocess.fit == "resize-crop":
        return _resize_crop(preprocess, height, width, rows, columns)
    return _letterbox(preprocess, height, width, rows, columns)


def _whole(value: float, preprocess: Preprocess) -> int:
    # Python's round takes halves to the even number, as the usual training code does.
    return max(1, int(value) if preprocess.rounding == "floor" else round(value))


def _letterbox(preprocess: Preprocess, height: int, width: int, rows: int, columns: int) -> Geometry:
    ratio = min(rows / height, columns / width)
    if not preprocess.upscale:
        ratio = min(ratio, 1.0)
    new_rows = min(_whole(height * ratio, preprocess), rows)
    new_columns = min(_whole(width * ratio, preprocess), columns)
    centred = preprocess.anchor == "center"
    top = (rows - new_rows) // 2 if centred else 0
    left = (columns - new_columns) // 2 if centred else 0
    return Geometry(
        height, width, rows, columns, new_columns / width, new_rows / height, float(left), float(top)
    )


def _resize_crop(preprocess: Preprocess, height: int, width: int, rows: int, columns: int) -> Geometry:
    side = preprocess.crop_side
    ratio = side / min(height, width)
    new_rows = max(side, _whole(height * ratio, preprocess))
    new_columns = max(side, _whole(width * ratio, preprocess))
    top, left = (new_rows - rows) // 2, (new_columns - columns) // 2
    return Geometry(
        height, width, rows, columns, new_columns / width, new_rows / height, float(-left), float(-top)
    )


def _fit(preprocess: Preprocess, frame: Frame8, geometry: Geometry) -> Frame8:
    """Resize, then pad or crop to the input's size; colour order stays."""
    rows, columns = geometry.rows, geometry.columns
    new_rows, new_columns = geometry.resized
    fitted = _resized(preprocess, frame, new_rows, new_columns)
    if (new_rows, new_columns) == (rows, columns):
        return fitted
    top, left = int(geometry.offset_y), int(geometry.offset_x)
    if new_rows >= rows and new_columns >= columns:
        return fitted[-top : rows - top, -left : columns - left]
    canvas = np.full((rows, columns, frame.shape[2]), preprocess.pad, np.uint8)
    canvas[top : top + new_rows, left : left + new_columns] = fitted
    return canvas


def _resized(preprocess: Preprocess, frame: Frame8, rows: int, columns: int) -> Frame8:
    """``(rows, columns, C)`` uint8; the frame itself where it has that size already."""
    if frame.shape[:2] == (rows, columns):
        return frame
    if preprocess.antialias:
        return _antialiased(frame, rows, columns, preprocess.interpolation)
    flag = INTERPOLATIONS[preprocess.interpolation]
    resized = cv2.resize(frame, (columns, rows), interpolation=flag)
    return np.asarray(resized, np.uint8).reshape(rows, columns, frame.shape[2])


@lru_cache(maxsize=32)
def _filter_matrix(size: int, new: int, kind: str) -> Tensor:
    """Resampling weights ``(new, size)`` of a filter that widens when it shrinks.

    The triangle and the cubic (a = -0.5) of Pillow's resize and torch's ``antialias=True``:
    support grows with the shrink factor, each row sums to one.
    """
    ratio = size / new
    stretch = max(ratio, 1.0)
    centres = (np.arange(new) + 0.5) * ratio
    x = np.abs((np.arange(size)[None] + 0.5 - centres[:, None]) / stretch)
    weights = np.clip(1 - x, 0, None) if kind == "linear" else cubic_weights(x)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def cubic_weights(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution (Keys, 1981, eq. 15, a = -0.5) at the distances ``x >= 0`` from the centre."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.asarray(np.where(x < 1, near, np.where(x < 2, far, 0.0)))


def _antialiased(frame: Frame8, rows: int, columns: int, kind: str) -> Frame8:
    height, width, channels = frame.shape
    flat = frame.astype(np.float32).reshape(height, width * channels)
    lower = (_filter_matrix(height, rows, kind) @ flat).reshape(rows, width, channels)
    values = np.matmul(_filter_matrix(width, columns, kind), lower)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


@lru_cache(maxsize=64)
def pixel_tables(preprocess: Preprocess) -> tuple[Tensor, ...]:
    """For each channel, in the network's order, the 256 values that a pixel can become."""
    pixels = np.arange(256, dtype=np.float64)
    tables: list[Tensor] = []
    for channel in range(preprocess.channels):
        mean = preprocess.mean[channel % len(preprocess.mean)]
        std = preprocess.std[channel % len(preprocess.std)]
        table = ((pixels * preprocess.scale - mean) / std).astype(np.float32)
        table.flags.writeable = False
        tables.append(table)
    return tuple(tables)


def _normalise(preprocess: Preprocess, fitted: Frame8, out: NDArray[np.generic]) -> None:
    # A table of 256 floats a channel is one pass over the pixels, rounded once from float64.
    planes = [fitted[..., 0]] if fitted.shape[2] == 1 else list(cv2.split(fitted))
    if preprocess.color == "rgb":
        planes.reverse()
    for plane, table, target in zip(planes, pixel_tables(preprocess), out, strict=True):
        if np.array_equal(table, _PIXELS):
            np.copyto(target, plane)
        else:
            cv2.LUT(np.ascontiguousarray(plane), table, dst=target)
