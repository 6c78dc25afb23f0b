"""Results: arrays first, items on demand, and the way to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgesmith.sdk.results import Classification, Classifications, Detection, Detections

NAMES = ("person", "dog", "car")


def three(**changes: Any) -> Detections:
    values: dict[str, Any] = {
        "boxes": np.array([[10, 20, 60, 80], [5, 5, 25.5, 30], [40, 50, 90, 95]], np.float32),
        "scores": np.array([0.9, 0.6, 0.25], np.float32),
        "labels": np.array([2, 0, 2], np.int32),
        "names": NAMES,
    }
    return Detections(**{**values, **changes})


def same(a: Detections, b: Detections) -> None:
    for field in ("boxes", "scores", "labels", "masks", "track_ids"):
        left, right = getattr(a, field), getattr(b, field)
        assert (left is None) == (right is None), field
        if left is not None:
            assert left.dtype == right.dtype, field
            np.testing.assert_array_equal(left, right)


def test_items_come_on_demand() -> None:
    found = three()
    assert len(found) == 3
    assert list(found)[1] == Detection((5.0, 5.0, 25.5, 30.0), float(np.float32(0.6)), 0, "person")
    assert found[-1] == found[2] == list(found)[2]
    index: Any = np.int64(0)
    assert found[index].name == "car"
    assert isinstance(found[0].label, int)
    assert isinstance(found[0].box[0], float)
    for outside in (3, -4):
        with pytest.raises(IndexError, match=f"detection {outside} of 3"):
            found[outside]


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ((1,), [1]),
        (np.array([1, 1]), [1, 1]),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        ([], []),
        (np.zeros(3, np.bool_), []),
        (slice(0, 0), []),
    ],
)
def test_a_part_keeps_everything_together(index: Any, kept: list[int]) -> None:
    masks = np.zeros((3, 4, 5), np.bool_)
    masks[1, 2] = True
    whole = three(masks=masks, track_ids=np.array([7, 8, 9], np.int32))
    part = whole[index]
    same(
        part,
        three(
            boxes=whole.boxes[kept], scores=whole.scores[kept], labels=whole.labels[kept], masks=masks[kept],
            track_ids=np.array([7, 8, 9], np.int32)[kept],
        ),
    )  # fmt: skip
    assert part.names == NAMES
    assert [d.track_id for d in part] == [7 + k for k in kept]


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(IndexError):
        three()[np.array([True, False])]


def test_filter() -> None:
    found = three()
    assert found.filter(min_score=0.6).scores.tolist() == found.scores[:2].tolist()
    assert found.filter(labels=["car"]).labels.tolist() == [2, 2]
    assert found.filter(labels=[0]).labels.tolist() == [0]
    assert found.filter(labels=[found.labels[1], "car"]).labels.tolist() == [2, 0, 2]
    assert found.filter(min_score=0.5, labels=["car", "dog"]).labels.tolist() == [2]
    assert len(found.filter(labels=[])) == 0
    same(found.filter(), found)
    with pytest.raises(ValueError, match="no class is called 'cat'; the classes are person, dog, car"):
        found.filter(labels=["cat"])
    with pytest.raises(ValueError, match="the classes are unnamed"):
        three(names=()).filter(labels=["car"])


def test_a_class_without_a_name_is_its_number() -> None:
    assert [d.name for d in three(names=("person",))] == ["2", "person", "2"]
    assert three(labels=np.array([-1, 0, 1], np.int32))[0].name == "-1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((2, 4), np.float32)}, "do not go together"),
        ({"boxes": np.zeros((3, 5), np.float32)}, "do not go together"),
        ({"labels": np.zeros(2, np.int32)}, "do not go together"),
        ({"scores": np.zeros((3, 1), np.float32)}, "do not go together"),
        ({"track_ids": np.zeros(2, np.int32)}, "track_ids has 2 entries for 3 boxes"),
        ({"masks": np.zeros((4, 2, 2), np.bool_)}, "masks has 4 entries for 3 boxes"),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        three(**changes)


@pytest.mark.parametrize("tracks", [None, np.array([4, 5, 6], np.int32)])
def test_to_json_and_back(tracks: Any) -> None:
    found = three(track_ids=tracks)
    text = json.dumps(found.to_dict())
    again = Detections.from_dict(json.loads(text), NAMES)
    same(again, found)
    assert again.names == NAMES
    unnamed = Detections.from_dict(json.loads(text))
    same(unnamed, found)
    assert [d.name for d in unnamed] == ["car", "person", "car"]
    first = json.loads(text)[0]
    assert list(first) == ["box", "score", "label", "name", *(["track_id"] if tracks is not None else [])]
    assert first["box"] == [10.0, 20.0, 60.0, 80.0]


def test_to_coco() -> None:
    items = json.loads(json.dumps(three().to_coco(42, categories=[1, 18, 3])))
    assert [i["category_id"] for i in items] == [3, 1, 3]
    assert items[1]["bbox"] == [5.0, 5.0, 20.5, 25.0]
    assert {i["image_id"] for i in items} == {42}
    assert [i["category_id"] for i in three().to_coco(1)] == [2, 0, 2]
    assert set(items[0]) == {"image_id", "category_id", "bbox", "score"}


def test_empty_is_a_value() -> None:
    none = Detections.empty(NAMES)
    assert len(none) == 0
    assert list(none) == []
    assert none.to_dict() == none.to_coco(1) == []
    same(none.filter(min_score=0.1, labels=["dog"]), none)
    same(none[:1], none)
    same(none[np.zeros(0, np.bool_)], none)
    same(none[[]], none)
    same(Detections.from_dict([], NAMES), none)
    assert none.boxes.dtype == np.float32
    picture = np.zeros((9, 9, 3), np.uint8)
    assert none.draw(picture) is not picture
    np.testing.assert_array_equal(none.draw(picture), picture)


@pytest.mark.parametrize("shape", [(120, 160), (1, 1), (2000, 40)])
def test_drawing_gives_a_changed_copy(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 90, np.uint8)
    for result in (three(), three(track_ids=np.array([1, 2, 3], np.int32)), classes()):
        drawn = result.draw(picture)
        assert drawn.shape == picture.shape
        assert drawn.dtype == np.uint8
        assert (drawn != 90).any()
        assert (picture == 90).all()


def test_a_drawn_box_is_where_the_box_is() -> None:
    picture = np.zeros((120, 160, 3), np.uint8)
    drawn = three().draw(picture)
    assert (drawn[50, 58:63] > 0).any()  # right edge of the first box, at x = 60
    assert (drawn[79:82, 30] > 0).any()  # its lower edge, at y = 80
    assert (drawn[:, 100:] == 0).all()
    mirrored = three().draw(picture[:, ::-1])  # any memory layout
    np.testing.assert_array_equal(mirrored, drawn)


def classes() -> Classifications:
    return Classifications(np.array([2, 0, 1], np.int32), np.array([0.7, 0.2, 0.1], np.float32), NAMES)


def test_classifications() -> None:
    found = classes()
    assert len(found) == 3
    assert found.top == found[0] == Classification(2, float(np.float32(0.7)), "car")
    assert [c.name for c in found] == ["car", "person", "dog"]
    assert found[-1].name == "dog"
    assert [c.label for c in found.top_k(2)] == [2, 0]
    assert len(found.top_k(9)) == 3
    with pytest.raises(IndexError):
        found[3]


def test_classifications_to_json_and_back() -> None:
    text = json.dumps(classes().to_dict())
    for again in (
        Classifications.from_dict(json.loads(text), NAMES),
        Classifications.from_dict(json.loads(text)),
    ):
        assert list(again) == list(classes())
        assert again.labels.dtype == np.int32
        assert again.scores.dtype == np.float32
    assert len(Classifications.from_dict([])) == 0


def test_classifications_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        Classifications(np.zeros(3, np.int32), np.zeros(2, np.float32))
