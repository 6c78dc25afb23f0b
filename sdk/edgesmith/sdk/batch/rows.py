"""What is written about each image, and how a part or the whole of it gets onto the disk."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgesmith.sdk.errors import ConfigError, MissingExtraError, SinkError
from edgesmith.sdk.replacing import replaced
from edgesmith.sdk.results import Classifications

Format = Literal["parquet", "jsonl"]
_ROWS_A_GROUP = 8192


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images are answered: a detector's thresholds, a classifier's number of classes, the backend."""

    score: float | None = None
    iou: float | None = None
    top: int = 5
    backend: str = "auto"
    device: int = 0
    variant: str | None = None
    threads: int | None = 1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One image: ``results`` as of ``to_dict``, or ``error`` where it could not be read.

    ``bundle`` is the SHA-256 of the bundle's file.
    """

    id: str
    width: int | None = None
    height: int | None = None
    results: list[dict[str, Any]] | None = None
    error: str | None = None
    bundle: str


def row_of(identity: str, size: tuple[int, int], answer: Any, options: Options, bundle: str) -> Row:
    """The row of an image of ``size`` (W, H) that was answered."""
    value = answer.top_k(options.top) if isinstance(answer, Classifications) else answer
    results = value.to_dict()
    width, height = size
    return Row(id=identity, width=width, height=height, results=results, bundle=bundle)


def format_of(path: Path) -> Format:
    """By the ending of the result file.

    Raises:
        ConfigError: it is another one.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    if path.suffix == ".jsonl":
        return "jsonl"
    if path.suffix != ".parquet":
        raise ConfigError(f"{path}: results are written as .parquet or .jsonl")
    pyarrow()
    return "parquet"


def write_part(path: Path, rows: Sequence[Row], task: str) -> None:
    """One part, whole or not at all.

    Raises:
        SinkError: the disk is full, or the folder is not there.
    """
    with _replaced(path) as temporary:
        if path.suffix == ".jsonl":
            encode = msgspec.json.encode
            temporary.write_bytes(b"".join(encode(row) + b"\n" for row in rows))
            return
        pa, pq = pyarrow()
        table = pa.Table.from_pylist([msgspec.structs.asdict(row) for row in rows], schema=_schema(task))
        pq.write_table(table, temporary, compression="zstd")


class _Unread(msgspec.Struct):
    error: str | None


def join_parts(parts: Sequence[Path], out: Path, task: str, folder: Path) -> int:
    """The parts in their order as one file, whole or not at all; how many rows have an error.

    A few thousand rows are held at a time. Until it is whole it lies in ``folder``.

    Raises:
        SinkError: one of them cannot be read, or the result cannot be written.
    """
    unread = 0
    with _replaced(out, folder) as temporary:
        if out.suffix == ".jsonl":
            with temporary.open("wb") as file:
                for part in parts:
                    for line in part.read_bytes().splitlines(keepends=True):
                        unread += msgspec.json.decode(line, type=_Unread).error is not None
                        file.write(line)
            return unread
        pa, pq = pyarrow()
        with pq.ParquetWriter(temporary, _schema(task), compression="zstd") as writer:
            held: list[Any] = []
            for part in parts:
                table = pq.read_table(part)
                unread += len(table) - table["error"].null_count
                held.append(table)
                if sum(map(len, held)) >= _ROWS_A_GROUP:
                    writer.write_table(pa.concat_tables(held).combine_chunks())
                    held = []
            if held:
                writer.write_table(pa.concat_tables(held).combine_chunks())
    return unread


@contextmanager
def _replaced(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """:func:`replaced`, with the error of a sink."""
    try:
        with replaced(path, folder) as temporary:
            yield temporary
    except OSError as error:
        raise SinkError(f"{path}: cannot be written: {error.strerror or error}") from error


def _schema(task: str) -> Any:
    pa, _ = pyarrow()
    named = [("label", pa.int32()), ("name", pa.string())]
    scored = [("score", pa.float32()), *named]
    mask = ("mask", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())]))
    results = {
        "detect": [("box", pa.list_(pa.float32(), 4)), *scored, mask],
        "classify": scored,
        "segment": [*named, ("share", pa.float64()), mask],
        "tensor": [
            ("name", pa.string()),
            ("dtype", pa.string()),
            ("shape", pa.list_(pa.int32())),
            ("data", pa.string()),
        ],
    }
    return pa.schema(
        [
            ("id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("results", pa.list_(pa.struct(results[task]))),
            ("error", pa.string()),
            ("bundle", pa.string()),
        ]
    )


def pyarrow() -> tuple[Any, Any]:
    """pyarrow, and its part for Parquet; loaded when they are needed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs the package pyarrow: pip install 'edgesmith[batch]', or write .jsonl",
            extra="batch",
        ) from error
