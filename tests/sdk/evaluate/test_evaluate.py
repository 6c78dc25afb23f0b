from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Classifier, Detector
from edgesmith.sdk.errors import DataError
from edgesmith.sdk.evaluate import EvaluationData, evaluate
from edgesmith.sdk.evaluate.detect import coco_figures

MakeBundle = Callable[..., Path]
COLORS = {"blue": (255, 0, 0), "green": (0, 255, 0), "red": (0, 0, 255)}


def write(path: Path, color: tuple[int, int, int]) -> str:
    path.parent.mkdir(exist_ok=True)
    image = np.empty((40, 40, 3), np.uint8)
    image[:] = color
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path.name


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures; one of them carries a wrong label, so top-1 is 75 %."""
    folder = tmp_path / "photos"
    rows = [("a", "blue", "0"), ("b", "green", "green"), ("c", "red", "2"), ("d", "red", "1")]
    lines = ["file,class"] + [f"{write(folder / f'{n}.png', COLORS[c])},{label}" for n, c, label in rows]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_top_1_from_a_csv(make_bundle: MakeBundle, photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(
        Classifier.load(make_bundle("classify")),
        EvaluationData.found(photos),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.metric, result.value, result.values) == ("top1", 75.0, {"top1": 75.0, "top5": 100.0})
    assert (result.images, result.backend, result.variant) == (4, "cpu", "float")
    assert seen[-1] == (4, 4)


def test_top_1_from_class_folders(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, color in COLORS.items():
        write(tmp_path / "data" / name / "x.png", color)
    assert (
        evaluate(Classifier.load(make_bundle("classify")), EvaluationData.found(tmp_path / "data")).value
        == 100.0
    )


def test_top_1_from_an_npz(make_bundle: MakeBundle, tmp_path: Path) -> None:
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[0, ..., 2] = images[1, ..., 1] = images[2, ..., 0] = 200  # RGB: blue, green, red
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 2]))
    model = Classifier.load(make_bundle("classify"))
    assert evaluate(model, EvaluationData.found(tmp_path / "x.npz")).value == 100.0
    assert evaluate(model, EvaluationData.found(tmp_path / "x.npz", limit=2)).images == 2


def test_an_unreadable_picture_is_left_out_and_told(make_bundle: MakeBundle, photos: Path) -> None:
    (photos / "a.png").write_bytes(b"broken")
    result = evaluate(Classifier.load(make_bundle("classify")), EvaluationData.found(photos))
    assert result.images == 3
    assert len(result.faults) == 1
    assert "a.png" in result.faults[0]
    for name in "bcd":
        (photos / f"{name}.png").unlink()
    with pytest.raises(DataError, match="none of the labelled pictures could be read"):
        evaluate(Classifier.load(make_bundle("classify")), EvaluationData.found(photos))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,0\n", "columns file,class"),
        ("file,class\na.png,purple\n", "line 2: 'purple' is neither a class number nor a name"),
        ("file,class\na.png,3\n", "'3' is neither"),
        ("file,class\n", "no labelled pictures"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(
    make_bundle: MakeBundle, photos: Path, text: str, message: str
) -> None:
    (photos / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate(Classifier.load(make_bundle("classify")), EvaluationData.found(photos))


def coco(folder: Path, categories: list[dict[str, Any]]) -> Path:
    """Two pictures whose true object is exactly the tiny detector's first box (red channel)."""
    write(folder / "a.png", COLORS["red"])
    write(folder / "b.png", COLORS["red"])
    box = [2 * 40 / 32, 2 * 40 / 32, 8 * 40 / 32, 8 * 40 / 32]
    annotations = [
        {"id": n, "image_id": n, "category_id": categories[0]["id"], "bbox": box, "area": 100, "iscrowd": 0}
        for n in (1, 2)
    ]
    images = [{"id": n, "file_name": f, "width": 40, "height": 40} for n, f in ((1, "a.png"), (2, "b.png"))]
    data = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(data))
    return folder


def test_map_of_a_detector(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = coco(tmp_path / "coco", [{"id": 44, "name": "ball"}, {"id": 7, "name": "other"}])
    result = evaluate(Detector.load(make_bundle()), EvaluationData.found(folder))
    assert result.metric == "mAP"
    assert result.value == pytest.approx(100.0, abs=0.1)
    assert result.values["mAP50"] == pytest.approx(100.0, abs=0.1)
    # With one picture black (score 0) half of the objects are found.
    write(folder / "b.png", (0, 0, 0))
    half = evaluate(Detector.load(make_bundle()), EvaluationData.found(folder))
    assert 45 < half.value < 55


def test_categories_fit_by_name_or_rank_or_not_at_all(make_bundle: MakeBundle, tmp_path: Path) -> None:
    detector = Detector.load(make_bundle())
    by_rank = coco(tmp_path / "rank", [{"id": 9, "name": "sphere"}])
    assert evaluate(detector, EvaluationData.found(by_rank)).value > 99
    other = coco(tmp_path / "other", [{"id": 9, "name": "sphere"}, {"id": 10, "name": "cube"}])
    with pytest.raises(DataError, match="2 categories for a model of 1 classes"):
        evaluate(detector, EvaluationData.found(other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the top level is a list"),
        ("{", "cannot be read as COCO JSON"),
        ('{"images": [], "categories": [], "annotations": []}', "lists no images"),
        (
            '{"images": [{"id": 1}], "categories": [], "annotations": []}',
            "images must be a list of objects with",
        ),
    ],
)
def test_bad_annotations_are_named(make_bundle: MakeBundle, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate(Detector.load(make_bundle()), EvaluationData.found(tmp_path))


def test_no_annotations_and_no_folder_are_told(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give its annotations file"):
        evaluate(Detector.load(make_bundle()), EvaluationData(images=tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        EvaluationData.found(tmp_path / "nothing")


def test_without_detections_every_figure_is_zero() -> None:
    assert set(coco_figures({}, [], []).values()) == {0.0}
