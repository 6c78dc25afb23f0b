from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Classifier, Detector
from edgesmith.sdk.cameras.pictures import read_image
from edgesmith.sdk.errors import ConfigError, DataError
from edgesmith.sdk.evaluate import (
    EvaluationData,
    Paired,
    compare_many,
    compare_models,
    compare_unlabelled,
    evaluate,
)
from edgesmith.sdk.manifest import Batch
from edgesmith.sdk.preprocess import Preprocess, prepare

MakeBundle = Callable[..., Path]
Image = np.ndarray[Any, np.dtype[np.uint8]]
# The logit of each class is the mean of one colour channel, the green one's handicapped.
BIASED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3] logits)
<int64[2] plane = {2, 3}, float[3] bias = {0, -0.1, 0}>
{
  mean = ReduceMean <keepdims = 0> (images, plane)
  logits = Add (mean, bias)
}
"""
# Three boxes whose scores are the means of the colour channels, the first box misplaced by {shift} pixels.
SHIFTED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) => (float[N, 3, 4] boxes, float[N, 3, 1] scores)
<float[1, 3, 4] places = {{{shift}, 2, {right}, 10, 12, 4, 28, 30, 13, 5, 29, 31}}, float zero = {{0.0}},
 int64[2] plane = {{2, 3}}, int64[3] shape = {{0, 3, 1}}>
{{
  mean = ReduceMean <keepdims = 0> (images, plane)
  scores = Reshape (mean, shape)
  nothing = Mul (scores, zero)
  boxes = Add (nothing, places)
}}
"""


def plain(color: tuple[int, int, int], size: int = 32) -> Image:
    image = np.empty((size, size, 3), np.uint8)
    image[:] = color
    return image


