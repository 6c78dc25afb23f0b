"""Where the images of an archive are: a folder, a list of files, or a Parquet file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgesmith.sdk.batch.rows import pyarrow
from edgesmith.sdk.cameras.pictures import PICTURES, read_image
from edgesmith.sdk.errors import CameraError, DataError

Image = NDArray[np.uint8]
_PARTS_OF_A_GROUP = 8
_ROWS_AT_ONCE = 16


class Files(msgspec.Struct, frozen=True, tag="files"):
    """Files below ``base`` by their names, which are their ids too."""

    base: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


class ParquetRows(msgspec.Struct, frozen=True, tag="parquet"):
    """Rows ``start`` to ``stop`` of a row group; ``first`` is the number of its first row in the file."""

    path: str
    group: int
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start


Part = Files | ParquetRows


class Source(Protocol):
    """An archive: what it is, for the plan; and its parts, of about ``size`` images, in a fixed order."""

    count: int

    def fingerprint(self) -> str:
        """Changes with the images' ids and their order."""
        ...

    def parts(self, size: int) -> list[Part]:
        """All of it."""
        ...


def open_source(path: str | os.PathLike[str]) -> Source:
    """A folder (with its sub-folders), a ``.parquet`` file, or a text file with a path a line.

    A list's paths are relative to it. A Parquet file has a column ``image`` (the file's bytes, or a struct
    with ``bytes``) or ``path``, and maybe ``id``.

    Raises:
        DataError: it cannot be read, or holds no image.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _Listed(path.absolute(), _below(path), str(path))
    if path.suffix == ".parquet":
        return _Parquet(path.absolute())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no folder, Parquet file or list of files: {error}") from error
    return _Listed(path.absolute().parent, [line for line in lines if line.strip()], str(path))


def images_of(part: Part) -> Iterator[tuple[str, Image | str]]:
    """The id of each image with its pixels, BGR uint8 ``(H, W, 3)``, or with what is wrong with it.

    Raises:
        DataError: the Parquet file changed, or is damaged.
    """
    if isinstance(part, Files):
        for name in part.names:
            yield name, _read(Path(part.base, name))
        return
    for name, value in _rows_of(part):
        yield name, _decoded(value, Path(part.path).parent)


def one_of(part: Part, place: int) -> Part:
    """The part that has the one image at ``place`` alone."""
    if isinstance(part, Files):
        return Files(part.base, (part.names[place],))
    at = part.start + place
    return ParquetRows(part.path, part.group, at, at + 1, part.first)


def identity_of(part: Part, place: int) -> str:
    """The id of the image at ``place``; nothing is decoded.

    Raises:
        DataError: the Parquet file changed, or is damaged.
    """
    if isinstance(part, Files):
        return part.names[place]
    one = one_of(part, place)
    assert isinstance(one, ParquetRows)
    return next(_rows_of(one))[0]


def _read(path: Path) -> Image | str:
    try:
        return read_image(path)
    except CameraError as error:
        return str(error)


def _decoded(value: Any, base: Path) -> Image | str:
    if isinstance(value, str):
        return _read(base / value)
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        return "there is no image in this row"
    try:
        image = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_COLOR) if value else None
    except cv2.error as error:
        return f"not a picture that OpenCV can decode: {error.err}"
    if image is None:
        return f"not a picture, or a damaged one ({len(value):,} bytes)"
    return np.asarray(image, np.uint8)


def _below(folder: Path) -> list[str]:
    """Picture files of a folder and its sub-folders, by their ending, as sorted relative paths."""
    found: list[str] = []

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        here = Path(root).relative_to(folder)
        found += [(here / f).as_posix() for f in files if Path(f).suffix.lower() in PICTURES]
    return sorted(found)


class _Listed:
    def __init__(self, base: Path, names: Sequence[str], told: str) -> None:
        if not names:
            raise DataError(f"{told}: no picture files (endings {', '.join(sorted(PICTURES))})")
        for name in names:
            if any("\ud800" <= c <= "\udfff" for c in name):
                raise DataError(f"{told}: the file name {name!r} is not UTF-8: rename it")
        self._base, self._names = base, names
        self.count = len(names)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"files")
        for name in self._names:
            digest.update(name.encode() + b"\0")
        return digest.hexdigest()

    def parts(self, size: int) -> list[Part]:
        names = self._names
        return [Files(str(self._base), tuple(names[at : at + size])) for at in range(0, len(names), size)]


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as file:
            meta = file.metadata
            self._groups = [meta.row_group(n).num_rows for n in range(meta.num_row_groups)]
        self.count = sum(self._groups)
        if not self.count:
            raise DataError(f"{path}: has no rows")

    def fingerprint(self) -> str:
        found = self._path.stat()
        return hashlib.sha256(
            f"parquet {self._groups} {found.st_size} {found.st_mtime_ns}".encode()
        ).hexdigest()

    def parts(self, size: int) -> list[Part]:
        parts: list[Part] = []
        first = 0
        for group, rows in enumerate(self._groups):
            # Whoever begins within a group reads it from its beginning: not too many begin in one.
            step = max(size, -(-rows // _PARTS_OF_A_GROUP))
            for at in range(0, rows, step):
                parts.append(ParquetRows(str(self._path), group, at, min(at + step, rows), first))
            first += rows
        return parts


def _opened(path: Path) -> Any:
    pa, pq = pyarrow()
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    names = file.schema_arrow.names
    if "image" not in names and "path" not in names:
        file.close()
        raise DataError(f"{path}: needs a column image (bytes) or path; there are {', '.join(names)}")
    return file


def _rows_of(part: ParquetRows) -> Iterator[tuple[str, Any]]:
    pa, _ = pyarrow()
    path = Path(part.path)
    with _opened(path) as file:
        names = file.schema_arrow.names
        column = "image" if "image" in names else "path"
        named = next((name for name in ("id", "path") if name in names), None)
        at = 0
        try:
            for batch in file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[part.group], columns=[column, *([named] if named else [])]
            ):
                for row in range(len(batch)):
                    if part.start <= at < part.stop:
                        number = part.first + at
                        identity = str(batch[named][row].as_py()) if named else f"row {number}"
                        yield identity, batch[column][row].as_py()
                    at += 1
                if at >= part.stop:
                    return
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: row group {part.group} cannot be read: {error}") from error
