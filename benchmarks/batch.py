"""An archive of many small images: memory over time, and what a second process brings.

    python benchmarks/batch.py [--images 100000] [--share 10000] [--bundle mobilenet.edge]

The images are crops of photographs, encoded as JPEG, in one Parquet file. Memory is that of the command and
its workers together, looked at twice a second. The bars: flat memory (the second half of the run against the
first), and two processes at least 1.7 times as fast as one, in turns on a share of the images.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common import ASSETS, print_table, trained_recipe, write_results
from edgesmith.converters import convert
from memory import memory_of

pa: Any = importlib.import_module("pyarrow")
pq: Any = importlib.import_module("pyarrow.parquet")

SIDE = 96
_ROWS = 2048
_LOOK_S = 0.5


def crops(count: int) -> Iterator[bytes]:
    """So many different small pictures."""
    photographs = [
        cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        for path in sorted((ASSETS / "imagenet_val").glob("*.jpg"))[:64]
    ]
    rng = np.random.default_rng(16)
    for number in range(count):
        whole: Any = photographs[number % len(photographs)]
        top, left = (int(rng.integers(0, side - SIDE)) for side in whole.shape[:2])
        part = whole[top : top + SIDE, left : left + SIDE]
        yield cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def archive(path: Path, count: int) -> None:
    """A Parquet file with columns ``id`` and ``image``."""
    schema = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        rows: list[bytes] = []
        done = 0
        for data in crops(count):
            rows.append(data)
            if len(rows) == _ROWS or done + len(rows) == count:
                ids = [f"crop-{done + n:07d}" for n in range(len(rows))]
                writer.write_table(pa.table({"id": ids, "image": rows}, schema=schema))
                done += len(rows)
                rows = []


def run(bundle: Path, data: Path, out: Path, processes: int) -> dict[str, Any]:
    """One run of the command: images a second, and bytes of memory over time."""
    line = [sys.executable, "-m", "edgesmith.sdk.cli", "batch", str(bundle), "--data", str(data)]
    line += ["-o", str(out), "--processes", str(processes), "--backend", "cpu", "--json"]
    started = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    memory: list[int] = []
    while process.poll() is None:
        memory.append(memory_of(process.pid))
        time.sleep(_LOOK_S)
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{line} ended with {process.returncode}")
    rows = pq.read_metadata(out).num_rows
    return {"seconds": seconds, "rate": rows / seconds, "rows": rows, "memory_bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--share", type=int, default=10_000, help="images of the comparison of processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or Path(folder, "mobilenet.edge")
        if options.bundle is None:
            convert(trained_recipe("mobilenet_v1_025", ASSETS, precision={"mode": "fp32"}), bundle)
        share, whole = Path(folder, "share.parquet"), Path(folder, "whole.parquet")
        archive(share, options.share)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.rounds):
            for processes in (1, 2) if number % 2 == 0 else (2, 1):
                out = Path(folder, f"{number}-{processes}.parquet")
                rates[processes].append(run(bundle, share, out, processes)["rate"])
        archive(whole, options.images)
        long = run(bundle, whole, Path(folder, "out.parquet"), os.cpu_count() or 1)
    gain = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    memory = np.array(long["memory_bytes"][len(long["memory_bytes"]) // 10 :], np.float64) / 2**20
    first, second = np.array_split(memory, 2)
    figures = {
        "images": options.images, "share": options.share, "rates": rates, "gain": gain, "long": long,
    }  # fmt: skip
    print_table(
        ("processes", "images/s, median"),
        [(processes, statistics.median(found)) for processes, found in rates.items()],
    )
    print(f"\ntwo processes are {gain:.2f} times as fast as one")
    print(
        f"{long['rows']:,} images at {long['rate']:.0f} a second; memory {np.median(first):.0f} MiB in the "
        f"first half of the run, {np.median(second):.0f} MiB in the second, {memory.max():.0f} MiB at most"
    )
    print(f"\n{write_results('batch', figures)}")


if __name__ == "__main__":
    main()
