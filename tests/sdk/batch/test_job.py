from __future__ import annotations

import fcntl
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.batch import Job, Options
from edgesmith.sdk.batch.rows import row_of, write_part
from edgesmith.sdk.bundle import file_sha256
from edgesmith.sdk.cameras import read_image
from edgesmith.sdk.errors import BundleError, ConfigError, DataError, SinkError
from edgesmith.sdk.models import load_model
from edgesmith.sdk.results import Detections

MakeBundle = Callable[..., Path]
CPU = Options(backend="cpu", score=0.1)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_a_row_an_image_as_the_sdk_answers(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path, ending: str
) -> None:
    path, folder, out = make_bundle(), pictures(), tmp_path / f"out{ending}"
    told: list[tuple[int, int]] = []
    job = Job(path, folder, out, options=CPU, shard=6)
    report = job.run(runner=here, progress=lambda done, total: told.append((done, total)))
    assert (report.images, report.answered, report.resumed, report.unread) == (21, 21, 0, 1)
    assert told[-1] == (21, 21)
    assert not job.folder.exists()
    rows = rows_of(out)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len({row["id"] for row in rows}) == 21
    assert {row["bundle"] for row in rows} == {file_sha256(path)}
    with load_model(path, backend="cpu", threads=1) as model:
        for row in rows:
            if "broken" in row["id"]:
                assert "not a picture" in row["error"]
                assert (row["results"], row["width"]) == (None, None)
                continue
            image = read_image(folder / row["id"])
            assert (row["height"], row["width"]) == image.shape[:2]
            assert row["error"] is None
            wanted = model(image, score=0.1).to_dict()  # type: ignore[operator]
            assert [r["name"] for r in row["results"]] == [w["name"] for w in wanted]
            for got, right in zip(row["results"], wanted, strict=True):
                np.testing.assert_allclose(got["box"], right["box"], atol=1e-4)
                assert got["score"] == pytest.approx(right["score"], abs=1e-6)


