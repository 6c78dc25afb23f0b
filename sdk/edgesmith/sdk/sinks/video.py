"""Annotated video and pictures."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.loop.result import Result

Image = NDArray[np.uint8]


class AnnotatedVideo:
    """A video of the frames with the answers drawn on them.

    H.264 (plays in browsers) through PyAV where it is installed, else MPEG-4 through OpenCV, which a
    note tells. The file appears under its name when it is finished; frames of another size than the
    first are fitted into it.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float | None = None) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._fps = fps or 25.0
        self._partial = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        self._encoder: _PyavEncoder | _OpencvEncoder | None = None
        self._size = (0, 0)
        if not self.path.parent.is_dir():
            raise SinkError(f"{self.path}: the folder {self.path.parent} does not exist")

    def write(self, result: Result) -> None:
        """Draw and append one frame.

        Raises:
            SinkError: the encoder or the disk refuses.
        """
        image = result.answer.draw(result.frame.image)
        try:
            if self._encoder is None:
                self._size = _even(image.shape[0]), _even(image.shape[1])
                self._encoder = self._opened()
            self._encoder.write(_fitted(image, *self._size))
        except OSError as error:
            raise SinkError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _opened(self) -> _PyavEncoder | _OpencvEncoder:
        if importlib.util.find_spec("av") is not None:
            return _PyavEncoder(self._partial, self._fps, self._size)
        self.notes.append(
            f"{self.path} is MPEG-4, which browsers do not play: pip install 'edgesmith[video]' for H.264"
        )
        return _OpencvEncoder(self._partial, self._fps, self._size)

    def close(self) -> None:
        """Finish the file and give it its name; without frames there is none."""
        if self._encoder is None:
            return
        encoder, self._encoder = self._encoder, None
        try:
            encoder.close()
            self._partial.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._partial.unlink()
            raise SinkError(f"{self.path}: cannot be finished: {error.strerror or error}") from error


class AnnotatedPictures:
    """A picture a frame: in a folder under the source's name or number, or one picture file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._single = self.path.suffix.lower() in PICTURES
        folder = self.path.parent if self._single else self.path
        try:
            folder.mkdir(parents=not self._single, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{folder}: cannot be made: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        """Draw and write one picture.

        Raises:
            SinkError: it cannot be written.
        """
        frame, target = result.frame, self.path
        if not self._single:
            source = Path(frame.source_id)
            named = source.suffix.lower() in PICTURES
            target = self.path / (source.name if named else f"frame-{frame.sequence:06d}.jpg")
        good, data = cv2.imencode(target.suffix, result.answer.draw(frame.image))
        if not good:
            raise SinkError(f"{target}: this OpenCV cannot write {target.suffix} files")
        try:
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise SinkError(f"{target}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Each picture is finished already."""


class _PyavEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        import av

        self._av = av
        self._container: Any = av.open(str(path), "w")
        self._stream: Any = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"preset": "veryfast", "crf": "21"}

    def write(self, image: Image) -> None:
        frame = self._av.VideoFrame.from_ndarray(image, format="bgr24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()


class _OpencvEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), code, fps, (size[1], size[0]))
        if not self._writer.isOpened():
            raise OSError(f"this OpenCV cannot write {path.suffix} videos")

    def write(self, image: Image) -> None:
        self._writer.write(image)

    def close(self) -> None:
        self._writer.release()


def _even(side: int) -> int:
    # H.264 in 4:2:0 has one colour sample for two rows and columns.
    return side + side % 2


def _fitted(image: Image, rows: int, columns: int) -> Image:
    """The picture in a canvas of that size, shrunk if need be, black around it."""
    height, width = image.shape[:2]
    if (_even(height), _even(width)) == (rows, columns):
        bottom, right = rows - height, columns - width
        padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        return np.asarray(padded, np.uint8)
    ratio = min(rows / height, columns / width)
    small = cv2.resize(
        image, (max(1, int(width * ratio)), max(1, int(height * ratio))), interpolation=cv2.INTER_AREA
    )
    canvas = np.zeros((rows, columns, 3), np.uint8)
    top, left = (rows - small.shape[0]) // 2, (columns - small.shape[1]) // 2
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
