"""Float and chosen on the same pictures: the threshold that is advised, the images that differ, the time."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest

from edgesmith.converters.report import against_float
from edgesmith.converters.report.against_float import compared, latency, matched, score_histogram
from edgesmith.sdk.errors import ExportError
from edgesmith.sdk.manifest import Batch, Nms, Preprocess
from edgesmith.sdk.results import Detections

LOGITS = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 8, 8] images) => (float[N, 3] logits)
<int64[2] plane = {{2, 3}}, float[3] bias = {{{bias}}}>
{{
  mean = ReduceMean <keepdims = 0> (images, plane)
  logits = Add (mean, bias)
}}
"""
BOXES = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[N, 3, 8, 8] images) => (float[N, 3, 4] boxes, float[N, 3, 1] scores)
<float[1, 3, 4] places = {{0, 0, 2, 2, 3, 3, 5, 5, 6, 6, 8, 8}}, float zero = {{0.0}},
 float[1] gain = {{{gain}}}, int64[2] plane = {{2, 3}}, int64[3] shape = {{0, 3, 1}}>
{{
  mean = ReduceMean <keepdims = 0> (images, plane)
  column = Reshape (mean, shape)
  scores = Mul (column, gain)
  nothing = Mul (column, zero)
  boxes = Add (nothing, places)
}}
"""
PREPROCESS = Preprocess(size=(8, 8), fit="stretch", color="bgr")


def found(*rows: tuple[float, int, float]) -> Detections:
    """Boxes of 10 x 10 pixels from (left edge, class, score), best first."""
    rows_by_score = sorted(rows, key=lambda row: -row[2])
    return Detections(
        np.array([[x, 0, x + 10, 10] for x, _, _ in rows_by_score], np.float32).reshape(-1, 4),
        np.array([score for _, _, score in rows_by_score], np.float32),
        np.array([label for _, label, _ in rows_by_score], np.int32),
    )


def colour(blue: int, green: int, red: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((40, 60, 3), (blue, green, red), np.uint8)


def test_matching_takes_each_object_once_and_minds_class_and_overlap() -> None:
    truth = found((0, 0, 0.9), (100, 1, 0.8))
    got = found((1, 0, 0.9), (2, 0, 0.8), (100, 0, 0.7), (102, 1, 0.6), (101, 1, 0.5))
    hits, taken = matched(truth, got)
    assert hits.tolist() == [True, False, False, True, False]
    assert taken.tolist() == [True, True]
    assert matched(found(), got)[0].tolist() == [False] * 5
    assert matched(truth, found())[1].tolist() == [False, False]
    assert matched(truth, found((6, 0, 0.9)))[0].tolist() == [False]  # overlap 4 of 16


def test_scores_that_fell_are_answered_by_a_lower_threshold() -> None:
    # The chosen graph finds the same objects, 0.1 lower, and false ones below 0.12.
    exact = [found((0, 0, 0.5), (50, 0, 0.3), (100, 0, 0.27)) for _ in range(10)]
    chosen = [found((0, 0, 0.4), (50, 0, 0.2), (100, 0, 0.17), (200, 0, 0.12)) for _ in range(10)]
    got = score_histogram(list(zip(exact, chosen, strict=True)), 0.25, 0.05)
    assert 0.12 <= got.recommended < 0.17
    assert got.f1_there == 1.0
    assert got.f1_same == pytest.approx(0.5)  # one of three found, none wrong: 2 / (1 + 3)
    assert (got.found_exact, got.found_same, got.found_there) == (30, 10, 30)
    assert got.recommended == 0.16  # of those as good, the nearest to 0.25


def test_false_detections_are_answered_by_a_higher_threshold() -> None:
    exact = [found((0, 0, 0.6))]
    chosen = [found((0, 0, 0.6), (50, 0, 0.3), (70, 0, 0.28))]
    got = score_histogram(list(zip(exact, chosen, strict=True)), 0.25, 0.05)
    assert got.recommended == pytest.approx(0.3)
    assert got.f1_there == 1.0


def test_as_many_but_wrong_detections_are_no_reason() -> None:
    # At 0.15 the counts would be equal again, with boxes elsewhere: F1 says stay.
    exact = [found((0, 0, 0.6), (50, 0, 0.5))]
    chosen = [found((0, 0, 0.6), (300, 0, 0.2))]
    got = score_histogram(list(zip(exact, chosen, strict=True)), 0.25, 0.05)
    assert got.recommended == got.threshold == 0.25


def test_a_gain_by_chance_is_no_reason_either() -> None:
    exact = [found((0, 0, 0.6)) for _ in range(100)]
    chosen = [found((0, 0, 0.6)) for _ in range(99)] + [found((0, 0, 0.24))]
    got = score_histogram(list(zip(exact, chosen, strict=True)), 0.25, 0.05)
    assert got.f1_same == pytest.approx(198 / 199)
    assert got.recommended == 0.25


def test_histograms_count_every_score_once() -> None:
    exact, chosen = found((0, 0, 0.06), (50, 0, 0.99)), found((0, 0, 0.5), (50, 0, 0.51), (90, 0, 0.07))
    got = score_histogram([(exact, chosen)], 0.25, 0.05)
    assert (sum(got.exact), sum(got.chosen), len(got.edges)) == (2, 3, 21)
    assert (got.exact[0], got.exact[-1]) == (1, 1)
    empty = score_histogram([(found(), found())], 0.25, 0.05)
    assert (empty.recommended, empty.f1_same, sum(empty.exact)) == (0.25, 1.0, 0)


def test_the_images_whose_class_changed_come_first() -> None:
    exact = onnx.parser.parse_model(LOGITS.format(bias="0.0, 0.0, 0.0"))
    moved = onnx.parser.parse_model(LOGITS.format(bias="0.3, 0.0, 0.0"))
    frames = [(f"{n}.jpg", frame) for n, frame in enumerate([
        colour(255, 0, 0), colour(100, 130, 0), colour(0, 255, 0), colour(0, 0, 255), colour(0, 200, 255),
        colour(90, 120, 0),
    ])]  # fmt: skip
    got = compared(exact, moved, frames, task="classify", preprocess=PREPROCESS, nms=None,
                   labels=("blue", "green", "red"), batch=Batch())  # fmt: skip
    assert len(got.worst) == len(got.pictures) == 4
    assert {image.name for image in got.worst[:2]} == {"1.jpg", "5.jpg"}
    assert got.worst[0].difference.startswith("green (")
    assert "became blue" in got.worst[0].difference
    assert got.scores is None


def test_boxes_over_the_threshold_decide_which_images_differ() -> None:
    exact = onnx.parser.parse_model(BOXES.format(gain="1.0"))
    weaker = onnx.parser.parse_model(BOXES.format(gain="0.5"))
    frames = [("same", colour(255, 255, 255)), ("two", colour(255, 100, 100)), ("one", colour(100, 0, 200))]
    got = compared(exact, weaker, frames, task="detect", preprocess=PREPROCESS, nms=Nms(score=0.25),
                   labels=("ball",), batch=Batch())  # fmt: skip
    assert [(w.name, w.difference) for w in got.worst] == [
        ("two", "1 the same, 2 only in float, 0 only in the chosen graph"),
        ("one", "1 the same, 1 only in float, 0 only in the chosen graph"),
    ]
    assert got.scores is not None
    assert got.scores.found_exact == 8
    assert got.scores.f1_there == 1.0
    assert got.scores.recommended < 0.25


def test_pictures_are_small() -> None:
    exact = onnx.parser.parse_model(LOGITS.format(bias="0.0, 0.0, 0.0"))
    moved = onnx.parser.parse_model(LOGITS.format(bias="0.3, 0.0, 0.0"))
    noise = np.random.default_rng(0).integers(0, 256, (1500, 900, 3), np.uint8)
    got = compared(exact, moved, [("noise", noise)] * 6, task="classify", preprocess=PREPROCESS, nms=None,
                   labels=("blue", "green", "red"), batch=Batch())  # fmt: skip
    assert len(got.pictures) == 4
    for pair in got.pictures:
        for data in pair:
            height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]  # type: ignore[union-attr]
            assert (height, width) == (380, 228)
    # Noise is the worst that JPEG meets; all eight, as text in the page, leave room for the rest of it.
    assert sum(len(data) for pair in got.pictures for data in pair) * 4 / 3 < 500_000


def test_graphs_are_timed_in_turns() -> None:
    graphs = {
        name: onnx.parser.parse_model(LOGITS.format(bias="0.0, 0.0, 0.0")) for name in ("float", "int8")
    }
    got = latency(graphs, np.zeros((1, 3, 8, 8), np.float32))
    assert got.runs == against_float.MOST_RUNS
    assert list(got.p50_ms) == ["float", "int8"]
    assert all(0 < got.p50_ms[name] <= got.p90_ms[name] for name in graphs)
    assert got.processor


def test_a_slow_graph_is_run_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_float, "LATENCY_S", 0.0)
    graph = onnx.parser.parse_model(LOGITS.format(bias="0.0, 0.0, 0.0"))
    assert latency({"float": graph}, np.zeros((1, 3, 8, 8), np.float32)).runs == 1


def test_a_graph_that_does_not_load_is_named_as_such() -> None:
    graph = onnx.parser.parse_model(LOGITS.format(bias="0.0, 0.0, 0.0"))
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="onnxruntime does not take the graph"):
        latency({"float": graph}, np.zeros((1, 3, 8, 8), np.float32))
