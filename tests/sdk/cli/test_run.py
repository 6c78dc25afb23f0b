from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk.cli.app import main

MakeBundle = Callable[..., Path]
Inside = Callable[..., subprocess.CompletedProcess[str]]


def edgesmith(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgesmith.sdk.cli", *(str(a) for a in args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for n in range(30):
        writer.write(np.full((48, 64, 3), 8 * n, np.uint8))
    writer.release()
    return path


def test_a_video_runs_and_everything_is_written(make_bundle: MakeBundle, clip: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    done = edgesmith("run", make_bundle(), "--source", clip, "--save", out, "--jsonl", lines, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert set(summary) == {"frames", "dropped", "fps", "age_ms", "stages_ms", "errors"}
    assert (summary["frames"], summary["dropped"], summary["errors"]) == (30, 0, [])
    assert set(summary["stages_ms"]) == {"decode", "preprocess", "infer", "postprocess"}
    assert set(summary["age_ms"]) == {"p50", "p90", "p99"}
    assert out.stat().st_size > 1000
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(30))
    assert rows[0]["detections"] == []
    assert rows[29]["detections"][0]["name"] == "ball"


def test_people_get_a_table_and_the_names_of_the_files(
    make_bundle: MakeBundle, clip: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "o.jsonl"
    done = edgesmith("run", make_bundle(), "--source", clip, "--jsonl", lines, "--limit", 5)
    assert done.returncode == 0
    assert "p50" in done.stdout
    assert "5 frames" in done.stdout
    assert f"wrote {lines}" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_folder_with_a_broken_picture_ends_with_1(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    (folder / "b.png").write_bytes(b"broken")
    done = edgesmith("run", make_bundle(), "--source", folder, "--save", tmp_path / "out", "--json")
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert summary["frames"] == 1
    assert "b.png" in summary["errors"][0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_nothing_readable_at_all_ends_with_3(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"broken")
    done = edgesmith("run", make_bundle(), "--source", tmp_path / "b.png")
    assert done.returncode == 3
    assert "b.png" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--source", "missing.mp4"], 3, "missing.mp4: there is no such file"),
        (["--source", "clip.mp4", "--save", "a.png"], 2, "goes into a video"),
        (["--source", "clip.mp4", "--save", "a.xyz"], 2, "goes into a video"),
        (["--source", "clip.mp4", "--save", "no/a.mp4"], 3, "no does not exist"),
        (["--source", "clip.mp4", "--score", "7"], 2, "--score"),
        (["--source", "clip.mp4", "--backend", "cuda"], 5, "cuda"),
        (["--source", "clip.mp4", "--variant", "int8"], 2, "the bundle has float"),
        ([], 2, "--source"),
    ],
)
def test_bad_calls_end_in_one_line(
    make_bundle: MakeBundle, clip: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    done = edgesmith("run", make_bundle(), *arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_bundle_that_is_none(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "a.edge").write_bytes(b"PK nonsense")
    done = edgesmith("run", tmp_path / "a.edge", "--source", clip)
    assert done.returncode == 3
    assert "a.edge: is not an edgesmith bundle" in done.stderr
    done = edgesmith("run", tmp_path / "b.edge", "--source", clip)
    assert done.returncode == 3
    assert "b.edge: there is no such bundle" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_files(make_bundle: MakeBundle, tmp_path: Path, number: signal.Signals) -> None:
    pytest.importorskip("av")
    folder = tmp_path / "pictures"
    folder.mkdir()
    data = cv2.imencode(".jpg", np.full((720, 1280, 3), 200, np.uint8))[1].tobytes()
    for n in range(3000):
        (folder / f"{n:04d}.jpg").write_bytes(data)
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "edgesmith.sdk.cli", "run", str(make_bundle()), "--source", str(folder)]
    command += ["--save", str(out), "--jsonl", str(lines), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (lines.exists() and lines.read_text().count("\n") > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    summary = json.loads(stdout)
    assert 5 < summary["frames"] < 3000
    capture = cv2.VideoCapture(str(out))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == summary["frames"]
    capture.release()
    assert lines.read_text().count("\n") == summary["frames"]


@pytest.fixture
def inside(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in this process: what it costs to start Python is not asked for here."""

    def call(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess([str(a) for a in args], int(ended.value.code or 0), out, err)

    return call


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_several_sources_share_a_run(
    make_bundle: MakeBundle, clip: Path, tmp_path: Path, inside: Inside
) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(clip.read_bytes())
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    done = inside(
        "run", make_bundle(), "--source", clip, "--source", other, "--save", out, "--jsonl", lines, "--json"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["frames"], summary["dropped"]) == (60, 0)
    assert [(c["grabbed"], c["processed"], c["dropped"]) for c in summary["cameras"]] == [(30, 30, 0)] * 2
    rows = rows_of(lines)
    for source in (clip, other):
        assert [row["frame"] for row in rows if row["source"] == str(source)] == list(range(30))
    videos = sorted(path.name for path in tmp_path.glob("out-*.mp4"))
    assert len(videos) == 2
    for name in videos:
        capture = cv2.VideoCapture(str(tmp_path / name))
        assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 30
        capture.release()


def test_a_live_source_runs_with_latest_and_tracks(
    make_bundle: MakeBundle, tmp_path: Path, inside: Inside
) -> None:
    lines = tmp_path / "out.jsonl"
    done = inside(
        "run", make_bundle(), "--source", "test://?size=160x96&fps=60&frames=60", "--track",
        "--max-age-ms", "5000", "--jsonl", lines, "--json", "--score", "0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert 1 <= summary["frames"] <= 60
    assert "track" in summary["stages_ms"]
    rows = rows_of(lines)
    numbers = [row["frame"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert all("track_id" in item for row in rows for item in row["detections"])
    assert any(row["detections"] for row in rows)


def test_every_of_a_live_source_and_latest_of_a_file(
    make_bundle: MakeBundle, clip: Path, tmp_path: Path, inside: Inside
) -> None:
    done = inside("run", make_bundle(), "--source", clip, "--policy", "latest", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] + summary["dropped"] <= 30
    done = inside(
        "run", make_bundle(), "--source", "test://?size=80x48&fps=50&frames=20", "--policy", "every", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= json.loads(done.stdout)["frames"] <= 20


def test_a_config_file_stands_for_the_options(
    make_bundle: MakeBundle, clip: Path, tmp_path: Path, inside: Inside
) -> None:
    make_bundle()
    (tmp_path / "robot.toml").write_text(
        """
        limit = 12
        [model]
        bundle = "tiny.edge"
        backend = "cpu"
        [[cameras]]
        source = "clip.mp4"
        name = "front"
        [[sinks]]
        kind = "jsonl"
        path = "lines.jsonl"
        [[sinks]]
        kind = "pictures"
        path = "pictures"
        """
    )
    away = tmp_path / "away"
    away.mkdir()
    done = inside("run", "--config", tmp_path / "robot.toml", "--json", cwd=away)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 12
    assert [row["frame"] for row in rows_of(tmp_path / "lines.jsonl")] == list(range(12))
    assert len(list((tmp_path / "pictures").iterdir())) == 12
    done = inside("run", "--config", tmp_path / "robot.toml", "--json", "--limit", "3", cwd=away)
    assert json.loads(done.stdout)["frames"] == 3
    (tmp_path / "robot.toml").write_text("[model]\nbundle = 'tiny.edge'\nthread = 1\n")
    done = inside("run", "--config", tmp_path / "robot.toml")
    assert done.returncode == 2
    assert "robot.toml: unknown key model.thread" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_missing_camera_ends_the_run_before_it_begins(
    make_bundle: MakeBundle, clip: Path, inside: Inside
) -> None:
    done = inside("run", make_bundle(), "--source", clip, "--source", "missing.mp4")
    assert done.returncode == 3
    assert "missing.mp4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_shows_the_run(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgesmith.sdk.cli", "run", str(make_bundle())]
    command += ["--source", "test://?size=160x96&fps=20", "--view", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline, page = time.monotonic() + 60, ""
        while not page and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    page = answer.read().decode()
            except OSError:
                time.sleep(0.1)
        assert "<html" in page
        os.kill(process.pid, signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 130, stderr
        assert "interrupted after" in stdout
    finally:
        process.kill()
        process.communicate()
