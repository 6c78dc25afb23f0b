"""PSNR of enlarged pictures, and the relative error of any outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from edgesmith.sdk import TensorModel
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.errors import DataError
from edgesmith.sdk.evaluate import EvaluationData, compare_many, compare_unlabelled, evaluate
from edgesmith.sdk.preprocess import Preprocess

MakeBundle = Callable[..., Path]
# The output is 1 % too large.
LOUDER = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 1, H, W] images) => (float[N, 1, H2, W2] enlarged)
<float[4] scales = {1, 1, 2, 2}, float gain = {1.01}>
{
  louder = Mul (images, gain)
  enlarged = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (louder, , scales)
}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three smooth pictures with odd sides."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        coarse = random.uniform(0, 255, (5, 6, 3)).astype(np.float32)
        image = cv2.resize(coarse, (45 + 2 * number, 41), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", image.astype(np.uint8))[1].tobytes())
    return folder


def scaled(folder: Path, factor: int = 2) -> EvaluationData:
    return EvaluationData(images=folder, metric="psnr", downscale=factor)


def by_hand(folder: Path, *, bicubic: bool = False) -> float:
    """The mean PSNR of nearest (or bicubic) enlarging, written out."""
    found = []
    for path in sorted(folder.iterdir()):
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        luma = cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)[..., 0]
        sharp = luma[: len(luma) // 2 * 2, : luma.shape[1] // 2 * 2].astype(np.float32)
        size = sharp.shape[1] // 2, sharp.shape[0] // 2
        small = np.rint(cv2.resize(sharp, size, interpolation=cv2.INTER_CUBIC)).clip(0, 255)
        large = small.repeat(2, 0).repeat(2, 1)
        if bicubic:
            large = np.rint(cv2.resize(small, sharp.shape[::-1], interpolation=cv2.INTER_CUBIC)).clip(0, 255)
        error = (large - sharp)[4:-4, 4:-4].astype(np.float64)
        found.append(10 * np.log10(255**2 / (error**2).mean()))
    return float(np.mean(found))


def test_the_figure_by_hand(make_bundle: MakeBundle, photos: Path) -> None:
    with TensorModel.load(make_bundle("tensor")) as model:
        result = evaluate(model, scaled(photos))
    assert (result.metric, result.images) == ("psnr", 3)
    expected = {"psnr": by_hand(photos), "psnr_bicubic": by_hand(photos, bicubic=True)}
    assert result.values == pytest.approx(expected, abs=1e-4)


def test_a_network_of_colours_and_of_one_size_gets_the_middle(make_bundle: MakeBundle, photos: Path) -> None:
    text = LOUDER.replace("1, H, W", "3, 16, 20").replace("1, H2, W2", "3, 32, 40").replace("1.01", "1.0")
    preprocess = Preprocess(size=(16, 20), fit="none", color="rgb", mean=(0.5,), std=(0.25,))
    with TensorModel.load(make_bundle("tensor", text=text, preprocess=preprocess)) as model:
        result = evaluate(model, scaled(photos))
        assert 20 < result.value < result.values["psnr_bicubic"]
        small = compare_unlabelled(model, {"x": model.clone()}, [np.zeros((16, 20, 3), np.uint8)])
        assert small["x"].drop == 0.0


def test_what_a_louder_model_loses(make_bundle: MakeBundle, photos: Path) -> None:
    exact = TensorModel.load(make_bundle("tensor"))
    other = TensorModel.load(make_bundle("tensor", name="louder.edge", text=LOUDER))
    found = compare_many(exact, {"louder": other}, scaled(photos))["louder"]
    assert (found.metric, found.labelled, found.images) == ("psnr", True, 3)
    assert found.drop == pytest.approx(found.exact - found.other)
    assert found.interval[0] <= found.drop <= found.interval[1]
    assert found.lost.endswith("dB of psnr")
    plain = compare_unlabelled(exact, {"louder": other}, EvaluationData(images=photos))["louder"]
    assert (plain.metric, plain.labelled) == ("agreement", False)
    assert plain.drop == pytest.approx(1.0, abs=1e-4)  # percent of the output
    assert plain.interval == pytest.approx((1.0, 1.0), abs=1e-4)


def test_what_cannot_be_scored_is_refused(make_bundle: MakeBundle, photos: Path) -> None:
    model = TensorModel.load(make_bundle("tensor"))
    with pytest.raises(DataError, match=r'scored by PSNR: give metric = "psnr" and downscale'):
        evaluate(model, EvaluationData(images=photos))
    with pytest.raises(DataError, match="set downscale to the factor by which the model enlarges"):
        evaluate(model, scaled(photos, 3))


def test_the_command_tells_decibels(make_bundle: MakeBundle, photos: Path) -> None:
    arguments = ["eval", str(make_bundle("tensor")), "--data", str(photos), "--downscale", "2"]
    shown = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert shown.return_value == 0
    assert f"{by_hand(photos):.2f} dB" in shown.stdout
    done = CliRunner().invoke(app, [*arguments, "--json"], standalone_mode=False)
    assert json.loads(done.stdout)["metric"] == "psnr"
