"""``edgesmith build`` and ``verify`` on a fake TensorRT with a fake GPU: the whole device path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk import Classifier, load_model
from edgesmith.sdk.backends.choose import BACKENDS, order_here
from edgesmith.sdk.board.sensors import Board
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.cli.app import main
from edgesmith.sdk.cli.build import byte_count
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.testing.fake_tensorrt import Simulated

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """``on(version="10.13.3")``: from now on this machine has such a TensorRT, and a cache in a folder."""

    def simulate(**settings: Any) -> None:
        monkeypatch.setenv("EDGESMITH_TENSORRT", Simulated(**settings).specification)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))

    simulate()
    return simulate


@pytest.fixture
def edgesmith(on: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_it_prewarms_what_a_load_then_finds(trio: Bundle, edgesmith: Run, caplog: Any) -> None:
    status, out, _ = edgesmith("build", trio.path, "--level", "4", "--workspace", "256M", "--json")
    assert status == 0
    answer = json.loads(out)
    assert (answer["variant"], answer["tensorrt"], answer["gpu"]) == (
        "int8",
        "TensorRT 10.3.0",
        "Orin (nvgpu)",
    )
    assert answer["engine"]["key"]["options"] == {"level": 4, "workspace_bytes": 256 << 20}
    assert answer["rollback"] is None
    caplog.clear()
    with Classifier.load(trio.path) as model:
        assert (model.backend.name, model.backend.variant) == ("tensorrt", "int8")
        frame = np.full((32, 32, 3), 51, np.uint8)
        answers = model(frame)
        np.testing.assert_allclose(np.sort(answers.scores), np.full(3, 1 / 3), atol=1e-2)
    assert "building" not in caplog.text


def test_the_race_decides_what_runs(trio: Bundle, edgesmith: Run, on: Callable[..., None]) -> None:
    on(latency_s={"int8": 0.01, "fp16": 0.0005, "fp32": 0.015})
    status, out, _ = edgesmith("build", trio.path, "--race", "--rounds", 3, "--json")
    assert status == 0
    answer = json.loads(out)
    assert answer["race"]["winner"] == "fp16"
    assert [line["variant"] for line in answer["race"]["lines"]] == ["fp16", "int8", "float"]
    with load_model(trio.path) as model:
        assert model.backend.variant == "fp16"
    status, out, _ = edgesmith("build", trio.path, "--race", "--rounds", 3)
    assert "from now on: fp16" in out
    assert "is slower here than fp16" in out


def test_a_race_on_a_board_that_throttles_changes_nothing(
    trio: Bundle, edgesmith: Run, on: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "sys/class/devfreq/17000000.gpu"
    for name, text in {
        "device/of_node/name": "ga10b",
        "device/load": "990",
        "cur_freq": "306000000",
        "max_freq": "918000000",
    }.items():
        (node / name).parent.mkdir(parents=True, exist_ok=True)
        (node / name).write_text(text)
    monkeypatch.setattr("edgesmith.sdk.cli.build.Board", lambda: Board(tmp_path))
    status, out, _ = edgesmith("build", trio.path, "--race", "--rounds", 4, "--json")
    race = json.loads(out)["race"]
    assert (status, race["winner"], race["throttled"], race["clock_mhz"]) == (1, None, True, 306.0)
    assert "the board throttled" in race["notes"][0]
    (node / "cur_freq").write_text("918000000")
    status, out, _ = edgesmith("build", trio.path, "--race", "--rounds", 4, "--json")
    assert "the board throttled" not in str(json.loads(out)["race"]["notes"])


def test_an_engine_that_computes_wrongly_is_told_everywhere(
    trio: Bundle, edgesmith: Run, on: Callable[..., None]
) -> None:
    on(wrong=("int8",))
    status, out, _ = edgesmith("build", trio.path)
    assert status == 1
    assert "ROLLED BACK: int8: the self-test failed: output logits is off by" in out
    assert out.rstrip().endswith("in use: fp16")
    status, out, _ = edgesmith("verify", trio.path, "--json")
    assert status == 1
    answer = json.loads(out)
    assert (answer["passed"], answer["backend"], answer["variant"]) == (True, "tensorrt", "fp16")
    assert answer["rollback"]["divergence"]["output"] == "logits"
    on()
    status, out, _ = edgesmith("build", trio.path, "--fresh")
    assert (status, "ROLLED BACK" in out) == (0, False)
    assert edgesmith("verify", trio.path)[0] == 0


def test_where_no_engine_is_right_the_next_backend_runs(
    trio: Bundle, edgesmith: Run, on: Callable[..., None]
) -> None:
    on(wrong=("int8", "fp16", "fp32"))
    status, out, _ = edgesmith("verify", trio.path)
    assert status == 1
    assert "variant float on cpu" in out
    assert "no engine is in use" in out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--dla", "0"), 5, "has no model.dla.onnx"),
        (("--workspace", "much"), 2, "give it as 512M or 2G"),
        (("--race", "--variant", "int8"), 2, "leave --variant out"),
        (("--variant", "int4"), 2, "no variant 'int4'"),
        (("--compute-capability", "8.6"), 5, "builds for the GPU that it runs on alone"),
    ],
)
def test_what_cannot_be_is_said_and_not_remembered(
    trio: Bundle, edgesmith: Run, arguments: tuple[str, ...], status: int, said: str
) -> None:
    assert edgesmith("build", trio.path)[0] == 0
    got, _, err = edgesmith("build", trio.path, *arguments)
    assert got == status
    assert said in err
    assert edgesmith("verify", trio.path)[0] == 0


def test_without_tensorrt_it_says_what_to_install(
    trio: Bundle, edgesmith: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGESMITH_TENSORRT")
    monkeypatch.setattr("edgesmith.sdk.backends.tensorrt.library.MODULES", ("no_such_tensorrt",))
    status, _, err = edgesmith("build", trio.path)
    assert status == 5
    assert "python3-libnvinfer" in err


def test_for_another_gpu_with_rtx(trio: Bundle, edgesmith: Run, on: Callable[..., None]) -> None:
    on(version="1.7.1", compute_capability=(8, 6), gpu="", l4t="")
    status, out, _ = edgesmith("build", trio.path, "--compute-capability", "8.6", "--json")
    assert status == 0
    answer = json.loads(out)
    assert (answer["tensorrt"], answer["compute_capability"]) == ("TensorRT-RTX 1.7.1", "8.6")
    assert answer["in_use"] == ""


def test_the_order_of_backends_and_why_not(on: Callable[..., None]) -> None:
    assert list(BACKENDS) == ["tensorrt", "cuda", "cpu"]
    order = dict(order_here())
    assert order["tensorrt"] is None
    on(version="8.6.1")
    assert "too old" in (dict(order_here())["tensorrt"] or "")


def test_without_a_driver_tensorrt_is_not_even_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESMITH_TENSORRT", raising=False)
    monkeypatch.setattr("edgesmith.sdk.backends.tensorrt.target.DRIVER", "libno_such_driver.so")
    monkeypatch.setattr("edgesmith.sdk.backends.tensorrt.library.MODULES", None)  # else: not iterable
    assert dict(order_here())["tensorrt"] == "there is no CUDA driver on this machine (libcuda.so.1)"


@pytest.mark.parametrize(
    ("text", "count"), [(None, None), ("1000", 1000), ("64k", 65536), ("512M", 512 << 20), ("2 GiB", 2 << 30)]
)
def test_sizes(text: str | None, count: int | None) -> None:
    assert byte_count(text) == count
    with pytest.raises(ConfigError):
        byte_count("0")
