"""``edgesmith batch``: a bundle over an archive."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from edgesmith.sdk.batch.job import SHARD, Job, Runner
from edgesmith.sdk.batch.local import run_local
from edgesmith.sdk.batch.rows import Options
from edgesmith.sdk.cli.output import console, emit_json, progress


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path),
    help="Folder of pictures, text file with a path a line, or .parquet (column image or path).",
)  # fmt: skip
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help=".parquet or .jsonl.")
@click.option("--processes", type=click.IntRange(min=1), help="Workers; one a core unless given.")
@click.option("--ray", metavar="ADDRESS", help="Run on this Ray cluster (auto: the one of this machine).")
@click.option("--shard", default=SHARD, show_default=True, type=click.IntRange(1), help="Images a part.")
@click.option("--score", type=click.FloatRange(0, 1), help="A detector's threshold in place of the bundle's.")
@click.option("--iou", type=click.FloatRange(0, 1), help="A detector's suppression threshold.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes of a classifier.")
@click.option("--backend", default="auto", show_default=True, help="auto, tensorrt, cuda or cpu.")
@click.option("--variant", help="A graph of the bundle by name, in place of the chosen one.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads a worker.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def batch(
    bundle: Path,
    data: Path,
    out: Path,
    processes: int | None,
    ray: str | None,
    shard: int,
    as_json: bool,
    **options: Any,
) -> int:
    """Run BUNDLE over an archive and write a row an image: id, size, results, the bundle's hash, or an error.

    A run that was killed goes on where it was when the same command is given again; nothing is lost or
    answered twice. The exit status is 1 when images could not be read; their rows say why.

    The keys of --json: out, images, answered, resumed, unread, bundle, seconds, rate.
    """
    job = Job(bundle, data, out, options=Options(**options), shard=shard)
    with progress("images") as bar:
        task = bar.add_task(bundle.name, total=job.count, rate=0.0)
        started, before = time.monotonic(), -1

        def tell(done: int, total: int) -> None:
            nonlocal before
            before = done if before < 0 else before  # those of earlier runs do not count for the rate
            rate = (done - before) / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=done, rate=rate)

        try:
            report = job.run(processes=processes, progress=tell, runner=_runner(ray))
        except KeyboardInterrupt:
            console.print(f"{job.folder} keeps what is done: the same command goes on", markup=False)
            raise
    if as_json:
        emit_json(msgspec.to_builtins(report))
        sys.stdout.flush()
    else:
        resumed = f", {report.resumed:,} of them by an earlier run" if report.resumed else ""
        click.echo(f"{out}: {report.images:,} images{resumed}, {report.rate:.1f} images/s")
        if report.unread:
            click.echo(f"{report.unread:,} could not be read; their rows say why")
    return 1 if report.unread else 0


def _runner(address: str | None) -> Runner:
    if address is None:
        return run_local
    from edgesmith.sdk.batch.cluster import Cluster  # needs Ray, which the rest does not

    return Cluster(None if address == "local" else address)
