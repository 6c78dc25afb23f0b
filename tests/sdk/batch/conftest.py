"""A folder of small pictures, one of them damaged, and a runner that needs no processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.batch.shards import Setup, Shard, Worker


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with so many pictures of different colours, some of them in a sub-folder."""

    def make(count: int = 20, broken: int = 1) -> Path:
        folder = tmp_path / "pictures"
        (folder / "more").mkdir(parents=True)
        rng = np.random.default_rng(7)
        for number in range(count):
            pixels = np.empty((20 + number % 5, 30, 3), np.uint8)
            pixels[:] = rng.integers(0, 256, 3)
            name = f"more/{number:04d}.png" if number % 3 == 0 else f"{number:04d}.png"
            cv2.imencode(".png", pixels)[1].tofile(folder / name)
        for number in range(broken):
            (folder / f"0001-broken-{number}.jpg").write_bytes(b"no picture at all")
        (folder / "notes.txt").write_text("not a picture, and not meant to be one")
        return folder

    return make


@pytest.fixture
def here() -> Callable[..., None]:
    """Runs shards in this process; stops after ``limit`` of them, as a run does that is killed."""

    def run(
        setup: Setup,
        shards: Iterable[Shard],
        workers: int,
        *,
        done: Callable[[int], None],
        limit: int | None = None,
    ) -> None:
        worker = Worker(setup)
        try:
            for number, shard in enumerate(shards):
                if limit is not None and number >= limit:
                    raise KeyboardInterrupt
                worker.run(shard, at=lambda place: None, done=done)
        finally:
            worker.close()

    return run


@pytest.fixture
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of a result file."""

    def read(path: Path) -> list[dict[str, Any]]:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        parquet = pytest.importorskip("pyarrow.parquet")
        return list(parquet.read_table(path).to_pylist())

    return read
