"""Every family of models through the whole road: converted, compared, quantized, compiled, run.

    python benchmarks/models.py [--only NAME ...] [--again] [--failed] [--timeout 900]
    python benchmarks/models.py --random 30 --seed N
    python benchmarks/models.py --page            # only write docs/models.md from the results

Each model runs twice in a process of its own, in float32 and in INT8: conversion time, peak memory, parity
with PyTorch on real pictures, compilation for a GPU of Orin's generation (float32, FP16, INT8), and the SDK's
class on the bundle. Models without trained weights get seeded ones (``seeded.py``). Rows that are in
``results/models.json`` already are kept; after each model the file and ``docs/models.md`` are written, so a
run that is cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from common import HERE, print_table, read_results, write_results
from models_page import COLUMNS, cells, write_page
from models_table import Row, drawn, table
from models_worker import Job

MODES = ("fp32", "int8")
MIB = 1 << 20


def run(job: Job, timeout: float) -> dict[str, Any]:
    """The worker's answer with its peak memory; a failure is an answer too."""
    path = Path(job.folder) / f"{job.mode}.json"
    path.write_bytes(msgspec.json.encode(job))
    out, err = Path(job.folder) / f"{job.mode}.out", Path(job.folder) / f"{job.mode}.err"
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
    command = [sys.executable, str(HERE / "models_worker.py"), str(path)]
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        deadline = time.monotonic() + timeout
        while True:
            # wait4 alone tells this child's own peak memory.
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                process.kill()
                os.wait4(process.pid, 0)
                process.returncode = -9
                return {"failure": f"not done after {timeout:.0f} s"}
            time.sleep(0.2)
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = out.read_text().strip().splitlines()
    if process.returncode != 0 or not lines:
        last = err.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
        return {"failure": f"exit {process.returncode}: {last[0][:300]}"}
    return {**json.loads(lines[-1]), "peak_mib": usage.ru_maxrss / 1024}


def measure(row: Row, *, timeout: float, threads: int, modes: Sequence[str] = MODES) -> dict[str, Any]:
    """A model in every mode; after a failure in float32 there is no more to do."""
    found: dict[str, Any] = {"family": row.family, "source": row.source}
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes:
            found[mode] = run(Job(row=row, mode=mode, folder=folder, threads=threads), timeout)
            if "failure" in found[mode]:
                break
    return found


def passed(found: dict[str, Any], modes: Sequence[str] = MODES) -> bool:
    """Whether every mode came through."""
    return all(mode in found and "failure" not in found[mode] for mode in modes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows by name, or architectures of a zoo")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there already")
    parser.add_argument("--failed", action="store_true", help="measure those anew that failed")
    parser.add_argument("--random", type=int, metavar="N", help="N classifiers at random, float32 only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a model and mode")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="only write docs/models.md")
    options = parser.parse_args()
    figures = read_results("models")
    kind, modes = ("drawn", MODES[:1]) if options.random else ("rows", MODES)
    kept: dict[str, Any] = figures.setdefault(kind, {})
    for row in [] if options.page else _chosen(options):
        known = kept.get(row.name)
        if known is not None and not options.again and (passed(known, modes) or not options.failed):
            continue
        kept[row.name] = measure(row, timeout=options.timeout, threads=options.threads, modes=modes)
        if options.random:
            kept[row.name]["seed"] = options.seed
        write_results("models", figures)
        write_page(figures)
        failures = [
            f"{m}: {kept[row.name][m]['failure']}" for m in modes if "failure" in kept[row.name].get(m, {})
        ]
        print(f"{row.name}: {'; '.join(failures) or 'done'}", file=sys.stderr, flush=True)
    write_page(figures)
    print_table(COLUMNS, [cells(name, found) for name, found in kept.items()])
    print(f"{sum(passed(found, modes) for found in kept.values())} of {len(kept)} came through")


def _chosen(options: argparse.Namespace) -> list[Row]:
    if options.random:
        return drawn(options.random, options.seed)
    rows = {row.name: row for row in table()}
    if not options.only:
        return list(rows.values())
    zoo = {n: Row(name=n, family="classification", source="zoo") for n in options.only if ":" in n}
    unknown = [name for name in options.only if name not in rows and name not in zoo]
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(rows)}")
    return [rows.get(name) or zoo[name] for name in options.only]


if __name__ == "__main__":
    main()
