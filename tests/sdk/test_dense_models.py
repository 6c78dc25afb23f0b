"""Segmenters and tensor models as a caller uses them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from edgesmith.sdk import Segmentation, Segmenter, TensorModel, Tensors, load_model, self_test
from edgesmith.sdk.bundle import Bundle, write_bundle
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.errors import ConfigError

MakeBundle = Callable[..., Path]
Frame8 = NDArray[np.uint8]


def striped(height: int = 60, width: int = 90) -> Frame8:
    """Blue, green and red stripes of one width."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        image[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 200
    return image


def test_a_segmenter_answers_at_the_frames_size(make_bundle: MakeBundle) -> None:
    with Segmenter.load(make_bundle("segment")) as model:
        found = model(striped())
        assert isinstance(found, Segmentation)
        assert found.class_map.shape == (60, 90)
        shares = {region.name: region.share for region in found}
        assert shares == pytest.approx({"blue": 1 / 3, "green": 1 / 3, "red": 1 / 3}, abs=0.03)
        assert found.class_map[30, 7::15].tolist() == [0, 0, 1, 1, 2, 2]
        several = model([striped(40, 50), striped(31, 77)] * 5)
        assert [one.class_map.shape for one in several] == [(40, 50), (31, 77)] * 5
        np.testing.assert_array_equal(several[2].class_map, several[0].class_map)
        assert model([]) == []


def test_a_tensor_model_takes_frames_of_any_size(make_bundle: MakeBundle) -> None:
    with TensorModel.load(make_bundle("tensor")) as model:
        frames = [striped(20, 30), striped(20, 30), striped(24, 18)]
        found = model(frames)
        assert [one["enlarged"].shape for one in found] == [(1, 40, 60), (1, 40, 60), (1, 48, 36)]
        luma = cv2.cvtColor(frames[2], cv2.COLOR_BGR2YCrCb)[..., 0] / np.float32(255)
        np.testing.assert_allclose(found[2]["enlarged"][0, ::2, ::2], luma, atol=1e-6)
        assert found[0].draw(frames[0]).shape == (40, 60, 3)
        alone = model(frames[0])
        assert isinstance(alone, Tensors)
        alone["enlarged"][:] = 5  # the caller's own, not the next call's buffer
        assert float(model(frames[0])["enlarged"].max()) < 1


def test_the_class_follows_the_task(make_bundle: MakeBundle) -> None:
    for task, kind in (("segment", Segmenter), ("tensor", TensorModel)):
        with load_model(make_bundle(task)) as model:
            assert type(model) is kind
            assert self_test(model).passed
    with pytest.raises(ConfigError, match=r"task 'tensor': load it with TensorModel\.load"):
        Segmenter.load(make_bundle("tensor"))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_golden_maps_may_be_stored_in_part(make_bundle: MakeBundle, shift: float) -> None:
    path = make_bundle("segment")
    bundle = Bundle.open(path)
    members = {name: bundle.read(name) for name in bundle.manifest.members}
    with np.load(io.BytesIO(members["golden/float.npz"])) as file:
        logits = file["logits"]
    part: dict[str, Any] = {"logits@4": logits[..., ::4, ::4] + np.float32(shift)}
    buffer = io.BytesIO()
    np.savez(buffer, **part)
    write_bundle(path, bundle.manifest, {**members, "golden/float.npz": buffer.getvalue()})
    with Segmenter.load(path, backend="cpu") as model:
        test = self_test(model)
    (check,) = test.outputs
    assert (check.name, test.passed) == ("logits", shift == 0.0)
    assert check.max_abs == pytest.approx(shift, abs=1e-5)


@pytest.mark.parametrize(("task", "size"), [("segment", (60, 90)), ("tensor", (120, 180))])
def test_run_saves_what_it_shows_and_tells_each_frame(
    task: str, size: tuple[int, int], make_bundle: MakeBundle, tmp_path: Path
) -> None:
    picture, saved, lines = tmp_path / "in.png", tmp_path / "out.png", tmp_path / "out.jsonl"
    assert cv2.imwrite(str(picture), striped())
    arguments = ["run", make_bundle(task), "--source", picture, "--save", saved, "--jsonl", lines, "--json"]
    done = CliRunner().invoke(app, [str(a) for a in arguments], standalone_mode=False)
    assert (done.return_value, json.loads(done.stdout)["frames"]) == (0, 1)
    image = cv2.imdecode(np.frombuffer(saved.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[:2] == size
    line = json.loads(lines.read_text())
    if task == "segment":
        np.testing.assert_array_equal(
            Segmentation.from_dict(line["regions"]).class_map[30, 7::15], [0, 0, 1, 1, 2, 2]
        )
    else:
        assert line["tensors"][0]["shape"] == [1, 120, 180]


def test_bench_times_them(make_bundle: MakeBundle) -> None:
    for task in ("segment", "tensor"):
        arguments = ["bench", str(make_bundle(task)), "--iterations", "3", "--warmup", "0", "--json"]
        done = CliRunner().invoke(app, arguments, standalone_mode=False)
        assert json.loads(done.stdout)["iterations"] == 3
