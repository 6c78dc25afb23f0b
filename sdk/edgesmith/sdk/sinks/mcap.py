"""MCAP recordings that open in Foxglove: the pictures, and the answers as annotations on them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import cv2
import msgspec

from edgesmith.sdk.draw import color_of
from edgesmith.sdk.errors import ConfigError, SinkError
from edgesmith.sdk.loop.result import Result
from edgesmith.sdk.maps import Segmentation
from edgesmith.sdk.results import Classifications, Detections
from edgesmith.sdk.sinks.base import wall_ns
from edgesmith.sdk.sinks.jsonl import line_of
from edgesmith.sdk.sinks.naming import SourceNames, camera_of, need

_SECOND = 10**9


class McapRecording:
    """An MCAP file with three topics a camera, all stamped with the time of day of the grab.

    ``/NAME/image`` (``foxglove.CompressedImage``, JPEG), ``/NAME/annotations``
    (``foxglove.ImageAnnotations``: boxes and labels) and ``/NAME/result`` (JSON, the keys of the JSON
    lines sink). A file that reaches ``max_bytes`` is finished, and the next is ``NAME-0001.mcap``.

    Args:
        path: the first file; it must not be there yet.
        images: whether pictures are recorded, or answers alone.
        quality: of the JPEG, 1..100.
        max_bytes: size of a file after which the next begins; None for one file.

    Raises:
        MissingExtraError: ``foxglove-sdk`` is not installed.
        SinkError: the file is there already, or cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        images: bool = True,
        quality: int = 85,
        max_bytes: int | None = None,
    ) -> None:
        if not 1 <= quality <= 100 or (max_bytes is not None and max_bytes < 1):
            raise ConfigError(f"mcap: quality {quality} (1 to 100), max_bytes {max_bytes} (above 0)")
        self._foxglove = need("foxglove", extra="mcap", sink="mcap")
        self._messages = need("foxglove.messages", extra="mcap", sink="mcap")
        self._channel_types = need("foxglove.channels", extra="mcap", sink="mcap")
        self._writing = need("foxglove.mcap", extra="mcap", sink="mcap")
        self.path = Path(path)
        self.notes: list[str] = []
        self.reads_image = images  # of the picture's shape there is one also where nobody reads it
        self._images, self._quality, self._max_bytes = images, quality, max_bytes
        self._names = SourceNames()
        self._part = 0
        self._open(self.path)

    def _open(self, path: Path) -> None:
        try:
            self._file = _File(path)
        except FileExistsError as error:
            raise SinkError(f"{path}: is there already: remove it or record to another name") from error
        except OSError as error:
            raise SinkError(f"{path}: cannot be written: {error.strerror or error}") from error
        # A context of its own: channels of the default one would write into every open recording.
        self._context = self._foxglove.Context()
        self._channels: dict[str, tuple[Any, Any, Any]] = {}
        # JPEG does not get smaller, and the robot has no core to spare for trying.
        options = self._writing.MCAPWriteOptions(
            compression=None if self._images else self._writing.MCAPCompression.Zstd, compression_threads=0
        )
        self._writer: Any = self._foxglove.open_mcap(
            self._file, context=self._context, writer_options=options
        )

    def write(self, result: Result) -> None:
        """Append the picture, its annotations and the JSON of one result.

        Raises:
            SinkError: the disk is full.
        """
        if self._writer is None or (self._max_bytes is not None and self._file.bytes >= self._max_bytes):
            self.reopen()
        name = self._names[camera_of(result)]
        image, annotations, line = self._channels_of(name)
        taken = wall_ns(result.frame.captured_ns)
        stamp = self._messages.Timestamp(taken // _SECOND, taken % _SECOND)
        if self._images:
            picture = self._messages.CompressedImage(
                timestamp=stamp, frame_id=name, data=self._jpeg(result), format="jpeg"
            )
            image.log(picture, log_time=taken)
        annotations.log(self._annotations(result, stamp), log_time=taken)
        line.log(msgspec.json.encode(line_of(result)), log_time=taken)
        self._raise_what_failed()

    def _raise_what_failed(self) -> None:
        # The library logs a full disk and goes on in silence: the file itself has to be asked.
        if self._file.error is not None:
            error = self._file.error
            raise SinkError(f"{self._file.path}: cannot be written: {error.strerror or error}") from error

    def _channels_of(self, name: str) -> tuple[Any, Any, Any]:
        if name not in self._channels:
            types, context = self._channel_types, self._context
            self._channels[name] = (
                types.CompressedImageChannel(f"/{name}/image", context=context),
                types.ImageAnnotationsChannel(f"/{name}/annotations", context=context),
                self._foxglove.Channel(
                    f"/{name}/result", message_encoding="json", schema={"type": "object"}, context=context
                ),
            )
        return self._channels[name]

    def _jpeg(self, result: Result) -> bytes:
        good, data = cv2.imencode(".jpg", result.frame.image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not good:
            raise SinkError(f"{self.path}: a picture of shape {result.frame.image.shape} cannot be encoded")
        return data.tobytes()

    def _annotations(self, result: Result, stamp: Any) -> Any:
        """Boxes as closed lines with a label each; a classifier's best three classes, or regions, as text."""
        m = self._messages
        size = max(12.0, min(result.frame.image.shape[:2]) / 40)
        points, texts = [], []
        if isinstance(result.answer, Detections):
            for item in result.answer:
                x1, y1, x2, y2 = item.box
                number = item.label if item.track_id is None else item.track_id
                color = self._color(number)
                corners = [m.Point2(x=x, y=y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
                loop = m.PointsAnnotationType.LineLoop
                points.append(
                    m.PointsAnnotation(
                        timestamp=stamp, type=loop, points=corners, outline_color=color, thickness=2.0
                    )
                )
                track = "" if item.track_id is None else f"#{item.track_id} "
                texts.append((f"{track}{item.name} {item.score:.2f}", x1, y1, number))
        elif isinstance(result.answer, Classifications):
            for row, best in enumerate(result.answer.top_k(3), 1):
                texts.append((f"{best.name} {best.score:.2f}", 4.0, 1.5 * size * row, best.label))
        elif isinstance(result.answer, Segmentation):
            for row, region in enumerate(result.answer, 1):
                text = f"{region.name} {100 * region.share:.0f} %"
                texts.append((text, 4.0, 1.5 * size * row, region.label))
        labels = [
            m.TextAnnotation(
                timestamp=stamp,
                position=m.Point2(x=x, y=y),
                text=text,
                font_size=size,
                text_color=m.Color(r=0.0, g=0.0, b=0.0, a=1.0),
                background_color=self._color(number),
            )
            for text, x, y, number in texts
        ]
        return m.ImageAnnotations(timestamp=stamp, points=points, texts=labels)

    def _color(self, number: int) -> Any:
        blue, green, red = color_of(number)
        return self._messages.Color(r=red / 255, g=green / 255, b=blue / 255, a=1.0)

    def reopen(self) -> None:
        """Finish the file and go on in the next one.

        Raises:
            SinkError: the next one cannot be made.
        """
        with contextlib.suppress(SinkError):  # what broke was told when it broke
            self.close()
        self._part += 1
        self._open(self.path.with_name(f"{self.path.stem}-{self._part:04d}{self.path.suffix}"))

    def close(self) -> None:
        """Write the index, without which a player has to read the whole file first.

        Raises:
            SinkError: the disk is full; what was recorded before can be read.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except RuntimeError as error:
            self._raise_what_failed()
            raise SinkError(f"{self._file.path}: cannot be finished: {error}") from error
        finally:
            self._file.close()
        self._raise_what_failed()


class _File:
    """A new file that counts what it takes and remembers what it refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.error: OSError | None = None
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | bytearray) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.bytes += written
        return written

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()
