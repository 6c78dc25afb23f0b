from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesmith.sdk import Classifier, Detections, Detector, load_model
from edgesmith.sdk.errors import BackendError, CameraFormatError, ConfigError
from edgesmith.sdk.manifest import Batch, Nms
from edgesmith.sdk.preprocess import Preprocess

MakeBundle = Callable[..., Path]
Frame8 = NDArray[np.uint8]


def test_a_detector_answers_in_frame_pixels(make_bundle: MakeBundle, frame: Frame8) -> None:
    detections = Detector.load(make_bundle())(frame)
    # Red 204/255 = 0.8, green 0.4, blue 0.2 (below 0.25); the boxes are twice as large in the frame.
    np.testing.assert_allclose(detections.scores, [0.8, 0.4], atol=1e-5)
    np.testing.assert_allclose(detections.boxes, [[4, 4, 20, 20], [24, 8, 56, 60]], atol=1e-4)
    assert [d.name for d in detections] == ["ball", "ball"]


def test_thresholds_of_a_call_replace_the_bundles(make_bundle: MakeBundle, frame: Frame8) -> None:
    detector = Detector.load(make_bundle())
    assert len(detector(frame, score=0.5)) == 1
    # The second and the third box overlap by 0.79: they are one object unless iou says otherwise.
    assert len(detector(frame, score=0.1)) == 2
    assert len(detector(frame, score=0.1, iou=0.9)) == 3
    with pytest.raises(ConfigError, match=r"score is 1\.5"):
        detector(frame, score=1.5)


def test_nothing_found_is_an_empty_value(make_bundle: MakeBundle) -> None:
    found = Detector.load(make_bundle())(np.zeros((10, 20, 3), np.uint8))
    assert isinstance(found, Detections)
    assert len(found) == 0
    assert list(found) == []


def test_a_classifier_sorts_by_score(make_bundle: MakeBundle, frame: Frame8) -> None:
    classes = Classifier.load(make_bundle("classify"))(frame)
    assert [c.name for c in classes] == ["red", "green", "blue"]
    logits = np.array([0.8, 0.4, 0.2])
    np.testing.assert_allclose(classes.scores, np.exp(logits) / np.exp(logits).sum(), atol=1e-5)
    assert classes.top.name == "red"


@pytest.mark.parametrize("count", [0, 1, 3, 8, 11])
@pytest.mark.parametrize(
    "batch",
    [Batch(min=1, opt=4, max=8), Batch(min=2, opt=4, max=4), Batch(), Batch(min=3, opt=3, max=3)],
    ids=["dynamic", "at least two", "one", "three"],
)
def test_a_list_gives_the_same_as_one_by_one(make_bundle: MakeBundle, batch: Batch, count: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(5, 90)), int(rng.integers(5, 90))) for _ in range(count)]
    frames = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    detector = Detector.load(make_bundle(batch=batch))
    together = detector(frames, score=0.0)
    alone = [detector(f, score=0.0) for f in frames]
    assert len(together) == count
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)


