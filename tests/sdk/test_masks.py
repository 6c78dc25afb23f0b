"""Masks in box frames, pasted as the libraries that train them do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk.decode import canonical
from edgesmith.sdk.manifest import Nms, Preprocess
from edgesmith.sdk.masks import BoxMasks
from edgesmith.sdk.preprocess import Geometry, geometry_of
from edgesmith.sdk.results import Detections

Floats = NDArray[np.float32]
SIZE = (90, 120)
NMS = Nms(where="graph", score=0.25, evaluation_score=0.05, max_detections=4)


def blobs(count: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Smooth probabilities ``(n, 28, 28)`` and boxes, some of which reach beyond the image."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:28, :28] - 13.5
    wide, tall = random.uniform(4, 16, (2, count, 1, 1))
    probabilities = 1 / (1 + np.exp(3 * ((x / wide) ** 2 + (y / tall) ** 2 - 1)))
    corner = random.uniform(-15, 80, (count, 2))  # each shows in the image
    boxes = np.concatenate([corner, corner + random.uniform(20, 70, (count, 2))], 1)
    return probabilities.astype(np.float32), boxes.astype(np.float32)


def test_they_are_torchvisions() -> None:
    torch = pytest.importorskip("torch", reason="needs edgesmith[dev]")
    heads = pytest.importorskip("torchvision.models.detection.roi_heads", reason="needs edgesmith[dev]")
    probabilities, boxes = blobs(40)
    pasted = heads.paste_masks_in_image(
        torch.from_numpy(probabilities)[:, None], torch.from_numpy(boxes), SIZE
    )
    expected = (pasted[:, 0] > 0.5).numpy()
    found = np.asarray(BoxMasks(probabilities, boxes, SIZE))
    assert found.shape == expected.shape
    assert found.any((1, 2)).sum() > 20
    # A value on the threshold may fall either way.
    assert (found != expected).sum() <= 2


def test_they_are_made_one_by_one_and_in_parts() -> None:
    masks = BoxMasks(*blobs(5), SIZE)
    whole = np.asarray(masks)
    assert (len(masks), masks.shape) == (5, (5, *SIZE))
    assert masks.dtype == whole.dtype == np.bool_
    np.testing.assert_array_equal(masks[3], whole[3])
    np.testing.assert_array_equal(np.stack(list(masks)), whole)
    np.testing.assert_array_equal(np.asarray(masks[1:4]), whole[1:4])
    np.testing.assert_array_equal(np.asarray(masks[np.array([4, 0])]), whole[[4, 0]])
    assert np.asarray(masks, np.uint8).dtype == np.uint8
    assert np.asarray(BoxMasks(*blobs(0), SIZE)).shape == (0, *SIZE)


def outputs(*, settled: bool = True) -> dict[str, NDArray[np.generic]]:
    """What a graph gives for an image: a and b overlap, and the steps may not have seen that."""
    boxes = np.array([[10, 10, 30, 30], [11, 10, 31, 30], [40, 8, 60, 40], [0, 0, 0, 0]], np.float32)
    masks = np.stack([np.full((28, 28), value, np.float32) for value in (0.9, 0.8, 0.7, 0.0)])
    return {
        "boxes": boxes[None], "scores": np.array([[0.9, 0.8, 0.3, 0]], np.float32),
        "labels": np.array([[1, 1, 0, 0]], np.int32), "count": np.array([3], np.int32),
        "converged": np.array([settled]), "masks": masks[None],
    }  # fmt: skip


@pytest.mark.parametrize("settled", [True, False])
def test_the_rows_of_the_graph_keep_their_masks(settled: bool) -> None:
    found = canonical.detections(outputs(settled=settled), 0, Geometry(64, 64, 64, 64), NMS, ("a", "b"))
    assert isinstance(found.masks, BoxMasks)
    if settled:
        assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    else:  # suppressed here, among what the graph kept
        assert found.scores.tolist() == pytest.approx([0.9, 0.3])
        assert found.labels.tolist() == [1, 0]
    kept = [0.9, 0.8, 0.7] if settled else [0.9, 0.7]
    assert [float(mask.max()) for mask in found.masks.probabilities] == pytest.approx(kept)
    sure = found.filter(min_score=0.5)
    assert len(sure) == len(sure.masks if sure.masks is not None else ()) == len(kept) - 1


def test_masks_follow_the_letterbox_and_are_not_squeezed_at_the_border() -> None:
    geometry = geometry_of(Preprocess(size=(64, 64)), 32, 64)  # 16 rows of padding above and below
    values = outputs()
    values["boxes"] = np.array([[[20, 8, 40, 32], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]], np.float32)
    values["count"] = np.array([1], np.int32)
    values["masks"][0, 0, :14] = 0  # only the lower half of the box, which is inside of the frame
    found = canonical.detections(values, 0, geometry, NMS, ())
    assert found.boxes.tolist() == [[20.0, 0.0, 40.0, 16.0]]  # 8 - 16 is cut
    assert found.masks is not None
    rows = np.flatnonzero(found.masks[0].any(1))
    assert (rows.min(), rows.max()) == pytest.approx((4, 16), abs=1)


def test_json_and_coco_hold_the_masks_and_drawing_shows_them() -> None:
    probabilities, boxes = blobs(3, seed=4)
    found = Detections(
        boxes.clip(0, 80), np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0], np.int32), ("a", "b"),
        BoxMasks(probabilities, boxes, SIZE),
    )  # fmt: skip
    again = Detections.from_dict(found.to_dict())
    assert found.masks is not None
    assert again.masks is not None
    np.testing.assert_array_equal(np.asarray(again.masks), np.asarray(found.masks))
    assert {item["segmentation"]["size"] == [90, 120] for item in found.to_coco(7)} == {True}
    black = np.zeros((*SIZE, 3), np.uint8)
    inside: NDArray[np.bool_] = np.asarray(found.masks).max(0)
    tinted = found.draw(black).max(2) > 0
    assert np.mean(tinted[inside]) > 0.95  # but for black letters
    assert not black.any()
