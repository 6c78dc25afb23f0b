"""Intersection over union: against a count by hand, and against the masks' own rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from edgesmith.sdk import Segmenter
from edgesmith.sdk.cli.app import app
from edgesmith.sdk.errors import ConfigError, DataError
from edgesmith.sdk.evaluate import EvaluationData, compare_many, compare_unlabelled, evaluate
from edgesmith.sdk.evaluate.bootstrap import drawn
from edgesmith.sdk.evaluate.segment import Overlaps

MakeBundle = Callable[..., Path]
# Green and red change places.
SWAPPED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3, 32, 32] logits)
<int64[3] order = {0, 2, 1}>
{
  logits = Gather <axis = 1> (images, order)
}
"""


def put(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Two pictures of 32 x 32, half blue and half green; 8 and 4 columns of the blue are marked wrongly."""
    folder = tmp_path / "masked"
    for number, wrong in enumerate((8, 4)):
        image = np.zeros((32, 32, 3), np.uint8)
        image[:, :16, 0] = image[:, 16:, 1] = 200
        mask = np.full((32, 32), 10, np.uint8)
        mask[:, 16:] = 20
        mask[:, :wrong] = 30  # red, where blue is
        mask[0] = 99  # of no class
        put(folder / f"{number}.bmp", image)
        put(folder / f"{number}.png", mask)
    return folder


def values(masked: Path, **changes: Any) -> EvaluationData:
    return EvaluationData(images=masked, mask_values=(10, 20, 30), **changes)


def test_the_figures_by_hand(make_bundle: MakeBundle, masked: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Segmenter.load(make_bundle("segment")) as model:
        result = evaluate(model, values(masked), progress=lambda *done: seen.append(done))
    rows = 31
    blue = (8 + 12) * rows / (32 * rows)  # found 16 columns in each picture, marked 8 and 12
    assert result.metric == "mIoU"
    assert result.images == 2
    assert result.values == pytest.approx(
        {
            "mIoU": 100 * (blue + 1 + 0) / 3, "pixel_accuracy": 100 * (24 + 28) / 64,
            "mIoU_per_image": 100 * np.mean([(8 / 16 + 1 + 0) / 3, (12 / 16 + 1 + 0) / 3]),
            "IoU_blue": 100 * blue, "IoU_green": 100.0, "IoU_red": 0.0,
        }
    )  # fmt: skip
    assert result.value == result.values["mIoU"]
    assert seen[-1] == (2, 2)


def test_means_over_drawn_images_are_those_of_the_images_written_out() -> None:
    random = np.random.default_rng(0)
    maps = [(random.integers(0, 4, (9, 9)), random.integers(-1, 4, (9, 9))) for _ in range(6)]
    overlaps = Overlaps()
    for found, truth in maps:
        overlaps.add(found, truth, 4)
    counts = drawn(6, 5, 1)
    for row, mean in zip(counts, overlaps.mean_iou(counts), strict=True):
        pairs = [pair for pair, times in zip(maps, row, strict=True) for _ in range(times)]
        found, truth = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        shares = [
            ((found == n) & (truth == n)).sum() / (((found == n) | (truth == n)) & (truth >= 0)).sum()
            for n in range(4)
        ]
        assert mean == pytest.approx(100 * np.mean(shares))


def test_two_models_on_the_same_masks(make_bundle: MakeBundle, masked: Path) -> None:
    exact = Segmenter.load(make_bundle("segment"))
    others = {"same": Segmenter.load(make_bundle("segment")), "worse": swapped(make_bundle)}
    found = compare_many(exact, others, values(masked))
    same, worse = found["same"], found["worse"]
    assert (same.metric, same.drop, same.interval, same.agreement) == ("mIoU", 0.0, (0.0, 0.0), 100.0)
    assert worse.values["IoU_green"] == (100.0, 0.0)
    assert worse.drop == pytest.approx(worse.exact - worse.other)
    assert worse.interval[0] <= worse.drop <= worse.interval[1]
    assert worse.agreement == pytest.approx(100 / 3)  # blue is the same, of three classes in view


def test_without_masks_the_exact_maps_are_the_truth(make_bundle: MakeBundle, masked: Path) -> None:
    exact = Segmenter.load(make_bundle("segment"))
    pictures = EvaluationData(images=masked)
    found = compare_unlabelled(exact, {"worse": swapped(make_bundle)}, pictures)["worse"]
    assert (found.metric, found.labelled, found.images) == (
        "agreement",
        False,
        4,
    )  # the masks are pictures too
    assert found.drop == pytest.approx(100 - found.other)
    again = compare_unlabelled(exact, {"same": exact.clone()}, pictures)["same"]
    assert (again.drop, again.interval) == (0.0, (0.0, 0.0))


def swapped(make_bundle: MakeBundle) -> Segmenter:
    return Segmenter.load(make_bundle("segment", name="swapped.edge", text=SWAPPED))


def test_other_classes_do_not_compare(make_bundle: MakeBundle, masked: Path) -> None:
    exact = Segmenter.load(make_bundle("segment"))
    other = Segmenter.load(make_bundle("segment", name="other.edge", labels=("a", "b", "c")))
    with pytest.raises(ConfigError, match="has other classes"):
        compare_many(exact, {"other": other}, values(masked))


def test_masks_that_do_not_fit_are_refused(make_bundle: MakeBundle, masked: Path, tmp_path: Path) -> None:
    model = Segmenter.load(make_bundle("segment"))
    with pytest.raises(DataError, match="2 values for a model of 3 classes"):
        evaluate(model, EvaluationData(images=masked, mask_values=(0, 255)))
    put(masked / "0.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"has \(8, 8\) pixels, its picture \(32, 32\)"):
        evaluate(model, values(masked))
    put(masked / "0.png", np.dstack([np.full((32, 32), v, np.uint8) for v in (0, 0, 9)]))
    with pytest.raises(DataError, match="a mask in colour"):
        evaluate(model, values(masked))
    (masked / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="is not a picture"):
        evaluate(model, values(masked))
    put(tmp_path / "bare" / "x.jpg", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="no picture has a mask"):
        evaluate(model, EvaluationData(images=tmp_path / "bare"))


def test_the_command(make_bundle: MakeBundle, masked: Path) -> None:
    arguments = ["eval", str(make_bundle("segment")), "--data", str(masked)]
    done = CliRunner().invoke(app, [*arguments, "--mask-values", "10,20,30", "--json"], standalone_mode=False)
    answer = json.loads(done.stdout)
    assert (done.return_value, answer["metric"], answer["value"]) == (0, "mIoU", answer["values"]["mIoU"])
    shown = CliRunner().invoke(app, [*arguments, "--mask-values", "10, 20,30"], standalone_mode=False)
    assert "mIoU_per_image" in shown.stdout
    wrong = CliRunner().invoke(app, [*arguments, "--mask-values", "10,x"])
    assert wrong.exit_code == 2
    assert "whole numbers, as 0,255" in wrong.stderr