def test_frames_of_any_size_are_batched_by_size(make_bundle: MakeBundle) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[N, 3, H, W] images) => (float[N, 3] logits)
    <int64[2] plane = {2, 3}> { logits = ReduceMean <keepdims = 0> (images, plane) }
    """
    path = make_bundle("classify", text=text, preprocess=Preprocess(size=None, fit="none"))
    model = Classifier.load(path)
    sizes = [(8, 8), (8, 8), (9, 7), (8, 8)]
    frames = [np.full((*size, 3), 20 * n, np.uint8) for n, size in enumerate(sizes)]
    assert [len(geometries) for _, geometries in model.raw(frames)] == [2, 1, 1]
    assert len(model(frames)) == 4


def test_a_frame_of_the_wrong_kind_is_named(make_bundle: MakeBundle) -> None:
    detector = Detector.load(make_bundle())
    with pytest.raises(CameraFormatError, match=r"float32 \(4, 4, 3\)"):
        detector(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(CameraFormatError, match=r"uint8 \(4, 4\)"):
        detector(np.zeros((4, 4), np.uint8))


def test_a_bundle_of_another_task_names_the_right_class(make_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match=r"Classifier\.load"):
        Detector.load(make_bundle("classify"))
    assert isinstance(load_model(make_bundle("classify")), Classifier)


def test_an_unknown_variant_or_backend_lists_what_there_is(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    with pytest.raises(ConfigError, match="'int8'; the bundle has float"):
        Detector.load(path, variant="int8")
    with pytest.raises(ConfigError, match="there are auto, tensorrt, cuda, cpu"):
        Detector.load(path, backend="tpu")


def test_a_second_thread_is_refused_and_a_clone_is_not(make_bundle: MakeBundle, frame: Frame8) -> None:
    detector = Detector.load(make_bundle())
    inside, leave = threading.Event(), threading.Event()
    real = detector.backend.run

    def slow(images: Any) -> Any:
        inside.set()
        leave.wait(10)
        return real(images)

    detector.backend.run = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=detector, args=(frame,))
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(BackendError, match="clone"):
            detector(frame)
        assert len(detector.clone()(frame)) == 2
    finally:
        leave.set()
        thread.join()
    detector.backend.run = real  # type: ignore[method-assign]
    assert len(detector(frame)) == 2


def test_an_error_in_a_call_leaves_the_model_usable(make_bundle: MakeBundle, frame: Frame8) -> None:
    detector = Detector.load(make_bundle())
    with pytest.raises(CameraFormatError):
        detector([frame, np.zeros((4, 4), np.uint8)])
    assert len(detector(frame)) == 2


def test_a_closed_model_says_so(make_bundle: MakeBundle, frame: Frame8) -> None:
    with Detector.load(make_bundle()) as detector:
        assert len(detector(frame)) == 2
    with pytest.raises(BackendError, match="closed"):
        detector(frame)


def test_timings_and_repr_are_there_to_look_at(make_bundle: MakeBundle, frame: Frame8) -> None:
    detector = Detector.load(make_bundle())
    detector(frame)
    assert set(detector.timings) == {"preprocess", "infer", "postprocess"}
    assert all(ns > 0 for ns in detector.timings.values())
    assert "cpu: onnxruntime" in repr(detector)
    # In the order they were tried, each with the reason.
    tried = [name for name, why in detector.passed_over if why]
    assert tried == ["tensorrt", "cuda"][: len(tried)]
    assert all(f"; not {name}: {why}" in repr(detector) for name, why in detector.passed_over)
    assert repr(detector.clone()) == repr(detector)
    assert "; not " not in repr(Detector.load(detector.bundle.path, backend="cpu"))


GRAPH_NMS = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 32, 32] images) =>
  (float[N, 2, 4] boxes, float[N, 2] scores, int64[N, 2] labels, int64[N] count, bool[N] converged,
   float[N, 3, 4] candidate_boxes, float[N, 3] candidate_scores, int64[N, 3] candidate_labels)
<float[1, 2, 4] kept = {2, 2, 10, 10, 12, 4, 28, 30},
 float[1, 3, 4] all = {2, 2, 10, 10, 12, 4, 28, 30, 13, 5, 29, 31},
 float[1, 2] good = {0.9, 0.6}, float[1, 3] every = {0.9, 0.6, 0.5}, float zero = {0.0}, float half = {0.5},
 int64[1] two = {2}, int64[1, 2] kinds2 = {0, 0}, int64[1, 3] kinds3 = {0, 0, 0}, int64[1] first = {1},
 int64[3] axes = {1, 2, 3}>
{
  mean = ReduceMean <keepdims = 0> (images, axes)
  converged = Greater (mean, half)
  none = Mul (mean, zero)
  column = Unsqueeze (none, first)
  whole = Cast <to = 7> (column)
  count1 = Cast <to = 7> (none)
  count = Add (count1, two)
  scores = Add (column, good)
  candidate_scores = Add (column, every)
  labels = Add (whole, kinds2)
  candidate_labels = Add (whole, kinds3)
  cube = Unsqueeze (column, two)
  boxes = Add (cube, kept)
  candidate_boxes = Add (cube, all)
}
"""


@pytest.mark.parametrize("bright", [True, False], ids=["converged", "fallback on the host"])
def test_suppression_in_the_graph(make_bundle: MakeBundle, bright: bool) -> None:
    nms = Nms(where="graph", max_detections=2, candidates=3)
    detector = Detector.load(make_bundle(text=GRAPH_NMS, nms=nms))
    image = np.full((32, 32, 3), 255 if bright else 0, np.uint8)
    found = detector(image)
    # Either way the same: the third candidate goes, it overlaps the second.
    np.testing.assert_allclose(found.scores, [0.9, 0.6], atol=1e-6)
    np.testing.assert_allclose(found.boxes, [[2, 2, 10, 10], [12, 4, 28, 30]], atol=1e-4)
    assert len(detector(image, score=0.7)) == 1
    with pytest.raises(ConfigError, match=r"at iou 0\.65"):
        detector(image, iou=0.5)
    with pytest.raises(ConfigError, match=r"from score 0\.001"):
        detector(image, score=0.0)


def test_the_face_needs_neither_torch_nor_onnx_nor_an_engine() -> None:
    heavy = {"av", "click", "onnx", "onnx_ir", "onnxruntime", "rich", "torch"}
    script = f"import sys, edgesmith.sdk; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