def test_a_classifiers_best(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    options = Options(backend="cpu", top=2)
    Job(make_bundle("classify"), pictures(4), out, options=options).run(runner=here)
    results = [row["results"] for row in rows_of(out) if row["results"]]
    assert len(results) == 4
    assert all(len(r) == 2 and r[0]["score"] > r[1]["score"] for r in results)
    assert set(results[0][0]) == {"label", "score", "name"}


@pytest.mark.parametrize("task", ["segment", "tensor"])
def test_maps_and_tensors(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path, task: str
) -> None:
    path, folder, out = make_bundle(task), pictures(5), tmp_path / "out.parquet"
    Job(path, folder, out, options=Options(backend="cpu")).run(runner=here)
    rows = [row for row in rows_of(out) if not row["error"]]
    assert len(rows) == 5
    with load_model(path, backend="cpu", threads=1) as model:
        for row in rows:
            wanted = model(read_image(folder / row["id"])).to_dict()  # type: ignore[operator]
            assert row["results"] == wanted


def test_masks_of_detections_are_kept(tmp_path: Path, rows_of: Any) -> None:
    mask = np.zeros((8, 9), np.bool_)
    mask[2:5, 3:7] = True
    boxes = np.array([[3, 2, 7, 5]], np.float32)
    found = Detections(boxes, np.array([0.5], np.float32), np.array([0], np.int32), ("ball",), mask[None])
    row = row_of("a", (9, 8), found, Options(), "0" * 64)
    for ending in (".parquet", ".jsonl"):
        write_part(tmp_path / f"part{ending}", [row], "detect")
        (back,) = rows_of(tmp_path / f"part{ending}")
        again = Detections.from_dict(back["results"])
        assert again.masks is not None
        assert (again.masks[0] == mask).all()


def test_lists_and_parquet_give_the_same_rows(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path, folder = make_bundle(), pictures(20)
    Job(path, folder, tmp_path / "folder.jsonl", options=CPU, shard=6).run(runner=here)
    wanted = rows_of(tmp_path / "folder.jsonl")
    names = [row["id"] for row in wanted]
    (tmp_path / "list.txt").write_text("\n".join(f"pictures/{name}" for name in names) + "\n\n")
    images = [(folder / name).read_bytes() for name in names]
    tables = {
        "bytes": {"id": names, "image": images},
        "structs": {"id": names, "image": [{"bytes": data, "path": None} for data in images]},
        "paths": {"path": [f"pictures/{name}" for name in names]},
        "numbers": {"image": images},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=9)
    for source in ("list.txt", *(f"{name}.parquet" for name in tables)):
        out = tmp_path / f"{source}.jsonl"
        report = Job(path, tmp_path / source, out, options=CPU, shard=4).run(runner=here)
        rows = rows_of(out)
        assert report.unread == 1
        assert [row["results"] for row in rows] == [row["results"] for row in wanted], source
        ids = [f"pictures/{n}" for n in names] if source in ("list.txt", "paths.parquet") else names
        if source == "numbers.parquet":
            ids = [f"row {n}" for n in range(len(names))]
        assert [row["id"] for row in rows] == ids
    (tmp_path / "list.txt").write_text("pictures/gone.png\n")
    report = Job(path, tmp_path / "list.txt", tmp_path / "gone.jsonl", options=CPU).run(runner=here)
    assert "No such file" in rows_of(tmp_path / "gone.jsonl")[0]["error"]
    assert report.unread == 1


def test_a_run_that_was_cut_off_goes_on(
    make_bundle: MakeBundle, pictures: Any, here: Any, rows_of: Any, tmp_path: Path
) -> None:
    path, folder, out = make_bundle(), pictures(), tmp_path / "out.parquet"
    whole = tmp_path / "whole.parquet"
    Job(path, folder, whole, options=CPU, shard=4).run(runner=here)
    with pytest.raises(KeyboardInterrupt):
        Job(path, folder, out, options=CPU, shard=4).run(runner=functools.partial(here, limit=2))
    assert not out.exists()
    parts = tmp_path / "out.parquet.parts"
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*")}
    assert len(before) == 2
    (parts / ".part-0000003.parquet.abcd.tmp").write_bytes(b"half a part")
    told: list[int] = []
    job = Job(path, folder, out, options=CPU, shard=4)
    report = job.run(runner=here, progress=lambda done, total: told.append(done))
    assert (report.resumed, report.answered, report.unread) == (8, 13, 1)
    assert told[0] == 8
    assert rows_of(out) == rows_of(whole)
    assert not parts.exists()


def test_another_job_does_not_go_on_there(
    make_bundle: MakeBundle, pictures: Any, here: Any, tmp_path: Path
) -> None:
    path, folder, out = make_bundle(), pictures(), tmp_path / "out.jsonl"
    stop = functools.partial(here, limit=1)
    with pytest.raises(KeyboardInterrupt):
        Job(path, folder, out, options=CPU, shard=4).run(runner=stop)
    other = make_bundle(name="other.edge", labels=("thing",))
    for job, text in [
        (Job(other, folder, out, options=CPU, shard=4), "the bundle changed"),
        (Job(path, folder, out, options=CPU, shard=5), "shard changed"),
        (Job(path, folder, out, options=Options(backend="cpu"), shard=4), "options changed"),
    ]:
        with pytest.raises(ConfigError, match=text):
            job.run(runner=here)
    (folder / "0001.png").unlink()
    with pytest.raises(ConfigError, match="the images changed"):
        Job(path, folder, out, options=CPU, shard=4).run(runner=here)


def test_two_runs_do_not_meet(make_bundle: MakeBundle, pictures: Any, here: Any, tmp_path: Path) -> None:
    job = Job(make_bundle(), pictures(4), tmp_path / "out.jsonl", options=CPU)
    job.folder.mkdir()
    with (job.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run"):
            job.run(runner=here)


def test_what_cannot_be_done_is_told(
    make_bundle: MakeBundle, pictures: Any, here: Any, tmp_path: Path
) -> None:
    path, folder = make_bundle(), pictures(3)
    (tmp_path / "there.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ConfigError, match="is there already"):
        Job(path, folder, tmp_path / "there.jsonl")
    with pytest.raises(ConfigError, match=r"\.parquet or \.jsonl"):
        Job(path, folder, tmp_path / "out.csv")
    with pytest.raises(DataError, match="no picture files"):
        Job(path, tmp_path / "empty", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="is no folder"):
        Job(path, tmp_path / "none", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Job(path, tmp_path / "bad.parquet", tmp_path / "out.jsonl")
    with pytest.raises(SinkError, match="cannot be written"):
        Job(path, folder, tmp_path / "none" / "out.jsonl").run(runner=here)
    job = Job(path, folder, tmp_path / "changed.jsonl", options=CPU)
    make_bundle(labels=("other",))
    with pytest.raises(BundleError, match="another bundle"):
        job.run(runner=here)


def test_a_classifier_has_no_thresholds(
    make_bundle: MakeBundle, pictures: Any, here: Any, tmp_path: Path
) -> None:
    job = Job(make_bundle("classify"), pictures(2), tmp_path / "out.jsonl", options=CPU)
    with pytest.raises(ConfigError, match="go with detectors"):
        job.run(runner=here)


def test_nothing_is_left_when_the_disk_is_full(
    make_bundle: MakeBundle, pictures: Any, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(make_bundle(), pictures(4), tmp_path / "out.jsonl", options=CPU)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SinkError, match="No space left"):
        job.run(runner=here)
    monkeypatch.undo()
    assert list(job.folder.glob("*part-*")) == []
    assert job.run(runner=here).answered == 5
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["id"]
