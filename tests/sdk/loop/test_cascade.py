from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk import Classifier, Detector
from edgesmith.sdk.errors import ConfigError
from edgesmith.sdk.loop.capture_loop import CaptureLoop
from edgesmith.sdk.loop.cascade import Cascade, ClassifiedDetections
from edgesmith.sdk.loop.track import Tracker
from edgesmith.sdk.sinks.jsonl import line_of

MakeBundle = Callable[..., Path]
Frame8 = NDArray[np.uint8]


@pytest.fixture
def models(make_bundle: MakeBundle) -> tuple[Detector, Classifier]:
    detector = Detector.load(make_bundle(name="detector.edge"), backend="cpu")
    return detector, Classifier.load(make_bundle("classify", name="classifier.edge"), backend="cpu")


@pytest.fixture
def painted() -> Frame8:
    """64 x 64: the detector's first box, (4, 4, 20, 20), is red, the second, (24, 8, 56, 60), green."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:] = (0, 110, 150)
    image[4:20, 4:20] = (0, 0, 255)
    image[8:60, 24:56] = (0, 255, 0)
    return image


def test_each_box_has_the_classes_of_its_crop(models: tuple[Detector, Classifier], painted: Frame8) -> None:
    with Cascade(*models) as cascade:
        found = cascade(painted)
        plain = models[0](painted)
        np.testing.assert_array_equal(found.boxes, plain.boxes)
        by_box = {tuple(map(round, d.box)): c.top.name for d, c in zip(found, found.classes, strict=True)}
        assert by_box == {(4, 4, 20, 20): "red", (24, 8, 56, 60): "green"}
        # The scores are the classifier's own for that crop.
        alone = models[1](painted[4:20, 4:20])
        index = [tuple(map(round, d.box)) for d in found].index((4, 4, 20, 20))
        np.testing.assert_allclose(found.classes[index].scores, alone.scores, atol=1e-6)
        assert set(cascade.timings) == {"preprocess", "infer", "postprocess", "classify"}


def test_crops_of_all_frames_share_the_classifiers_runs(
    models: tuple[Detector, Classifier], painted: Frame8
) -> None:
    detector, classifier = models
    runs: list[int] = []
    real = classifier.backend.run

    def counted(images: NDArray[Any]) -> Any:
        runs.append(len(images))
        return real(images)

    classifier.backend.run = counted  # type: ignore[method-assign]
    with Cascade(detector, classifier) as cascade:
        answers = cascade([painted] * 5)
        assert [len(answer) for answer in answers] == [2] * 5
        assert runs == [8, 2]  # ten crops, eight at once at most
        assert cascade([]) == []
        assert len(cascade(np.zeros((64, 64, 3), np.uint8))) == 0
        assert runs == [8, 2]


def test_boxes_that_are_not_wanted_have_no_classes(
    models: tuple[Detector, Classifier], painted: Frame8
) -> None:
    with Cascade(*models, smallest=20) as cascade:
        found = cascade(painted)
        assert sorted(len(c) for c in found.classes) == [0, 3]
        found.draw(painted)
        assert [len(item["classes"]) for item in found.to_dict()] == [len(c) for c in found.classes]
    with pytest.raises(ConfigError, match="no class is called 'cat'; the detector has ball"):
        Cascade(*models, labels=["cat"])
    with pytest.raises(ConfigError, match="margin is -1"):
        Cascade(*models, margin=-1)
    with pytest.raises(ConfigError, match="score is 7"):
        Cascade(*models, score=7)


def test_a_margin_shows_the_classifier_more(models: tuple[Detector, Classifier], painted: Frame8) -> None:
    seen: list[tuple[int, ...]] = []
    real = models[1]._prepare

    def watched(frames: Any) -> Any:
        seen.extend(frame.shape for frame in frames)
        return real(frames)

    models[1]._prepare = watched  # type: ignore[method-assign]
    with Cascade(*models, margin=0.25) as cascade:
        found = cascade(painted)
    shapes = dict(zip([tuple(map(round, d.box)) for d in found], seen, strict=True))
    # 16 + 2 x 4 from 4 on: cut at the picture's border at 0. 52 + 2 x 13: cut on both sides.
    assert shapes == {(4, 4, 20, 20): (24, 24, 3), (24, 8, 56, 60): (64, 48, 3)}


def test_parts_keep_their_classes(models: tuple[Detector, Classifier], painted: Frame8) -> None:
    with Cascade(*models) as cascade:
        found = cascade(painted)
    tops = [c.top.name for c in found.classes]
    assert [c.top.name for c in found[::-1].classes] == tops[::-1]
    assert [c.top.name for c in found[[1]].classes] == tops[1:]
    assert found[0].box == tuple(found.boxes[0].tolist())
    for least, count in ((2.0, 0), (0.1, 2)):
        part = found.filter(min_score=least)
        assert isinstance(part, ClassifiedDetections)
        assert len(part.classes) == count
    tracked = Tracker().update(found)
    assert isinstance(tracked, ClassifiedDetections)
    assert tracked.track_ids is not None
    again = ClassifiedDetections.from_dict(found.to_dict())
    assert [c.top.name for c in again.classes] == tops
    with pytest.raises(ValueError, match="classes has 0 entries for 2 boxes"):
        ClassifiedDetections(found.boxes, found.scores, found.labels)


def test_a_cascade_in_a_loop(models: tuple[Detector, Classifier], painted: Frame8, camera: Any) -> None:
    class Painted(camera):  # type: ignore[misc]
        def frames(self) -> Any:
            for frame in super().frames():
                object.__setattr__(frame, "image", painted)
                yield frame

    with Cascade(*models) as cascade:
        expected = cascade(painted).to_dict()
        with CaptureLoop(Painted(count=12), cascade, policy="every", track=True) as loop:
            results = list(loop)
    assert len(results) == 12
    for result in results:
        line = line_of(result)
        for item in line["detections"]:
            assert item.pop("track_id") in (1, 2)
        assert _close(line["detections"], expected)


def _close(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return all(
        x["name"] == y["name"]
        and np.allclose(x["box"], y["box"])
        and [c["name"] for c in x["classes"]] == [c["name"] for c in y["classes"]]
        and np.allclose([c["score"] for c in x["classes"]], [c["score"] for c in y["classes"]])
        for x, y in zip(a, b, strict=True)
    )
