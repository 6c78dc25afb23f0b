from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgesmith.sdk.board.sensors import Board
from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.cli.bench import Watched, rates
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
    # Half of the runs took the median or longer, however busy the machine is.
    assert 0 < answer["throughput"] <= 2 * batch * 1e3 / answer["latency_ms"]["p50"]
    assert answer["rss_bytes"] > 10 << 20


def test_bench_takes_frames_from_a_source(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    done = call("bench", make_bundle(), "--iterations", 3, "--source", path)
    assert done.return_value == 0
    assert "frames/s" in done.stdout


def board(root: Path, clock: str) -> Board:
    """A tree of a busy board that takes 5 W, in a mode of 918 MHz."""
    gpu, power = "sys/class/devfreq/17000000.gpu", "sys/bus/i2c/devices/1-0040"
    files = {
        f"{gpu}/device/of_node/name": "ga10b",
        f"{gpu}/device/load": "1000",
        f"{gpu}/cur_freq": clock,
        f"{power}/name": "ina3221",
        f"{power}/hwmon/hwmon1/in1_label": "VDD_IN",
        f"{power}/hwmon/hwmon1/in1_input": "5000",
        f"{power}/hwmon/hwmon1/curr1_input": "1000",
        "var/lib/nvpmodel/status": "pmode:0001",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=25W >\nGPU MAX_FREQ 918000000\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return Board(root)


@pytest.mark.parametrize(("clock", "throttled"), [("918000000", False), ("306000000", True)])
def test_bench_on_a_board_tells_energy_mode_and_throttling(
    make_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: str,
    throttled: bool,
) -> None:
    here = board(tmp_path / "board", clock)
    monkeypatch.setattr("edgesmith.sdk.cli.bench.Board", lambda: here)
    path = make_bundle()
    answer = json.loads(call("bench", path, "--seconds", 0.6, "--batch", 2, "--json").stdout)
    assert answer["power_mode"] == "25W"
    assert answer["throttled"] is throttled
    # 5 W all the time: the energy of a frame is 5 W over the frames a second, the loop's own work aside.
    assert answer["joules"] * answer["throughput"] == pytest.approx(5.0, rel=0.3)
    assert len(answer["rates"]) == 10
    text = call("bench", path, "--seconds", 0.6).stdout
    assert "J a frame, power mode 25W" in text
    assert ("THROTTLED" in text) is throttled


def test_bench_off_a_board_says_null(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesmith.sdk.cli.bench.Board", lambda: Board(tmp_path / "none"))
    answer = json.loads(call("bench", make_bundle(), "--iterations", 3, "--json").stdout)
    assert [answer[key] for key in ("joules", "throttled", "power_mode")] == [None, None, None]
    assert (answer["iterations"], len(answer["rates"])) == (3, 3)


def test_bench_for_seconds_ends_in_time(make_bundle: MakeBundle) -> None:
    answer = json.loads(call("bench", make_bundle(), "--seconds", 0.3, "--warmup", 0, "--json").stdout)
    spent = answer["iterations"] / answer["throughput"]
    assert 0.05 < spent < 1.0
    assert answer["iterations"] != 200


def test_rates_show_a_run_that_slows_down() -> None:
    tenths = rates([10.0] * 90 + [20.0] * 10, batch=2)
    assert tenths == pytest.approx([200.0] * 9 + [100.0])


def test_energy_follows_the_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, watts = iter([0.0, 2.0]), iter([4.0, 8.0])
    here = board(tmp_path, "918000000")
    monkeypatch.setattr(here, "watts", lambda: next(watts))
    monkeypatch.setattr("edgesmith.sdk.cli.bench.time.monotonic", lambda: next(now))
    with Watched(here, every_s=60.0) as watched:
        pass
    assert watched.joules() == 12.0


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
