"""Class maps and plain tensors: what they tell, how they are drawn, and the way to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.decode import canonical
from edgesmith.sdk.manifest import Preprocess
from edgesmith.sdk.maps import Region, Segmentation, Tensors
from edgesmith.sdk.preprocess import Geometry, geometry_of, prepared

NAMES = ("background", "person", "dog")


def halves() -> Segmentation:
    """The left half background, the upper right dog, the lower right person but for a row."""
    class_map = np.zeros((10, 8), np.uint8)
    class_map[:4, 4:] = 2
    class_map[5:, 4:] = 1
    return Segmentation(class_map, NAMES)


def test_regions_are_the_classes_in_view_without_the_background() -> None:
    found = halves()
    assert list(found) == [Region(1, "person", 20, 0.25), Region(2, "dog", 16, 0.2)]
    assert len(found) == 2
    assert [region.name for region in found.regions] == ["background", "person", "dog"]
    assert sum(region.share for region in found.regions) == pytest.approx(1.0)
    np.testing.assert_array_equal(found.mask("dog"), found.class_map == 2)
    np.testing.assert_array_equal(found.mask(1), found.class_map == 1)
    with pytest.raises(ValueError, match="no class is called 'cat'; the classes are background, person, dog"):
        found.mask("cat")


def test_which_class_is_the_background() -> None:
    class_map = np.array([[0, 1], [1, 2]], np.uint8)
    assert [r.label for r in Segmentation(class_map)] == [1, 2]  # no names: class 0
    assert [r.label for r in Segmentation(class_map, ("road", "car", "sky"))] == [1, 0, 2]  # none is
    assert [r.name for r in Segmentation(class_map, ("a", "__background__", "c"))] == ["a", "c"]


def test_json_and_back() -> None:
    found = halves()
    items = json.loads(json.dumps(found.to_dict()))
    assert [(i["label"], i["name"], i["share"]) for i in items] == [
        (0, "background", 0.55), (1, "person", 0.25), (2, "dog", 0.2)
    ]  # fmt: skip
    again = Segmentation.from_dict(items)
    np.testing.assert_array_equal(again.class_map, found.class_map)
    assert again.names == NAMES
    wide = Segmentation.from_dict(Segmentation(np.full((2, 2), 300, np.uint16)).to_dict())
    assert wide.class_map.dtype == np.uint16
    assert wide.class_map.max() == 300
    with pytest.raises(ValueError, match="no size"):
        Segmentation.from_dict([])


def test_only_the_foreground_is_tinted() -> None:
    image = np.full((100, 80, 3), 90, np.uint8)
    drawn = Segmentation(np.repeat(np.repeat(halves().class_map, 10, 0), 10, 1), NAMES).draw(image)
    assert (image == 90).all()
    assert (drawn[60:, 45:] != 90).any(2).all()
    assert (drawn[60:, :35] == 90).all()
    small = halves().draw(image)  # a coarser map is laid over the whole picture
    assert (small[60:, 45:] == drawn[60:, 45:]).all()


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2), np.float32)])
def test_a_map_of_another_kind_is_refused(bad: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        Segmentation(bad)


@pytest.mark.parametrize("classes", [1, 2, 3, 21])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_the_largest_logit_at_the_images_size_wins(classes: int, fit: Any) -> None:
    random = np.random.default_rng(classes)
    coarse = random.normal(0, 1, (classes, 6, 8)).astype(np.float32)
    logits = np.stack([cv2.resize(one, (64, 48), interpolation=cv2.INTER_CUBIC) for one in coarse])
    geometry = geometry_of(Preprocess(size=(48, 64), fit=fit), 90, 70)
    found = canonical.segmentation({"logits": logits[None]}, 0, geometry, ())
    maps = np.stack([geometry.map_to_image(one) for one in logits])
    expected = (maps[0] > 0) if classes == 1 else maps.argmax(0)
    assert found.class_map.shape == (90, 70)
    assert (found.class_map != expected).mean() < 1e-3  # a difference of two maps is rounded otherwise
    own = canonical.segmentation({"logits": logits[None]}, 0, Geometry(48, 64, 48, 64), ())
    np.testing.assert_array_equal(own.class_map, canonical.best_classes(logits))


def test_a_single_map_is_the_object() -> None:
    logits = np.array([[[[-1, 2], [0, 3]]]], np.float32)
    found = canonical.segmentation({"logits": logits}, 0, Geometry(2, 2, 2, 2), ("crack",))
    assert found.class_map.tolist() == [[0, 1], [0, 1]]
    assert found.names == ("background", "crack")
    assert [region.name for region in found] == ["crack"]


def test_tensors_are_a_mapping_that_survives_json() -> None:
    arrays: dict[str, NDArray[Any]] = {
        "depth": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "half": np.array([0.5, -2], np.float16),
        "ids": np.array([[3, -1]], np.int64), "none": np.zeros((0, 4), np.uint8), "one": np.array(7.0),
    }  # fmt: skip
    found = Tensors(arrays)
    assert (list(found), len(found), "ids" in found) == (list(arrays), 5, True)
    assert found == found
    assert found != Tensors(arrays)
    assert len({found, Tensors(arrays)}) == 2
    with pytest.raises(KeyError, match="no output is called 'x'; there are depth, half"):
        found["x"]
    again = Tensors.from_dict(json.loads(json.dumps(found.to_dict())))
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype
    told = json.loads(json.dumps(found.summary()))
    assert told[0] == {
        "name": "depth", "dtype": "float32", "shape": [1, 2, 3], "least": 0.0, "largest": 5.0, "mean": 2.5
    }  # fmt: skip
    assert told[3]["least"] is None


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_an_output_in_the_inputs_units_is_a_picture(color: Any) -> None:
    preprocess = Preprocess(size=(20, 30), fit="none", color=color, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    tensor, _ = prepared(preprocess, image)
    found = Tensors({"out": tensor[0]}, preprocess)
    np.testing.assert_array_equal(found.draw(image), image)
    wild = Tensors({"out": 99 * tensor[0]}, preprocess).draw(image)
    assert {0, 255} >= set(np.unique(wild[image < 50])) - set(range(256)) - {0, 255}


def test_a_lumas_picture_keeps_the_colours() -> None:
    preprocess = Preprocess(size=None, fit="none", color="y")
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 3), np.uint8).repeat(40, 0).repeat(30, 1)
    tensor, _ = prepared(preprocess, image)
    drawn = Tensors({"out": tensor[0].repeat(2, 1).repeat(2, 2)}, preprocess).draw(image)
    assert drawn.shape == (80, 60, 3)
    assert np.abs(drawn.astype(int) - image[0, 0]).max() <= 2


def test_other_tensors_are_named_on_the_picture() -> None:
    image = np.zeros((60, 200, 3), np.uint8)
    preprocess = Preprocess(size=(60, 200), fit="none")
    for arrays in (
        {"embedding": np.zeros(128, np.float32)},
        {"a": np.zeros((3, 2, 2)), "b": np.zeros((5, 9, 9))},
    ):
        drawn = Tensors(arrays, preprocess).draw(image)
        assert drawn.shape == image.shape
        assert drawn.any()
