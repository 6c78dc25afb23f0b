"""Matching and scoring against the independent evaluator, on random data that has every hard case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.evaluate.detect import coco_figures
from edgesmith.sdk.evaluate.matching import Found, Truth, average_precisions, match
from edgesmith.sdk.results import Detections

Coco = tuple[dict[str, Any], list[dict[str, Any]]]
CLASSES = (5, 8, 11, 14)  # category ids with gaps; the last has objects and no detection


def random_coco(seed: int, *, images: int = 20, detections: int = 40, decimals: int = 2) -> Coco:
    """Objects, twins of objects, crowds, ``ignore`` marks; detections near them, on them, and anywhere."""
    random = np.random.default_rng(seed)
    marks: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(3, 3 + 7 * images, 7):
        mine: list[tuple[list[float], int]] = []
        for _ in range(random.poisson(6)):
            box = np.round([*random.uniform(0, 400, 2), *np.exp(random.uniform(2, 5.5, 2))], 2).tolist()
            label = int(random.choice(CLASSES, p=(0.6, 0.2, 0.15, 0.05)))
            mine += [(box, label)] * (2 if random.random() < 0.15 else 1)
        for box, label in mine:
            mark = {"id": len(marks) + 1, "image_id": image, "category_id": label, "bbox": box}
            mark |= {"area": box[2] * box[3], "iscrowd": int(random.random() < 0.1)}
            marks.append(mark | {"ignore": int(random.random() < 0.1)})
        for _ in range(random.poisson(detections)):
            box = np.array([*random.uniform(0, 400, 2), *np.exp(random.uniform(2, 5.5, 2))])
            label = int(random.choice(CLASSES[:3]))
            if mine and random.random() < 0.7:
                near, label = mine[random.integers(len(mine))]
                shift = random.normal(0, 0.12, 4) * (random.random() < 0.8)
                box = np.array(near) + shift * np.array(near)[[2, 3, 2, 3]]
                box[2:] = np.maximum(box[2:], 0)
            if label != CLASSES[3]:
                score = float(np.round(random.random(), decimals))
                found.append({"image_id": image, "category_id": label, "bbox": box.tolist(), "score": score})
    categories = [{"id": n, "name": str(n)} for n in (*CLASSES, 99)]  # 99 has no object either
    entries = [{"id": n, "width": 640, "height": 480} for n in range(3, 3 + 7 * images, 7)]
    return {"images": entries, "categories": categories, "annotations": marks}, found


def arrays(coco: Coco) -> tuple[Truth, Found]:
    truth, found = coco
    numbers = {image["id"]: n for n, image in enumerate(truth["images"])}

    def of(entries: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
        images = np.array([numbers[e["image_id"]] for e in entries])
        classes = np.array([e["category_id"] for e in entries])
        return images, classes, np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4)

    crowd = np.array([bool(a["iscrowd"]) for a in truth["annotations"]])
    scores = np.array([f["score"] for f in found])
    return Truth(len(numbers), *of(truth["annotations"]), crowd), Found(*of(found), scores)


def reference(coco: Coco) -> dict[str, float]:
    truth, found = coco
    return coco_figures(truth, found, [image["id"] for image in truth["images"]])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("detections", [10, 40, 700])
def test_equal_to_the_reference_evaluator(seed: int, detections: int) -> None:
    coco = random_coco(seed, images=8 if detections == 700 else 20, detections=detections)
    ours = average_precisions(match(*arrays(coco)))[0]
    theirs = reference(coco)
    assert ours.mean() == pytest.approx(theirs["mAP"], abs=1e-6)
    assert ours[0] == pytest.approx(theirs["mAP50"], abs=1e-6)
    assert ours[5] == pytest.approx(theirs["mAP75"], abs=1e-6)


def test_the_random_data_has_the_hard_cases() -> None:
    truth, found = arrays(random_coco(0, images=8, detections=700))
    _, per = np.unique(np.stack([found.images, found.classes]), axis=1, return_counts=True)
    assert per.max() > 100
    assert len(np.unique(found.scores)) < len(found.scores) / 2  # ties
    assert truth.crowd.any()
    parts = match(truth, found).classes
    assert any(part.ignored.any() for part in parts)
    assert any(part.right.any() for part in parts)
    assert any(not len(part.images) for part in parts)  # a class with objects that nothing finds


def redrawn(coco: Coco, counts: list[int]) -> Coco:
    """The same data with each image written as often as it was drawn, copies side by side."""
    truth, found = coco
    images: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            number = {"image_id": len(images) + 1}
            images.append(image | {"id": len(images) + 1})
            for mark in truth["annotations"]:
                if mark["image_id"] == image["id"]:
                    marks.append(mark | number | {"id": len(marks) + 1})
            results += [f | number for f in found if f["image_id"] == image["id"]]
    return {"images": images, "categories": truth["categories"], "annotations": marks}, results


def test_a_weighted_draw_equals_the_images_written_out() -> None:
    coco = random_coco(1, images=12, decimals=12)  # no ties: copies of one image would interleave
    random = np.random.default_rng(0)
    counts = np.stack([np.bincount(random.integers(0, 12, 12), minlength=12) for _ in range(12)])
    assert counts.max() > 2
    ours = average_precisions(match(*arrays(coco)), counts).mean(1)
    for row, got in zip(counts.tolist(), ours, strict=True):
        assert got == pytest.approx(reference(redrawn(coco, row))["mAP"], abs=1e-6)
    assert np.ptp(ours) > 1


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = match(*arrays(random_coco(2)))
    counts = np.random.default_rng(0).integers(0, 3, (7, 20))
    whole = average_precisions(matches, counts)
    monkeypatch.setattr("edgesmith.sdk.evaluate.matching._AT_ONCE", 1)
    assert np.array_equal(average_precisions(matches, counts), whole)


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    # The first detection overlaps both objects by 0.5 and takes the second; the next suits the first alone.
    objects = np.array([[0, 0, 10, 10], [10, 0, 10, 10]], np.float64)
    truth = Truth(1, np.zeros(2, int), np.zeros(2, int), objects, np.zeros(2, bool))
    boxes = np.array([[0, 0, 20, 10], [0, 0, 10, 10]], np.float64)
    found = Found(np.zeros(2, int), np.zeros(2, int), boxes, np.array([0.9, 0.8]))
    (part,) = match(truth, found).classes
    assert part.right[0].tolist() == [True, True]
    assert part.right[1].tolist() == [False, True]
    swapped = Truth(1, truth.images, truth.classes, objects[::-1], truth.crowd)
    assert match(swapped, found).classes[0].right[0].tolist() == [True, False]


def test_a_crowd_ignores_any_number_but_an_object_comes_first() -> None:
    boxes = np.array([[0, 0, 100, 100], [0, 0, 10, 10]], np.float64)
    truth = Truth(1, np.zeros(2, int), np.zeros(2, int), boxes, np.array([True, False]))
    inside = np.array([[0, 0, 10, 10], [50, 50, 9, 9], [80, 80, 9, 9], [95, 95, 10, 10]], np.float64)
    found = Found(np.zeros(4, int), np.zeros(4, int), inside, np.array([0.9, 0.8, 0.7, 0.6]))
    matches = match(truth, found)
    (part,) = matches.classes
    assert part.objects.tolist() == [1.0]
    assert part.right[0].tolist() == [True, False, False, False]
    assert part.ignored[0].tolist() == [False, True, True, False]  # the last lies in it by a quarter
    assert average_precisions(matches)[0].tolist() == pytest.approx([100.0] * 10)


def test_nothing_to_find_is_nan_and_nothing_found_is_zero() -> None:
    none = Found.from_detections([Detections.empty()] * 2)
    empty = Truth.from_detections([Detections.empty()] * 2)
    assert np.isnan(average_precisions(match(empty, none))).all()
    one = Truth(2, np.zeros(1, int), np.zeros(1, int), np.ones((1, 4)), np.zeros(1, bool))
    assert average_precisions(match(one, none)).tolist() == [[0.0] * 10]
    # Drawn twice: once with the object, once with the other image only.
    drawn = average_precisions(match(one, none), np.array([[1, 1], [0, 2]]))
    assert np.isnan(drawn).all(1).tolist() == [False, True]


def test_detections_become_arrays_by_category() -> None:
    first = Detections(
        np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32)
    )
    found = Found.from_detections([Detections.empty(), first], categories=[7, 44])
    assert (found.images.tolist(), found.classes.tolist(), found.scores.tolist()) == ([1], [44], [0.5])
    assert found.boxes.tolist() == [[1, 2, 3, 6]]
    truth = Truth.from_detections([Detections.empty(), first])
    assert (truth.size, truth.classes.tolist(), truth.crowd.tolist()) == (2, [1], [False])
