"""The suppression in the graph equals the one on the host, and says when it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from edgesmith.converters.adapters import adapt
from edgesmith.converters.adapters.nms_graph import NMS_OUTPUTS, STEPS, GraphNms
from edgesmith.sdk.decode.nms import greedy, suppress
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Nms

Floats = NDArray[np.float32]
Run = Callable[..., dict[str, NDArray[Any]]]
GRAPH = Nms(where="graph", candidates=300, max_detections=100)
REFUSED = {"NonZero", "NonMaxSuppression", "Loop", "If", "Scan", "Shape", "Range", "ScatterND", "Expand"}

# In a process of its own: the library keeps the first logger of a process for good.
COMPILE = """
import sys
import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            sys.stderr.write(message + chr(10))

log = Log()
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
with open(sys.argv[1], "rb") as file:
    if not parser.parse(file.read()):
        sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
for index in range(network.num_inputs):
    tensor = network.get_input(index)
    rest = tuple(tensor.shape)[1:]
    profile.set_shape(tensor.name, (1, *rest), (2, *rest), (4, *rest))
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
sys.exit("no plan") if plan is None else None
"""


@pytest.fixture(scope="module")
def graph(exported: Any, session: Any) -> Callable[..., tuple[onnx.ModelProto, Run]]:
    """``graph(nms, rows, classes)``: the suppression alone, exported, and a function that runs it."""
    made: dict[tuple[bytes, int, int], tuple[onnx.ModelProto, Run]] = {}

    def make(nms: Nms, rows: int, classes: int) -> tuple[onnx.ModelProto, Run]:
        key = (msgspec.json.encode(nms), rows, classes)
        if key not in made:
            inputs = (torch.rand(1, rows, 4), torch.rand(1, rows, classes))
            model = exported(GraphNms(nms, rows=rows, classes=classes), inputs, NMS_OUTPUTS)
            made[key] = model, session(model)
        return made[key]

    return make


def check(out: dict[str, NDArray[Any]], boxes: Floats, scores: Floats, nms: Nms) -> list[int]:
    """Compare each image with the host where settled; the numbers of those that are not come back."""
    unsettled = []
    for i in range(len(boxes)):
        wanted = suppress(boxes[i], scores[i], nms, score=nms.evaluation_score)
        valid = out["candidate_scores"][i] > 0
        assert np.all(np.diff(valid.astype(int)) <= 0)  # the padding stands at the end
        near, found, labels = (out[f"candidate_{name}"][i][valid] for name in ("boxes", "scores", "labels"))
        assert not out["candidate_boxes"][i][~valid].any()
        assert not out["candidate_labels"][i][~valid].any()
        keep = greedy(near, labels, nms.iou, nms.max_detections)
        for got, host in zip((near[keep], found[keep], labels[keep]), wanted, strict=True):
            assert np.array_equal(got, np.asarray(host))
        if not out["converged"][i]:
            unsettled.append(i)
            continue
        count = int(out["count"][i])
        assert count == len(wanted[0])
        for name, host in zip(("boxes", "scores", "labels"), wanted, strict=True):
            assert np.array_equal(out[name][i][:count], np.asarray(host))
            assert not out[name][i][count:].any()
    return unsettled


def crowd(seed: int, images: int, rows: int, classes: int, *, grain: float = 0.0) -> tuple[Floats, Floats]:
    """Boxes that pile up around a few centres; ``grain`` rounds the scores, so that many are equal."""
    random = np.random.default_rng(seed)
    middles = random.uniform(40, 380, (images, 12, 2))
    centre = middles[np.arange(images)[:, None], random.integers(0, 12, (images, rows))]
    centre = centre + random.normal(0, 6, centre.shape)
    half = random.uniform(15, 40, (images, rows, 2))
    boxes = np.concatenate((centre - half, centre + half), 2).astype(np.float32)
    scores = random.beta(0.4, 3, (images, rows, classes)).astype(np.float32)
    if grain:
        scores = (np.round(scores / grain) * grain).astype(np.float32)
    return boxes, scores


def chain(rows: int, shift: float = 6.0) -> tuple[Floats, Floats]:
    """Boxes in a row, best first, each overlapping only its neighbours by more than 0.65."""
    left = np.arange(rows) * shift
    boxes = np.stack((left, np.zeros(rows), left + 40, np.full(rows, 40.0)), 1)
    scores = np.linspace(0.9, 0.1, rows)[:, None]
    return boxes[None].astype(np.float32), scores[None].astype(np.float32)


@pytest.mark.parametrize("classes", ["best", "all"])
@pytest.mark.parametrize("grain", [0.0, 1 / 16])
def test_crowds_equal_the_host(classes: Any, grain: float, graph: Any) -> None:
    nms = msgspec.structs.replace(GRAPH, classes=classes, iou=0.5)
    _, run = graph(nms, 700, 3)
    settled = 0
    for seed in range(4):
        boxes, scores = crowd(seed, 5, 700, 3, grain=grain)
        settled += 5 - len(check(run(boxes, scores), boxes, scores, nms))
    assert settled >= 18


@pytest.mark.assets
@pytest.mark.parametrize("classes", ["best", "all"])
def test_real_images_equal_the_host(
    classes: Any, graph: Any, foreign: Any, pictures: Callable[[int], Any]
) -> None:
    module, network = foreign("yolox", "yolox_nano")
    nms = msgspec.structs.replace(GRAPH, classes=classes)
    images = np.concatenate([module.prepare(picture)[0] for picture in pictures(10)])
    adapted = adapt(
        network, "yolox", example=torch.from_numpy(images[:1]), task="detect", options={}, nms=None,
        names=80, python_path=[],
    )  # fmt: skip
    with torch.no_grad():
        boxes, scores = (t.numpy() for t in adapted.module(torch.from_numpy(images)))
    _, run = graph(nms, 3549, 80)
    out = run(boxes, scores)
    assert check(out, boxes, scores, nms) == []
    assert out["count"].min() > 5


def test_a_long_chain_is_reported_and_the_host_can_finish_it(graph: Any) -> None:
    nms = msgspec.structs.replace(GRAPH, max_detections=100)
    _, run = graph(nms, 120, 1)
    long, scores = chain(120)
    short = long.copy()
    short[0, STEPS - 2 :] += np.arange(120 - STEPS + 2, dtype=np.float32)[:, None] * 100 + 1000
    boxes = np.concatenate((long, short))
    scores = np.concatenate((scores, scores))
    out = run(boxes, scores)
    assert out["converged"].tolist() == [False, True]
    assert check(out, boxes, scores, nms) == [0]
    wanted = suppress(long[0], scores[0], nms, score=nms.evaluation_score)
    assert len(wanted[0]) == 60  # every other one
    assert out["count"][0] != 60  # so the host is needed


def test_fewer_rows_than_detections_are_padded(graph: Any) -> None:
    nms = msgspec.structs.replace(GRAPH, max_detections=50, iou=0.9, evaluation_score=0.05)
    _, run = graph(nms, 20, 2)
    boxes, scores = crowd(3, 2, 20, 2)
    out = run(boxes, scores)
    assert out["boxes"].shape == (2, 50, 4)
    assert out["candidate_scores"].shape == (2, 20)
    assert check(out, boxes, scores, nms) == []
    assert 0 < out["count"].min() < 20


def test_nothing_found_and_the_border_of_the_threshold(graph: Any) -> None:
    nms = msgspec.structs.replace(GRAPH, max_detections=50, iou=0.9, evaluation_score=0.05)
    _, run = graph(nms, 20, 2)
    boxes, _ = crowd(1, 2, 20, 2)
    scores = np.zeros((2, 20, 2), np.float32)
    scores[1] = 0.05  # not above it
    out = run(boxes, scores)
    assert out["count"].tolist() == [0, 0]
    assert out["converged"].all()
    assert not any(out[name].any() for name in NMS_OUTPUTS if name != "converged")


def test_boxes_that_are_not_finite_spoil_nothing_else(graph: Any) -> None:
    nms = msgspec.structs.replace(GRAPH, max_detections=50, iou=0.9, evaluation_score=0.05)
    _, run = graph(nms, 20, 2)
    boxes, scores = crowd(1, 1, 20, 2)
    scores[0, 4:8] = np.nan
    boxes[0, 4:8] = np.nan
    boxes[0, 8] = np.inf
    scores[0, 8] = 0
    out = run(boxes, scores)
    kept = [i for i in range(20) if i not in range(4, 9)]
    wanted = suppress(boxes[0, kept], scores[0, kept], nms, score=nms.evaluation_score)
    assert np.array_equal(out["boxes"][0, : int(out["count"][0])], wanted[0])


def test_types_and_shapes(graph: Any) -> None:
    model, run = graph(msgspec.structs.replace(GRAPH, iou=0.5), 700, 3)
    boxes, scores = crowd(0, 3, 700, 3)
    out = run(boxes, scores)
    assert [output.name for output in model.graph.output] == list(NMS_OUTPUTS)
    assert {name: (value.dtype.name, value.shape) for name, value in out.items()} == {
        "boxes": ("float32", (3, 100, 4)),
        "scores": ("float32", (3, 100)),
        "labels": ("int32", (3, 100)),
        "count": ("int32", (3,)),
        "converged": ("bool", (3,)),
        "candidate_boxes": ("float32", (3, 300, 4)),
        "candidate_scores": ("float32", (3, 300)),
        "candidate_labels": ("int32", (3, 300)),
    }


def test_the_order_of_ties_does_not_depend_on_top_k() -> None:
    head = GraphNms(GRAPH, rows=300, classes=1)
    random = np.random.default_rng(0)
    found = np.sort(random.integers(1, 9, (2, 300)) / 8, 1)[:, ::-1].astype(np.float32)
    number = np.stack([random.permutation(300) for _ in range(2)])
    wanted = [sorted(zip(-f, n, strict=True)) for f, n in zip(found, number, strict=True)]
    got_found, got_number = head.ordered(torch.from_numpy(found.copy()), torch.from_numpy(number))
    assert np.array_equal(got_found.numpy(), [[-f for f, _ in row] for row in wanted])
    assert np.array_equal(got_number.numpy(), [[n for _, n in row] for row in wanted])


@pytest.mark.parametrize("key", ["candidates", "max_detections"])
def test_more_than_top_k_can_give_is_refused(key: str) -> None:
    nms = msgspec.structs.replace(GRAPH, **{key: 3841})
    with pytest.raises(RecipeError, match="at most 3840") as caught:
        GraphNms(nms, rows=5000, classes=1)
    assert caught.value.key == f"nms.{key}"


def test_many_candidates_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    GraphNms(msgspec.structs.replace(GRAPH, candidates=501), rows=501, classes=1)
    assert "251001 pairs" in caplog.text
    caplog.clear()
    GraphNms(msgspec.structs.replace(GRAPH, candidates=3000), rows=400, classes=1)
    assert not caplog.text


@pytest.mark.parametrize("classes", ["best", "all"])
def test_no_operator_with_a_shape_of_its_own(classes: Any, graph: Any) -> None:
    model, _ = graph(msgspec.structs.replace(GRAPH, classes=classes, iou=0.5), 700, 3)
    kinds = {node.op_type for node in model.graph.node}
    assert {"TopK", "MatMul", "Relu"} <= kinds
    assert not kinds & REFUSED
    shapes = [value.type.tensor_type.shape.dim for value in (*model.graph.output, *model.graph.value_info)]
    assert all(dim.HasField("dim_value") for dims in shapes for dim in list(dims)[1:])


@pytest.mark.parametrize("classes", ["best", "all"])
def test_compiles_without_a_gpu(classes: Any, graph: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra trt-check is not installed")
    model, _ = graph(msgspec.structs.replace(GRAPH, classes=classes, iou=0.5), 700, 3)
    path = tmp_path / "nms.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(path)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.assets
@pytest.mark.slow
def test_a_whole_detector_in_one_graph(
    foreign: Any, pictures: Any, exported: Any, session: Any, tmp_path: Path
) -> None:
    module, network = foreign("yolox", "yolox_nano")
    images = np.concatenate([module.prepare(picture)[0] for picture in pictures(3)])
    example = torch.from_numpy(images[:1])

    def make(nms: Nms | None) -> Any:
        return adapt(
            network, "auto", example=example, task="detect", options={}, nms=nms, names=80, python_path=[]
        )

    adapted = make(GRAPH)
    assert adapted.output_names == NMS_OUTPUTS
    model = exported(adapted.module, (example,), adapted.output_names)
    assert not {node.op_type for node in model.graph.node} & REFUSED
    out = session(model)(images)
    with torch.no_grad():
        boxes, scores = (t.numpy() for t in make(None).module(torch.from_numpy(images)))
    # The network itself differs in the last bits between torch and onnxruntime.
    for i in range(3):
        wanted = suppress(boxes[i], scores[i], GRAPH, score=0.05)
        strong = out["scores"][i] > 0.05
        assert out["converged"][i]
        assert strong.sum() == len(wanted[0])
        assert np.abs(out["boxes"][i][strong] - wanted[0]).max() < 0.05
        assert np.array_equal(out["labels"][i][strong], wanted[2])
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra trt-check is not installed")
    path = tmp_path / "detector.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(path)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
