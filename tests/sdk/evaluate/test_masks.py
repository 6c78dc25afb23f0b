"""COCO's mask figures of a detector whose graph gives masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgesmith.sdk import Detector
from edgesmith.sdk.evaluate import EvaluationData, evaluate
from edgesmith.sdk.manifest import Batch, Nms
from edgesmith.sdk.masks import BoxMasks
from edgesmith.sdk.preprocess import Preprocess

MakeBundle = Callable[..., Path]
# One object in the left half of each picture; its mask is the whole of its box, or the left half of it.
MASKED = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 3, 32, 32] images) => (float[1, 2, 4] boxes, float[1, 2] scores, int32[1, 2] labels,
  int32[1] count, bool[1] converged, float[1, 2, 4, 4] masks)
<float[1, 2, 4] places = {{4, 8, 16, 24, 0, 0, 0, 0}}, float[1, 2] sure = {{0.9, 0}},
 int32[1, 2] kinds = {{0, 0}}, int32[1] one = {{1}}, bool[1] yes = {{1}}, float zero = {{0.0}},
 float[1, 1, 1, 4] columns = {{{columns}}}, float[1, 2, 4, 4] whole = {{{ones}}}>
{{
  mean = ReduceMean <keepdims = 0> (images)
  nothing = Mul (mean, zero)
  boxes = Add (places, nothing)
  scores = Add (sure, nothing)
  labels = Identity (kinds)
  count = Identity (one)
  converged = Identity (yes)
  masks = Mul (whole, columns)
}}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of 64 x 64 with an object whose outline is the box's."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(
            cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        )
    outline = [8.0, 16.0, 32.0, 16.0, 32.0, 48.0, 8.0, 48.0]
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in (0, 1)],
        "categories": [{"id": 5, "name": "ball"}],
        "annotations": [
            {"image_id": n, "category_id": 5, "bbox": [8, 16, 24, 32], "segmentation": [outline], "area": 768}
            for n in (0, 1)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def detector(make_bundle: MakeBundle, columns: str) -> Detector:
    text = MASKED.format(columns=columns, ones=", ".join(["1"] * 32))
    path = make_bundle(
        "detect", text=text, name="masked.edge", batch=Batch(), nms=Nms(where="graph"),
        preprocess=Preprocess(size=(32, 32), fit="stretch"),
    )  # fmt: skip
    return Detector.load(path)


@pytest.mark.parametrize(("columns", "high"), [("1, 1, 1, 1", True), ("1, 1, 0, 0", False)])
def test_masks_are_scored_beside_boxes(
    columns: str, high: bool, make_bundle: MakeBundle, photos: Path
) -> None:
    pytest.importorskip("faster_coco_eval", reason="needs edgesmith[eval]")
    with detector(make_bundle, columns) as model:
        found = model(np.zeros((64, 64, 3), np.uint8))
        assert isinstance(found.masks, BoxMasks)
        assert found.masks.shape == (1, 64, 64)
        result = evaluate(model, EvaluationData.found(photos))
    assert result.metric == "mAP"
    assert result.value == pytest.approx(100.0, abs=0.1)
    # Half of the outline overlaps by about a half.
    assert (result.values["mask_mAP"] > 80) is high
    assert result.values["mask_mAP75"] == pytest.approx(100.0 if high else 0.0, abs=0.1)


def test_without_outlines_there_are_no_figures_of_masks(make_bundle: MakeBundle, photos: Path) -> None:
    pytest.importorskip("faster_coco_eval", reason="needs edgesmith[eval]")
    path = photos / "instances.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    with detector(make_bundle, "1, 1, 1, 1") as model:
        assert "mask_mAP" not in evaluate(model, EvaluationData.found(photos)).values
