"""The float graph and the chosen one on the same pictures: scores, thresholds, the worst images, time."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgesmith.converters.report.precision import Latency, ScoreHistogram, WorstImage
from edgesmith.converters.report.thumbnails import jpeg
from edgesmith.converters.runners import Outputs, graph_runner, outputs_of
from edgesmith.sdk.decode import canonical
from edgesmith.sdk.errors import ExportError
from edgesmith.sdk.manifest import Batch, Nms, Preprocess, Task
from edgesmith.sdk.maps import Segmentation
from edgesmith.sdk.percentiles import percentiles
from edgesmith.sdk.preprocess import Frame8, Geometry, prepared
from edgesmith.sdk.results import Classifications, Detections

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
SAME_IOU = 0.5  # a detection of the same class that overlaps by so much is the same object
BINS = 20
LEAST_GAIN = 0.01  # of F1, before another threshold than the float model's is advised
WORST = 4
PICTURE_SIDE, PICTURE_QUALITY = 380, 76
LATENCY_S, MOST_RUNS, WARM_UP = 3.0, 60, 2
ANY_SIDE = 128  # pixels, for a graph of any size
_SEVERITY_ERROR = 3  # onnxruntime's scale: 0 verbose .. 4 fatal


@dataclass(frozen=True)
class Compared:
    """What looking at the pictures gave; ``pictures`` are JPEG files, float and chosen, one pair for each
    of ``worst``."""

    scores: ScoreHistogram | None
    worst: tuple[WorstImage, ...]
    pictures: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Seen:
    """One image in both graphs, as far as they differ: ``distance`` is 0 where they agree.

    ``same`` are the boxes that both have, as each of them has them.
    """

    exact: Detections | Classifications | Segmentation
    chosen: Detections | Classifications | Segmentation
    distance: float
    difference: str
    same: tuple[Floats, Floats] | None = None


def compared(
    exact: onnx.ModelProto,
    chosen: onnx.ModelProto,
    frames: Iterable[tuple[str, Frame8]],
    *,
    task: Task,
    preprocess: Preprocess,
    nms: Nms | None,
    labels: tuple[str, ...],
    batch: Batch,
) -> Compared:
    """Run both graphs over named frames; only the worst few frames are held at a time.

    Raises:
        ExportError: a graph does not run.
    """
    runners = graph_runner(exact), graph_runner(chosen)
    pairs: list[tuple[Detections, Detections]] = []
    worst: list[tuple[float, int, str, Frame8, Seen]] = []
    for number, (name, frame) in enumerate(frames):
        tensor, geometry = prepared(preprocess, frame)
        both = [outputs_of(run, [tensor], batch)[0] for run in runners]
        if task == "detect" and nms is not None:
            found = [_detections(o, geometry, nms, labels) for o in both]
            pairs.append((found[0], found[1]))
            seen = _seen_boxes(found[0], found[1], nms.score)
        elif task == "classify":
            seen = _seen_classes(*(canonical.classifications(o, 0, labels) for o in both))
        elif task == "segment":
            seen = _seen_maps(*(canonical.segmentation(o, 0, geometry, labels) for o in both))
        else:
            continue
        if seen.distance > 0:
            worst.append((seen.distance, -number, name, frame, seen))
            worst = sorted(worst, key=lambda w: w[:2], reverse=True)[:WORST]
    return Compared(
        scores=None if nms is None or not pairs else score_histogram(pairs, nms.score, lowest_score(nms)),
        worst=tuple(WorstImage(name=name, difference=seen.difference) for _, _, name, _, seen in worst),
        pictures=tuple(_shown(frame, seen) for _, _, _, frame, seen in worst),
    )


def lowest_score(nms: Nms) -> float:
    """Where the histogram and the search for a threshold begin: below the threshold, above the noise."""
    return max(nms.evaluation_score, min(0.05, nms.score / 2))


def score_histogram(
    pairs: Sequence[tuple[Detections, Detections]], threshold: float, lowest: float
) -> ScoreHistogram:
    """Scores of both graphs' detections, and the threshold at which the chosen graph finds the same.

    The float model's detections over its threshold t stand for the truth. For a threshold u of the chosen
    graph let n(u) be its detections over u, and TP(u) those of them that match one of the m of the float
    model (same class, IoU >= 0.5, best score first, each taken once). Advised is the u with the largest

        F1(u) = 2 TP(u) / (n(u) + m)

    and not the u at which the counts are equal: as many wrong detections as were lost would do for that. Of
    equal u the nearest to t is taken, and t itself where no other gains a hundredth: a few images make some
    other threshold look better by chance. Suppression keeps the best boxes first, so a threshold only cuts
    the end of the list, and matching once serves every u.

    Args:
        pairs: detections of the float and of the chosen graph for each image, down to ``lowest``.
        threshold: the float model's.
        lowest: least score of the histogram and of the thresholds tried.
    """
    sure = [exact[exact.scores > threshold] for exact, _ in pairs]
    hits = np.concatenate(
        [np.zeros(0, np.bool_), *(matched(t, found)[0] for t, (_, found) in zip(sure, pairs, strict=True))]
    )
    # Compared in float32, as the runtime does: a score of 0.17 is not over a threshold of 0.17.
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for _, found in pairs)])
    before = np.concatenate([np.zeros(0, np.float32), *(found.scores for found, _ in pairs)])
    truth = sum(map(len, sure))

    def f1(at: float) -> float:
        over = scores > at
        total = int(over.sum()) + truth
        return 2 * float(hits[over].sum()) / total if total else 1.0

    tried = [*np.round(np.arange(np.ceil(lowest * 100), 100) / 100, 2).tolist(), threshold]
    best = max(tried, key=lambda at: (round(f1(at), 9), -abs(at - threshold)))
    if f1(best) < f1(threshold) + LEAST_GAIN:
        best = threshold
    edges = np.linspace(lowest, 1.0, BINS + 1)
    return ScoreHistogram(
        edges=tuple(edges.tolist()),
        exact=tuple(np.histogram(before, edges)[0].tolist()),
        chosen=tuple(np.histogram(scores, edges)[0].tolist()),
        threshold=threshold, recommended=float(best), f1_same=f1(threshold), f1_there=f1(best),
        found_exact=truth, found_same=int((scores > threshold).sum()), found_there=int((scores > best).sum()),
    )  # fmt: skip


def matched(truth: Detections, found: Detections) -> tuple[Bools, Bools]:
    """Which of ``found`` (best first) match one of ``truth``, and which of ``truth`` are matched.

    A match is of the same class and overlaps by IoU >= 0.5; each of ``truth`` is taken once.
    """
    hits = np.zeros(len(found), np.bool_)
    free = np.ones(len(truth), np.bool_)
    if not len(truth):
        return hits, ~free
    for n, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        overlaps = np.where(free & (truth.labels == label), _iou(box, truth.boxes), 0.0)
        best = int(overlaps.argmax())
        if overlaps[best] >= SAME_IOU:
            hits[n], free[best] = True, False
    return hits, ~free


def latency(graphs: Mapping[str, onnx.ModelProto], tensor: NDArray[np.float32]) -> Latency:
    """Time each graph in onnxruntime on one thread, in turns, so that all see the same machine.

    Args:
        graphs: by name.
        tensor: the input, with the batch that the graphs take.
    """
    sessions = {name: _session(graph) for name, graph in graphs.items()}
    spent: dict[str, list[float]] = {name: [] for name in graphs}
    feeds = {name: {session.get_inputs()[0].name: tensor} for name, session in sessions.items()}
    began, run = time.perf_counter(), 0
    while run < WARM_UP + 1 or (run < MOST_RUNS + WARM_UP and time.perf_counter() - began < LATENCY_S):
        for name, session in sessions.items():
            start = time.perf_counter_ns()
            session.run(None, feeds[name])
            if run >= WARM_UP:
                spent[name].append((time.perf_counter_ns() - start) / 1e6)
        run += 1
    figures = {name: percentiles(times) for name, times in spent.items()}
    return Latency(
        processor=processor_name(),
        threads=1,
        runs=run - WARM_UP,
        p50_ms={name: f["p50"] for name, f in figures.items()},
        p90_ms={name: f["p90"] for name, f in figures.items()},
    )


def latency_of(graph: onnx.ModelProto, batch: int) -> float:
    """Median milliseconds of a graph in onnxruntime on one thread, on a batch of zeros."""
    dims = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    sizes = [batch, *(d or ANY_SIDE for d in dims[1:])]
    return latency({"graph": graph}, np.zeros(sizes, np.float32)).p50_ms["graph"]


def processor_name() -> str:
    """What the processor calls itself, else its architecture."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _session(graph: onnx.ModelProto) -> Any:
    import onnxruntime

    from edgesmith.sdk.backends.onnxruntime import UNSOUND_OPTIMIZERS

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            graph.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(UNSOUND_OPTIMIZERS),
        )
    except Exception as error:
        # onnxruntime's exception classes are private to its C module.
        raise ExportError(f"onnxruntime does not take the graph: {str(error).splitlines()[0]}") from error


