from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.preprocess import Preprocess

MakeBundle = Callable[..., Path]


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], standalone_mode=False)


def test_verify_passes_and_its_json_has_the_keys(make_bundle: MakeBundle) -> None:
    done = call("verify", make_bundle(), "--json")
    assert done.return_value == 0
    answer = json.loads(done.stdout)
    assert set(answer) == {"passed", "backend", "variant", "outputs", "rollback"}
    assert answer["passed"] is True
    assert set(answer["outputs"][0]) == {"name", "max_abs", "cosine", "tolerance"}


def test_verify_fails_with_status_1(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    wrong = Preprocess(size=(32, 32), mean=(0.5,))
    write_bundle(path, msgspec.structs.replace(bundle.manifest, preprocess=wrong), members)
    done = call("verify", path)
    assert done.return_value == 1
    assert "FAILED" in done.stdout


@pytest.mark.parametrize("batch", [1, 3])
def test_bench_measures(make_bundle: MakeBundle, batch: int) -> None:
    done = call("bench", make_bundle(), "--iterations", 10, "--warmup", 1, "--batch", batch, "--json")
    answer = json.loads(done.stdout)
    needed = {"backend", "variant", "latency_ms", "stages_ms", "throughput", "rss_bytes"}
    assert needed <= set(answer)
    assert 0 < answer["latency_ms"]["p50"] <= answer["latency_ms"]["p99"]
    stages = sum(times["p50"] for times in answer["stages_ms"].values())
    assert stages <= 1.5 * answer["latency_ms"]["p50"]
    assert answer["throughput"] == pytest.approx(batch * 1e3 / answer["latency_ms"]["p50"], rel=0.9)
    assert answer["rss_bytes"] > 10 << 20


def test_bench_takes_frames_from_a_source(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    done = call("bench", make_bundle(), "--iterations", 3, "--source", path)
    assert done.return_value == 0
    assert "frames/s" in done.stdout


def test_eval_prints_a_table_or_json(make_bundle: MakeBundle, tmp_path: Path) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, ..., 2] = images[1, ..., 1] = 200
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, 1]))
    path = make_bundle("classify")
    answer = json.loads(call("eval", path, "--data", tmp_path / "x.npz", "--json").stdout)
    assert {"metric", "value", "values", "images", "backend", "variant", "seconds"} <= set(answer)
    assert answer["value"] == 100.0
    done = call("eval", path, "--data", tmp_path / "x.npz")
    assert "100.00 %" in done.stdout


def test_eval_ends_with_1_when_pictures_were_left_out(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,class\ngood.png,0\nbad.png,0\n")
    (tmp_path / "good.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    (tmp_path / "bad.png").write_bytes(b"")
    done = call("eval", make_bundle("classify"), "--data", tmp_path)
    assert done.return_value == 1
    assert "bad.png" in done.stderr
