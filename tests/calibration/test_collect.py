from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest

from edgesmith.calibration.collect import Statistics, collect
from edgesmith.calibration.images import Images
from edgesmith.calibration.scale_table import Quantizer, ScaleTable
from edgesmith.sdk.errors import CalibrationError, DataError
from edgesmith.sdk.manifest import Preprocess

GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 3, 16, 16] images) => (float[1, 4, 8, 8] y)
{
  [first] c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (images, w1)
  r1 = Relu (c1)
  [second] y = Conv (r1, w2)
}
"""
PREPROCESS = Preprocess(size=(16, 16), fit="stretch")


def graph_with(scale: float = 1.0, text: str = GRAPH) -> bytes:
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, dims in (("w1", (4, 3, 3, 3)), ("w2", (4, 4, 1, 1))):
        values = (scale * rng.normal(0, 1, dims)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return bytes(model.SerializeToString())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(40):
        picture = rng.integers(0, 256, (20, 24, 3), np.uint8)
        (folder / f"{number:02d}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return folder


def test_the_table_holds_what_the_layers_read(photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    statistics = collect(
        graph_with(), Images.open(photos), PREPROCESS, progress=lambda done, total: seen.append((done, total))
    )
    table = statistics.table()
    assert set(table.activations) == {"images", "r1"}
    assert table.images == 40
    assert seen[-1] == (40, 40)
    images, relu = table.activations["images"], table.activations["r1"]
    assert 0 <= images.low < 0.05
    assert 0.95 < images.high <= 1
    assert len(images.channel_high) == 3
    assert len(relu.channel_high) == 4
    assert relu.low == 0.0
    assert relu.high == pytest.approx(max(relu.channel_high))
    assert set(relu.symmetric) == {"minmax", "percentile", "entropy", "mse", "auto"}
    assert table.warnings == ()
    quantizer = table.quantizer("r1", "minmax", symmetric=False)
    assert quantizer.shift == 128
    assert quantizer.scale == pytest.approx(relu.high / 255)


def test_a_graph_of_open_size_gives_the_same_table(photos: Path) -> None:
    """Arrays of a known size are used again for each image, those of an open size are not."""
    images = Images.open(photos)
    fixed = collect(graph_with(), images, PREPROCESS).table()
    open_text = GRAPH.replace("[1, 3, 16, 16]", "[N, 3, H, W]").replace("[1, 4, 8, 8]", "[N, 4, P, Q]")
    open_size = collect(graph_with(text=open_text), images, PREPROCESS).table()
    assert open_size.model_sha256 != fixed.model_sha256
    assert open_size.activations == fixed.activations


def test_a_table_survives_a_file(photos: Path, tmp_path: Path) -> None:
    table = collect(graph_with(), Images.open(photos), PREPROCESS).table()
    table.save(tmp_path / "scales.json")
    assert ScaleTable.load(tmp_path / "scales.json") == table
    table.check_model(table.model_sha256)
    with pytest.raises(CalibrationError, match="another model"):
        table.check_model("0" * 64)
    with pytest.raises(CalibrationError, match="tensor nowhere has no range"):
        table.quantizer("nowhere", "mse")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema": 1}'])
def test_a_damaged_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scales.json").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"scales\.json: not a table of scales"):
        ScaleTable.load(tmp_path / "scales.json")


def test_a_newer_table_is_refused(photos: Path) -> None:
    table = collect(graph_with(), Images.open(photos), PREPROCESS).table()
    newer = msgspec.structs.replace(table, schema=9)
    with pytest.raises(CalibrationError, match="schema 9"):
        ScaleTable.from_json(msgspec.json.encode(newer))


def test_few_images_and_constant_tensors_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(3):
        picture = np.full((16, 16, 3), 128, np.uint8)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    table = collect(graph_with(), Images.open(folder), PREPROCESS).table()
    assert [w.split(":")[0] for w in table.warnings] == ["few-images", "constant-tensor"]
    assert "images is always" in table.warnings[1]


def test_nan_is_named_with_tensor_layer_and_image(photos: Path) -> None:
    with pytest.raises(CalibrationError, match=r"tensor r1 holds .*read by second, on image 00\.png"):
        collect(graph_with(float("nan")), Images.open(photos), PREPROCESS)


def test_a_graph_without_layers_and_a_broken_image_are_refused(photos: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[1, 3, 16, 16] x) => (float[1, 3, 16, 16] y) { y = Relu (x) }"""
    with pytest.raises(CalibrationError, match="no convolution or matrix product"):
        collect(onnx.parser.parse_model(text).SerializeToString(), Images.open(photos), PREPROCESS)
    (photos / "07.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"07\.png"):
        collect(graph_with(), Images.open(photos), PREPROCESS)


def test_going_on_from_a_state_gives_the_same_table_bit_for_bit(photos: Path, tmp_path: Path) -> None:
    graph, images, state = graph_with(), Images.open(photos), tmp_path / "state.npz"
    whole = collect(graph, images, PREPROCESS).table()

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 17:
            raise Stop

    # What a pass of 17 images had seen is what a kill would leave at its last save.
    with pytest.raises(Stop):
        collect(graph, images, PREPROCESS, progress=stop)
    part = collect(graph, images.pick(range(17)), PREPROCESS)
    part.data_sha256 = images.fingerprint()
    part.save(state)
    assert Statistics.load(state).done == 17
    again = collect(graph, images, PREPROCESS, state=state).table()
    assert msgspec.json.encode(again) == msgspec.json.encode(whole)


def test_a_state_of_another_model_or_other_images_is_refused(photos: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    images = Images.open(photos)
    collect(graph_with(), images, PREPROCESS).save(state)
    with pytest.raises(CalibrationError, match="another model"):
        collect(graph_with(2.0), images, PREPROCESS, state=state)
    with pytest.raises(CalibrationError, match="another set of images"):
        collect(graph_with(), images.pick(range(5)), PREPROCESS, state=state)
    state.write_bytes(b"PK damaged")
    with pytest.raises(CalibrationError, match="delete it and start again"):
        collect(graph_with(), images, PREPROCESS, state=state)


SLOW = """
import sys, time
from pathlib import Path
import edgesmith.calibration.collect as module
from edgesmith.calibration.images import Images
from edgesmith.sdk.manifest import Preprocess
module.SAVE_EVERY_S = 0.0
graph, photos, state = Path(sys.argv[1]).read_bytes(), Images.open(sys.argv[2]), Path(sys.argv[3])
pause = float(sys.argv[4])
statistics = module.collect(graph, photos, Preprocess(size=(16, 16), fit="stretch"), state=state,
                            progress=lambda done, total: time.sleep(pause))
statistics.table().save(Path(sys.argv[5]))
"""


def test_a_kill_in_the_middle_then_a_resume_gives_the_same_table(photos: Path, tmp_path: Path) -> None:
    graph, state = tmp_path / "m.onnx", tmp_path / "state.npz"
    graph.write_bytes(graph_with())

    def command(out: str, pause: float) -> list[str]:
        parts: list[Any] = [sys.executable, "-c", SLOW, graph, photos, state, pause, tmp_path / out]
        return [str(part) for part in parts]

    subprocess.run(command("whole.json", 0.0), check=True)
    state.unlink()
    process = subprocess.Popen(command("killed.json", 0.05))
    deadline = time.monotonic() + 60
    while not (state.exists() and Statistics.load(state).done >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.json").exists()
    assert 5 <= Statistics.load(state).done < 40
    subprocess.run(command("resumed.json", 0.0), check=True)
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_quantizer_covers_its_window() -> None:
    quantizer = Quantizer(scale=0.5, shift=3, factor=(1.0, 2.0))
    assert quantizer.offset == 1.5
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"scale": 0.0}, Quantizer)
