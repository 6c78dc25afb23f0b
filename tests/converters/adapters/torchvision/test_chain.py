"""From torchvision's module to a bundle that the runtime runs: exported, quantized, compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import Recipe, convert
from edgesmith.converters.adapters import adapt
from edgesmith.converters.compile_check import compile_check
from edgesmith.converters.export import export_module
from edgesmith.converters.trace import module_path
from edgesmith.sdk.bundle import Bundle
from edgesmith.sdk.manifest import Batch, Nms
from edgesmith.sdk.models import Detector

# What TensorRT has no kernel for, or what brings shapes that depend on values.
REFUSED = {"NonZero", "NonMaxSuppression", "RoiAlign", "Loop", "If", "Scan", "CumSum", "ScatterND", "Range"}
SIZE = (96, 128)
KINDS = ("ssd", "retinanet", "fcos", "faster", "mask")
FACTORY = """
import torch

def network():
    return torch.load("{file}", weights_only=False)
"""


def drawn(count: int) -> Tensor:
    """Seeded pseudo-images (N, 3, H, W) in 0..1."""
    frames = np.stack(list(pseudo_images(count, 3, SIZE)))[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2) / 255


def test_the_graph_is_static_and_finds_the_same(tiny: Any, alive: Any, session: Any) -> None:
    check_graph("ssd", tiny, alive, session, Batch())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_is_static_and_finds_the_same(kind: str, tiny: Any, alive: Any, session: Any) -> None:
    check_graph(kind, tiny, alive, session, Batch())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_a_free_batch(kind: str, tiny: Any, alive: Any, session: Any) -> None:
    check_graph(kind, tiny, alive, session, Batch(min=1, opt=2, max=3))


def check_graph(kind: str, tiny: Any, alive: Any, session: Any, batch: Batch) -> None:
    """Export, look at the operators, and compare what onnxruntime finds with what torch does."""
    images = drawn(3)
    network = alive(tiny(kind), list(torch.split(images, 1)))
    nms = Nms(where="graph", evaluation_score=0.05, iou=0.5, classes="all", candidates=300)
    adapted = adapt(
        network, "auto", example=images[:1], task="detect", options={}, nms=nms, names=None, python_path=[]
    )
    model = export_module(
        adapted.module, network, output_names=adapted.output_names, channels=3, size=SIZE, batch=batch
    )
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not REFUSED & set(kinds)
    assert kinds["GridSample"] == {"mask": 2, "faster": 1}.get(kind, 0)
    paths = {module_path(node) for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    assert None not in paths  # each layer knows its place in the user's model
    run = session(model)
    found = 0
    for part in torch.split(images, batch.max):
        outputs = run(part.numpy())
        with torch.no_grad():
            wanted = dict(zip(adapted.output_names, adapted.module(part), strict=True))
        assert list(outputs) == list(adapted.output_names)
        assert all(outputs[name].shape == tuple(value.shape) for name, value in wanted.items())
        assert np.array_equal(outputs["count"], wanted["count"].numpy())
        assert np.abs(outputs["scores"] - wanted["scores"].numpy()).max() < 1e-3
        # Nearly equal scores may swap their rows.
        rows = np.abs(outputs["boxes"] - wanted["boxes"].numpy()).max(2) < 0.5
        assert rows.mean() > 0.98
        if kind == "mask":
            assert np.abs(outputs["masks"] - wanted["masks"].numpy())[rows].max() < 1e-2
        found += int(wanted["count"].sum())
    assert found > 20


@pytest.fixture
def recipe_of(tmp_path: Path, tiny: Any, alive: Any) -> Callable[..., Recipe]:
    """``recipe_of(kind, mode)``: a small detector of torchvision with weights that find things."""

    def make(kind: str, mode: str) -> Recipe:
        torch.save(alive(tiny(kind), list(torch.split(drawn(4), 1))), tmp_path / "network.pt")
        (tmp_path / "nets.py").write_text(FACTORY.format(file=tmp_path / "network.pt"))
        torch.save(torch.load(tmp_path / "network.pt", weights_only=False).state_dict(), tmp_path / "w.pt")
        (tmp_path / "photos").mkdir()
        for number, frame in enumerate(pseudo_images(12, 0, SIZE)):
            cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), frame)
        table = {
            "task": "detect",
            "labels": ["a", "b", "c", "d", "e"],
            "model": {"factory": "nets:network", "weights": "w.pt", "python_path": ["."]},
            "input": {"size": list(SIZE)},
            "nms": {"where": "graph", "score": 0.05, "evaluation_score": 0.05, "classes": "all"},
            "data": {"calibration": "photos"},
            # Seeded weights are no trained ones: what INT8 costs them says nothing.
            "precision": {"mode": mode, "accept_drop": True},
        }
        return Recipe.from_dict(table, base=tmp_path)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_converted_compiled_and_run(
    kind: str, mode: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    report = convert(recipe_of(kind, mode), tmp_path / "model.edge")
    bundle = Bundle.open(tmp_path / "model.edge")
    frame = pseudo_images(1, 0, SIZE)[0]
    with Detector.load(tmp_path / "model.edge", backend="cpu", threads=1) as detector:
        assert detector.names == ("a", "b", "c", "d", "e")
        for found in (detector(frame), *detector([frame, frame])):
            assert (found.scores > 0.05).all()
            assert set(found.labels.tolist()) <= set(range(5))
    if mode == "int8":
        assert report.int8_macs_share > 0.2  # heads, which make outputs, are most of these small ones
        kept = {k.module for k in report.kept_float}
        if kind in ("faster", "mask"):  # where regions come from is an answer, and stays in float
            assert {"rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score"} <= kept
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra trt-check is not installed")
    for name, variant in bundle.manifest.variants.items():
        if "x86" not in name:
            compiled = compile_check(bundle.read(variant.member), batch=Batch())
            assert compiled.compiled, f"{name}: {compiled.errors}"