def _detections(outputs: Outputs, geometry: Geometry, nms: Nms, labels: tuple[str, ...]) -> Detections:
    return canonical.detections(outputs, 0, geometry, nms, labels, score=lowest_score(nms))


def _seen_boxes(exact: Detections, chosen: Detections, threshold: float) -> Seen:
    """Counted are detections over the threshold that only one of the two has."""
    before, after = exact[exact.scores > threshold], chosen[chosen.scores > threshold]
    hits, taken = matched(before, after)
    same = int(hits.sum())
    lost, new = len(before) - same, len(after) - same
    text = f"{same} the same, {lost} only in float, {new} only in the chosen graph"
    # Of as many differing boxes, those of an image with few of them weigh more.
    distance = lost + new + (lost + new) / (1 + len(before) + len(after))
    return Seen(before[~taken], after[~hits], distance, text, (before.boxes[taken], after.boxes[hits]))


def _seen_classes(exact: Classifications, chosen: Classifications) -> Seen:
    """Distance is half the sum of the chances' differences, 0..1; 1 more where the best class changes."""
    chances = np.zeros((2, len(exact)))
    for row, one in zip(chances, (exact, chosen), strict=True):
        row[one.labels] = one.scores
    distance = float(np.abs(chances[0] - chances[1]).sum() / 2)
    a, b = exact.top, chosen.top
    if a.label != b.label:
        text = f"{a.name} ({100 * a.score:.0f} %) became {b.name} ({100 * b.score:.0f} %)"
        return Seen(exact, chosen, 1 + distance, text)
    text = f"{a.name}: {100 * a.score:.0f} % became {100 * b.score:.0f} %"
    return Seen(exact, chosen, distance, text)


def _seen_maps(exact: Segmentation, chosen: Segmentation) -> Seen:
    """Distance is the share of pixels whose class changed."""
    changed = float(np.mean(exact.class_map != chosen.class_map))
    return Seen(exact, chosen, changed, f"{100 * changed:.2f} % of the pixels got another class")


def _shown(frame: Frame8, seen: Seen) -> tuple[bytes, bytes]:
    before, after = seen.same if seen.same is not None else (None, None)
    return (
        jpeg(frame, seen.exact, before, side=PICTURE_SIDE, quality=PICTURE_QUALITY),
        jpeg(frame, seen.chosen, after, side=PICTURE_SIDE, quality=PICTURE_QUALITY),
    )


def _iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=1, dtype=np.float64)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1, dtype=np.float64)
    union = float(np.prod(box[2:] - box[:2])) + areas - inter
    shares: NDArray[np.float64] = np.zeros_like(inter)
    np.divide(inter, union, out=shares, where=inter > 0)
    return shares
