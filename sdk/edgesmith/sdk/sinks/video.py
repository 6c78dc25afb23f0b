"""Annotated video and pictures."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.cameras.pictures import PICTURES
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.sinks.naming import SourceNames, camera_of

Image = NDArray[np.uint8]
Timing = Literal["constant", "captured"]


class AnnotatedVideo:
    """A video of the frames with the answers drawn on them.

    H.264 (plays in browsers) through PyAV where it is installed, else MPEG-4 through OpenCV, which a
    note tells. The file appears under its name when it is finished; frames of another size than the
    first are fitted into it.

    Args:
        path: the file; ``{camera}`` in it stands for the camera's name, so that each has its own.
        fps: nominal rate; 25 where it is None.
        timing: ``constant`` gives each frame its place at the rate (files); ``captured`` the time of its
            grab, so that a live camera of which frames were passed over plays as fast as it was.

    Raises:
        ConfigError: the rate or the timing is none.
        SinkError: the folder does not exist.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fps: float | None = None, timing: Timing = "constant"
    ) -> None:
        if (fps is not None and fps <= 0) or timing not in ("constant", "captured"):
            raise ConfigError(f"video: fps {fps}, timing {timing!r}: above 0; constant or captured")
        self.path = Path(path)
        self.notes: list[str] = []
        self._fps, self._timing = fps or 25.0, timing
        self._files = _Files(self.path)
        self._videos: dict[Path, _Video] = {}
        if not self.path.parent.is_dir():
            raise SinkError(f"{self.path}: the folder {self.path.parent} does not exist")

    def write(self, result: Result) -> None:
        """Draw and append one frame.

        Raises:
            SinkError: the encoder or the disk refuses, or the frame is of a second camera.
        """
        path = self._files.of(result)
        image = result.answer.draw(result.frame.image)
        try:
            if path not in self._videos:
                self._videos[path] = self._begun(path, image, result.frame.captured_ns)
            video = self._videos[path]
            at = (result.frame.captured_ns - video.began_ns) / 1e9 if self._timing == "captured" else None
            video.encoder.write(_fitted(image, *video.size), at)
        except _encoder_errors() as error:
            raise SinkError(f"{path}: cannot be written: {_reason(error)}") from error

    def _begun(self, path: Path, image: Image, began_ns: int) -> _Video:
        size = _even(image.shape[0]), _even(image.shape[1])
        partial = path.with_name(f".{path.stem}.part{path.suffix}")
        if importlib.util.find_spec("av") is not None:
            return _Video(partial, size, began_ns, _PyavEncoder(partial, self._fps, size))
        self.notes.append(
            f"{path} is MPEG-4, which browsers do not play: pip install 'edgesmith[video]' for H.264"
        )
        return _Video(partial, size, began_ns, _OpencvEncoder(partial, self._fps, size))

    def close(self) -> None:
        """Finish the files and give them their names; without frames there is none.

        Raises:
            SinkError: one cannot be finished; the others are.
        """
        videos, self._videos = self._videos, {}
        failed: SinkError | None = None
        for path, video in videos.items():
            try:
                video.encoder.close()
                video.partial.replace(path)
            except _encoder_errors() as error:
                with contextlib.suppress(OSError):
                    video.partial.unlink()
                failed = SinkError(f"{path}: cannot be finished: {_reason(error)}")
                failed.__cause__ = error
        if failed is not None:
            raise failed


class AnnotatedPictures:
    """A picture a frame: in a folder under the source's name or number, or one picture file.

    Args:
        path: folder or picture; ``{camera}`` in it stands for the camera's name, so that each has its own.

    Raises:
        SinkError: the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._files = _Files(self.path)
        self._single = self.path.suffix.lower() in PICTURES
        if "{camera}" not in str(self.path):
            self._make(self.path.parent if self._single else self.path)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=not self._single, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{folder}: cannot be made: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        """Draw and write one picture.

        Raises:
            SinkError: it cannot be written, or is of a second camera.
        """
        frame = result.frame
        target = self._files.of(result)
        if not self._single:
            self._make(target)
            source = Path(frame.source_id)
            named = source.suffix.lower() in PICTURES
            target = target / (source.name if named else f"frame-{frame.sequence:06d}.jpg")
        good, data = cv2.imencode(target.suffix, result.answer.draw(frame.image))
        if not good:
            raise SinkError(f"{target}: this OpenCV cannot write {target.suffix} files")
        try:
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise SinkError(f"{target}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Each picture is finished already."""


class _Files:
    """Which file a result goes into; two cameras never into one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = SourceNames()
        self._camera: str | None = None

    def of(self, result: Result) -> Path:
        if "{camera}" in str(self._path):
            return Path(str(self._path).replace("{camera}", self._names[camera_of(result)]))
        # A frame that names its picture is of a folder: the same camera.
        camera = result.camera or None
        if camera is not None and self._camera not in (None, camera):
            raise SinkError(
                f"{self._path}: frames of {self._camera} and {camera} do not go into one: "
                f"put {{camera}} into its name"
            )
        self._camera = camera
        return self._path


class _Encoder(Protocol):
    def write(self, image: Image, at: float | None) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Video:
    """A file that is being written: its size (H, W), and the grab of its first frame."""

    partial: Path
    size: tuple[int, int]
    began_ns: int
    encoder: _Encoder


_CLOCK = 90_000  # ticks a second, MPEG's own


class _PyavEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        import av

        self._av = av
        self._container: Any = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1001)
        # The encoder that x86 and aarch64 wheels bring; builds without GPL parts have the other.
        name = "libx264" if "libx264" in av.codecs_available else "libopenh264"
        self._stream = cast("Any", self._container.add_stream(name, rate=rate))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        if name == "libx264":
            self._stream.options = {"preset": "veryfast", "crf": "21"}
        self._last = -1

    def write(self, image: Image, at: float | None) -> None:
        frame = self._av.VideoFrame.from_ndarray(image, format="bgr24")
        if at is not None:
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            self._last = max(self._last + 1, round(at * _CLOCK))
            frame.pts, frame.time_base = self._last, Fraction(1, _CLOCK)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()


class _OpencvEncoder:
    """Has one rate: a frame that comes late is shown longer, by being written again."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), code, fps, (size[1], size[0]))
        self._fps, self._written = fps, 0
        self._before: Image | None = None
        if not self._writer.isOpened():
            raise OSError(f"this OpenCV cannot write {path.suffix} videos")

    def write(self, image: Image, at: float | None) -> None:
        if at is not None and self._before is not None:
            # At most a minute: a camera that was away for hours does not fill the disk.
            late = min(round(at * self._fps) - self._written, round(60 * self._fps))
            for _ in range(late):
                self._put(self._before)
        self._put(image)
        self._before = image

    def _put(self, image: Image) -> None:
        self._writer.write(image)
        self._written += 1

    def close(self) -> None:
        self._writer.release()


def _encoder_errors() -> tuple[type[Exception], ...]:
    """What the encoders raise; PyAV's errors are not all Python's own."""
    if importlib.util.find_spec("av") is None:
        return (OSError, ValueError)
    import av

    return (OSError, ValueError, av.FFmpegError)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


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