@pytest.fixture
def classifiers(make_bundle: MakeBundle) -> tuple[Classifier, Classifier]:
    other = make_bundle("classify", name="biased.edge", text=BIASED)
    return Classifier.load(make_bundle("classify")), Classifier.load(other)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures: blue beside some green. The handicap flips 1 and 2 (to wrong) and 3 (to right)."""
    greens = [200, 120, 110, 120, 0, 0, 0, 0, 0, 200]
    labels = [1, 1, 1, 0, 0, 0, 0, 0, 2, 1]
    images = np.stack([plain((0, green, 100)) for green in greens])  # RGB
    np.savez(tmp_path / "x.npz", images=images, labels=np.array(labels))
    return tmp_path / "x.npz"


def test_classifiers_with_labels(classifiers: tuple[Classifier, Classifier], photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    paired = compare_models(
        *classifiers, EvaluationData.found(photos), progress=lambda done, total: seen.append((done, total))
    )
    assert (paired.metric, paired.labelled, paired.images) == ("top1", True, 10)
    assert (paired.exact, paired.other) == (80.0, 70.0)
    assert paired.values == {"top1": (80.0, 70.0), "top5": (100.0, 100.0)}
    assert (paired.flipped, paired.right_to_wrong, paired.wrong_to_right) == (3, 2, 1)
    assert (paired.drop, paired.agreement) == (10.0, 70.0)
    low, high = paired.interval
    assert -30 <= low < 10 < high <= 50
    assert paired.within(10.0)
    assert not paired.within(9.99)
    assert seen[-1] == (10, 10)
    # The figures are those of evaluate.
    assert evaluate(classifiers[1], EvaluationData.found(photos)).values["top1"] == paired.other


def test_the_interval_is_the_percentile_bootstrap_over_images(
    classifiers: tuple[Classifier, Classifier], photos: Path
) -> None:
    data = EvaluationData.found(photos)
    paired = compare_models(*classifiers, data, draws=4000)
    # 2 of 10 lose, 1 wins: the drop of a draw is 100 (lost - won) / 10 of a multinomial.
    random = np.random.default_rng(7).multinomial(10, [0.2, 0.1, 0.7], 200_000)
    low, high = np.percentile(10 * (random[:, 0] - random[:, 1]), (2.5, 97.5))
    assert paired.interval == pytest.approx((low, high), abs=1e-9)
    # 3 of 10 flip: of a binomial, 2.8 % of draws have none and 4.7 % more than five.
    exact, other = classifiers
    flips = compare_unlabelled(exact, {"other": other}, data, draws=40_000)["other"]
    assert flips.interval == (0.0, 60.0)
    assert compare_models(*classifiers, data, seed=3) == compare_models(*classifiers, data, seed=3)


def test_a_drop_of_just_the_budget_is_inside_it() -> None:
    one = Paired(
        metric="top1", exact=87.3, other=86.8, values={}, drop=0.5, interval=(0.0, 1.0), images=1000,
        labelled=True, agreement=99.5,
    )  # fmt: skip
    assert one.within(0.5)
    assert not one.within(0.4)


def test_a_model_loses_nothing_against_itself(
    classifiers: tuple[Classifier, Classifier], photos: Path
) -> None:
    same = compare_models(classifiers[0], classifiers[0], EvaluationData.found(photos))
    assert (same.drop, same.interval, same.flipped, same.agreement) == (0.0, (0.0, 0.0), 0, 100.0)


def test_classifiers_without_labels(classifiers: tuple[Classifier, Classifier], photos: Path) -> None:
    exact, other = classifiers
    found = compare_unlabelled(exact, {"other": other, "same": exact}, EvaluationData.found(photos, limit=5))
    assert list(found) == ["other", "same"]
    paired = found["other"]
    assert (paired.metric, paired.labelled, paired.images) == ("agreement", False, 5)
    assert (paired.exact, paired.other, paired.drop) == (100.0, 40.0, 60.0)
    assert (paired.flipped, paired.right_to_wrong, paired.wrong_to_right) == (3, None, None)
    assert paired.interval[0] < 60 < paired.interval[1]
    assert found["same"].drop == 0.0
    # Frames of a camera do as well, any iterable of them.
    frames = (plain((100, green, 0)) for green in (200, 120, 110, 120, 0))
    assert compare_unlabelled(exact, {"other": other}, frames)["other"] == paired


def detector(make_bundle: MakeBundle, shift: float, name: str, **changes: object) -> Detector:
    text = SHIFTED.format(shift=2 + shift, right=10 + shift)
    return Detector.load(make_bundle(name=name, text=text, **changes))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six pictures with the object at the first box; in the last two the true place is 2 pixels off."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    images, marks = [], []
    for number in range(1, 7):
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", plain((0, 0, 255)))[1].tobytes())
        images.append({"id": number, "file_name": f"{number}.png", "width": 32, "height": 32})
        box = [2 + 2 * (number > 4), 2, 8, 8]
        marks.append({"id": number - 1, "image_id": number, "category_id": 9, "bbox": box})
    content = {"images": images, "categories": [{"id": 9, "name": "ball"}], "annotations": marks}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_detectors_with_labels(make_bundle: MakeBundle, scenes: Path) -> None:
    exact = detector(make_bundle, 0, "exact.edge")
    others = {"near": detector(make_bundle, 1, "near.edge"), "far": detector(make_bundle, 20, "far.edge")}
    data = EvaluationData.found(scenes)
    found = compare_many(exact, others, data)
    assert found["near"] == compare_models(exact, others["near"], data)
    for name, paired in found.items():
        before, after = evaluate(exact, data), evaluate(others[name], data)
        assert (paired.metric, paired.labelled, paired.images) == ("mAP", True, 6)
        assert (paired.exact, paired.other) == (before.value, after.value)
        assert paired.values == {key: (before.values[key], after.values[key]) for key in before.values}
        assert paired.drop == before.value - after.value
        assert paired.interval[0] <= paired.drop <= paired.interval[1]
        assert (paired.flipped, paired.right_to_wrong, paired.wrong_to_right) == (None, None, None)
    near, far = found["near"], found["far"]
    # Off by 1 of 8 pixels: an overlap of 7/9, right at six of ten thresholds, on every picture.
    assert near.agreement == pytest.approx(60.0)
    assert near.other == pytest.approx(60.0)
    assert near.exact == pytest.approx(evaluate(exact, data).value)
    assert far.agreement == pytest.approx(0.0)
    assert far.drop == pytest.approx(near.exact)


def test_detectors_without_labels(make_bundle: MakeBundle, scenes: Path) -> None:
    exact, near = detector(make_bundle, 0, "exact.edge"), detector(make_bundle, 1, "near.edge")
    found = compare_unlabelled(exact, {"near": near, "same": exact}, EvaluationData(images=scenes))
    assert (found["near"].metric, found["near"].labelled) == ("agreement", False)
    assert found["near"].other == pytest.approx(60.0)
    assert found["near"].drop == pytest.approx(40.0)
    assert found["near"].interval == pytest.approx((40.0, 40.0))  # the same on every picture
    assert found["same"].drop == pytest.approx(0.0)
    assert found["same"].interval == pytest.approx((0.0, 0.0))
    # Under 0.3 nothing counts as truth, and a verdict about nothing is refused.
    with pytest.raises(DataError, match=r"nothing of score 0\.3 or more in 1 images"):
        compare_unlabelled(exact, {"near": near}, [plain((0, 0, 70))])
    assert compare_unlabelled(exact, {"near": near}, [plain((0, 0, 80))])["near"].drop == pytest.approx(40)


def test_without_sure_detections_there_is_no_agreement(make_bundle: MakeBundle, scenes: Path) -> None:
    for path in scenes.glob("*.png"):
        path.write_bytes(cv2.imencode(".png", plain((0, 0, 70)))[1].tobytes())
    exact = detector(make_bundle, 0, "exact.edge")
    paired = compare_models(exact, exact, EvaluationData.found(scenes))
    assert paired.exact > 50
    assert paired.agreement is None


def test_pictures_are_read_and_prepared_once(
    make_bundle: MakeBundle, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, made = [], []

    def reading(path: Path) -> Image:
        read.append(path.name)
        return read_image(path)

    def preparing(preprocess: Preprocess, frame: Image, *, out: Any = None) -> Any:
        made.append(preprocess.pad)
        return prepare(preprocess, frame, out=out)

    monkeypatch.setattr("edgesmith.sdk.evaluate.detect.read_image", reading)
    monkeypatch.setattr("edgesmith.sdk.evaluate.answers.prepare", preparing)
    exact = detector(make_bundle, 0, "exact.edge")
    agreeing = {f"n{n}": detector(make_bundle, n, f"{n}.edge") for n in range(3)}
    padded = Preprocess(size=(32, 32), color="rgb", pad=7)
    differing = detector(make_bundle, 0, "padded.edge", preprocess=padded)
    compare_many(exact, {**agreeing, "padded": differing}, EvaluationData.found(scenes))
    assert sorted(read) == [f"{n}.png" for n in range(1, 7)]
    assert len(made) == 12
    assert made.count(7) == 6


def test_unreadable_pictures_are_left_out_for_both(make_bundle: MakeBundle, scenes: Path) -> None:
    exact = detector(make_bundle, 0, "exact.edge")
    (scenes / "2.png").write_bytes(b"broken")
    paired = compare_models(exact, exact, EvaluationData.found(scenes))
    assert paired.images == 5
    assert len(paired.faults) == 1
    assert "2.png" in paired.faults[0]
    unlabelled = compare_unlabelled(exact, {"same": exact}, EvaluationData(images=scenes))["same"]
    assert (unlabelled.images, unlabelled.faults) == (5, paired.faults)
    for path in scenes.glob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"scenes: none of the labelled pictures could be read; the first: "):
        compare_models(exact, exact, EvaluationData.found(scenes))
    with pytest.raises(DataError, match=r"scenes: none of the pictures could be read; the first: "):
        compare_unlabelled(exact, {"same": exact}, EvaluationData(images=scenes))


def test_what_cannot_be_compared_is_told(
    make_bundle: MakeBundle, classifiers: tuple[Classifier, Classifier], photos: Path
) -> None:
    exact, other = classifiers
    data = EvaluationData.found(photos)
    with pytest.raises(ConfigError, match="at least one candidate"):
        compare_many(exact, {}, data)
    with pytest.raises(ConfigError, match="'b' is for task 'detect', not 'classify'"):
        compare_many(exact, {"a": other, "b": Detector.load(make_bundle(name="d.edge"))}, data)
    renamed = make_bundle("classify", name="r.edge", labels=("blue", "red", "green"))
    with pytest.raises(ConfigError, match="'r' has other classes"):
        compare_many(exact, {"r": Classifier.load(renamed)}, data)
    with pytest.raises(ConfigError, match="draws is 0"):
        compare_models(exact, other, data, draws=0)
    with pytest.raises(DataError, match="none of the images could be read: there are none"):
        compare_unlabelled(exact, {"o": other}, [])
    with pytest.raises(DataError, match="nothing: cannot be read"):
        compare_unlabelled(exact, {"o": other}, EvaluationData(images=photos.parent / "nothing"))


@pytest.mark.parametrize("batch", [(1, 1, 1), (1, 2, 3), (4, 4, 4), (2, 3, 5)])
def test_batches_of_any_range_give_the_same_answers(
    make_bundle: MakeBundle, photos: Path, batch: tuple[int, int, int]
) -> None:
    exact = Classifier.load(make_bundle("classify"))
    sized = Batch(min=batch[0], opt=batch[1], max=batch[2])
    other = Classifier.load(make_bundle("classify", name="other.edge", text=BIASED, batch=sized))
    paired = compare_models(exact, other, EvaluationData.found(photos))
    assert (paired.other, paired.flipped, paired.right_to_wrong) == (70.0, 3, 2)
    assert evaluate(other, EvaluationData.found(photos)).value == 70.0


def test_frames_of_several_sizes_for_a_model_of_any_size(make_bundle: MakeBundle) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[N, 3, H, W] images) => (float[N, 3] logits) <int64[2] plane = {2, 3}>
    { logits = ReduceMean <keepdims = 0> (images, plane) }
    """
    any_size = make_bundle("classify", text=text, preprocess=Preprocess(size=None, fit="none", color="bgr"))
    model = Classifier.load(any_size)
    frames = [
        plain(c, size) for c, size in (((9, 0, 0), 20), ((0, 9, 0), 20), ((0, 0, 9), 31), ((9, 0, 0), 20))
    ]
    paired = compare_unlabelled(model, {"same": model}, frames)["same"]
    assert (paired.images, paired.flipped) == (4, 0)


def test_annotations_without_ids_areas_or_with_broken_boxes(make_bundle: MakeBundle, scenes: Path) -> None:
    exact = detector(make_bundle, 0, "exact.edge")
    before = evaluate(exact, EvaluationData.found(scenes)).values  # ids from 0, no area, no iscrowd
    path = scenes / "instances.json"
    content = json.loads(path.read_text())
    for mark in content["annotations"]:
        mark |= {"id": mark["id"] + 1, "area": 64, "iscrowd": 0}
    path.write_text(json.dumps(content))
    assert evaluate(exact, EvaluationData.found(scenes)).values == before
    content["annotations"][3]["bbox"] = [1, 2, 3]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\[3\]: bbox is \[1, 2, 3\], not x, y, width, height"):
        evaluate(exact, EvaluationData.found(scenes))
