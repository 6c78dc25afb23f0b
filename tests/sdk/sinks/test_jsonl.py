from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesmith.sdk import Result
from edgesmith.sdk.errors import SinkError
from edgesmith.sdk.sinks.base import BackgroundSink
from edgesmith.sdk.sinks.jsonl import JsonLines

MakeResult = Callable[..., Result]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_track_has_its_number(tmp_path: Path, make_result: MakeResult) -> None:
    sink = JsonLines(tmp_path / "a.jsonl")
    sink.write(make_result())
    sink.close()
    (line,) = lines_of(tmp_path / "a.jsonl")
    assert line["detections"][0]["track_id"] == 7


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path, make_result: MakeResult) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonLines(path)
    sink.write(make_result(0))
    path.rename(tmp_path / "old.jsonl")
    sink.reopen()
    sink.write(make_result(1))
    sink.reopen()
    sink.write(make_result(2))
    sink.close()
    assert [line["frame"] for line in lines_of(tmp_path / "old.jsonl")] == [0]
    assert [line["frame"] for line in lines_of(path)] == [1, 2]


class _Short:
    """A disk that fills up: it takes ``room`` bytes in pieces, then no more."""

    def __init__(self, inner: Any, room: int) -> None:
        self.inner, self.room = inner, room

    def write(self, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        part = data[: min(7, self.room)]
        self.room -= len(part)
        return int(self.inner.write(part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_half_a_line_is_taken_back(tmp_path: Path, make_result: MakeResult) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonLines(path)
    sink.write(make_result(0))
    whole = path.read_bytes()
    sink._file = _Short(sink._file, 40)
    with pytest.raises(SinkError, match="No space left"):
        sink.write(make_result(1))
    assert path.read_bytes() == whole
    sink._file.room = 10**6
    sink.write(make_result(2))
    sink.close()
    assert [line["frame"] for line in lines_of(path)] == [0, 2]


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, make_result: MakeResult, small_disk: Path
) -> None:
    path = small_disk / "a.jsonl"
    ballast = small_disk / "ballast"
    sink = BackgroundSink(JsonLines(path), name="lines", capacity=1000, backoff_s=(0.001, 0.001))
    ballast.write_bytes(bytes((1 << 20) - 8192))
    for n in range(100):
        sink.write(make_result(n))
    while sink.stats().queued:
        time.sleep(0.005)
    assert sink.stats().errors > 0
    assert "No space left" in str(sink.stats().error)
    ballast.unlink()
    sink.write(make_result(100))
    sink.close()
    frames = [line["frame"] for line in lines_of(path)]  # each line is whole
    assert frames == sorted(frames)
    assert frames[-1] == 100
    assert len(frames) == sink.stats().written


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system needs root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
