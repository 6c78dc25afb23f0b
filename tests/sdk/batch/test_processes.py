"""Real processes: killed, and killing one another with what they decode."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.batch import Job, Options
from edgesmith.sdk.batch.local import LOST
from edgesmith.sdk.cli.app import main
from edgesmith.sdk.errors import BackendError

MakeBundle = Callable[..., Path]
CPU = Options(backend="cpu", score=0.1)
# Python runs this before anything else: a decoder that takes the whole process with it, or takes its time.
CUSTOMIZE = """
import os, time
import edgesmith.sdk.cameras.pictures as pictures
read = pictures.read_image
def read_image(path):
    data = open(path, "rb").read()
    time.sleep(float(os.environ.get("SLOW", "0")))
    if data.startswith(b"POISON"):
        os._exit(11)
    return read(path)
pictures.read_image = read_image
"""


@pytest.fixture
def customized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment for processes whose decoder can be made to die."""
    folder = tmp_path / "customized"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return environment


def command(bundle: Path, data: Path, out: Path, *more: str) -> list[str]:
    line = [sys.executable, "-m", "edgesmith.sdk.cli", "batch", str(bundle), "--data", str(data)]
    return [*line, "-o", str(out), "--backend", "cpu", "--score", "0.1", "--json", *more]


@pytest.mark.slow
def test_an_image_that_kills_its_worker_gets_an_error(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path, customized: Any
) -> None:
    path, folder, out = make_bundle(), pictures(9, broken=0), tmp_path / "out.jsonl"
    Job(path, folder, tmp_path / "whole.jsonl", options=CPU).run(runner=here)
    (folder / "0004-poison.png").write_bytes(b"POISON")
    done: list[int] = []
    job = Job(path, folder, out, options=CPU, shard=5)
    report = job.run(processes=2, progress=lambda count, total: done.append(count))
    rows = rows_of(out)
    assert (report.images, report.unread, done[-1]) == (10, 1, 10)
    assert max(done) == 10
    bad = [row for row in rows if row["error"]]
    assert [(row["id"], row["error"]) for row in bad] == [("0004-poison.png", LOST)]
    whole = rows_of(tmp_path / "whole.jsonl")
    assert [row["id"] for row in rows if not row["error"]] == [row["id"] for row in whole]
    for got, wanted in zip([row for row in rows if not row["error"]], whole, strict=True):
        assert [r["name"] for r in got["results"]] == [w["name"] for w in wanted["results"]]


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_repeated(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path, customized: Any
) -> None:
    kill_and_resume(make_bundle(), pictures(100), here, rows_of, tmp_path, customized, kills=6)


def kill_and_resume(
    bundle: Path, folder: Path, here: Any, rows_of: Any, tmp_path: Path, environment: Any, kills: int
) -> None:
    out, dice = tmp_path / "out.parquet", random.Random(3)
    Job(bundle, folder, tmp_path / "whole.parquet", options=CPU, shard=3).run(runner=here)
    line = command(bundle, folder, out, "--processes", "2", "--shard", "3")
    parts = tmp_path / "out.parquet.parts"
    for _ in range(kills):
        before = len(list(parts.glob("part-*")))
        process = subprocess.Popen(line, env={**environment, "SLOW": "0.1"}, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while len(list(parts.glob("part-*"))) < before + 1 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(dice.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 20
        while orphans(bundle) and time.monotonic() < end:  # its workers see that it is gone
            time.sleep(0.05)
        assert not orphans(bundle)
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr  # one picture is damaged
    report = json.loads(ended.stdout)
    assert report["resumed"] >= 3 * kills
    assert report["answered"] + report["resumed"] == report["images"]
    assert rows_of(out) == rows_of(tmp_path / "whole.parquet")
    assert not parts.exists()


def orphans(bundle: Path) -> list[int]:
    """Workers of this test, told apart by its folder in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if b"edgesmith.sdk.batch.process" in line and str(bundle.parent).encode() in environ:
                found.append(int(entry.name))
    return found


def test_workers_that_never_come_up(
    make_bundle: MakeBundle, pictures: Any, tmp_path: Path, customized: Any
) -> None:
    (tmp_path / "customized" / "sitecustomize.py").write_text("import os; os._exit(9)")
    job = Job(make_bundle(), pictures(3), tmp_path / "out.jsonl", options=CPU)
    with pytest.raises(BackendError, match=r"die while they load .*status 9"):
        job.run(processes=1)


def test_what_the_command_says(
    make_bundle: MakeBundle, pictures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = make_bundle(), pictures(5)
    for arguments, status, text in [
        ([str(path), "--data", str(tmp_path / "none"), "-o", "x.jsonl"], 3, "is no folder"),
        ([str(tmp_path / "none.edge"), "--data", str(folder), "-o", "x.jsonl"], 3, "no such bundle"),
        ([str(path), "--data", str(folder), "-o", "x.csv"], 2, ".parquet or .jsonl"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(["batch", *arguments])
        assert (caught.value.code, text in capsys.readouterr().err) == (status, True), arguments
    with pytest.raises(SystemExit) as caught:
        main(["batch", str(path), "--data", str(folder), "-o", str(tmp_path / "a.jsonl"), "--processes", "1"])
    out = capsys.readouterr().out
    assert caught.value.code == 1
    assert "6 images" in out
    assert "1 could not be read" in out


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The address of a local Ray cluster of two nodes, each a process tree of its own."""
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"object_store_memory": 200 << 20}
    made = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, **node}
    )
    made.add_node(num_cpus=2, **node)
    yield made.address
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of every kind
def test_a_cluster_whose_workers_die_gives_the_same_rows(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path, cluster: str
) -> None:
    from edgesmith.sdk.batch.cluster import Cluster

    path, folder = make_bundle(), pictures(600, broken=3)
    Job(path, folder, tmp_path / "local.parquet", options=CPU, shard=4).run(runner=here)
    killed: list[int] = []
    dice = random.Random(11)

    def kill_sometimes(done: int, total: int) -> None:
        actors = actor_processes()
        if len(killed) < 5 and actors and done > 80 * len(killed):
            victim = dice.choice(actors)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    out = tmp_path / "cluster.parquet"
    job = Job(path, folder, out, options=CPU, shard=4)
    report = job.run(processes=2, progress=kill_sometimes, runner=Cluster(cluster))
    assert len(killed) == 5
    assert report.answered == 603
    assert rows_of(out) == rows_of(tmp_path / "local.parquet")


def actor_processes() -> list[int]:
    """Processes of Ray that run our actors."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if line.startswith(b"ray::") and b"MapBatches(ShardActor)" in line:
                found.append(int(entry.name))
    return found


def test_two_processes_answer_as_one(
    make_bundle: MakeBundle, rows_of: Any, here: Any, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(2)
    images = [
        cv2.imencode(".png", rng.integers(0, 256, (16, 16, 3), np.uint8))[1].tobytes() for _ in range(60)
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet", row_group_size=25)
    path = make_bundle()
    Job(path, tmp_path / "in.parquet", tmp_path / "one.jsonl", options=CPU, shard=7).run(runner=here)
    Job(path, tmp_path / "in.parquet", tmp_path / "two.jsonl", options=CPU, shard=7).run(processes=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
