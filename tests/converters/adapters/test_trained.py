"""Each family's head on a trained network equals the network's own decode, in torch and in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.converters.adapters import adapt
from edgesmith.sdk.manifest import Nms

TRAINED = [
    # file, factory, head where the shapes leave doubt
    ("yolox", "yolox_nano", "auto"),
    ("nanodet", "nanodet_m", "auto"),
    ("fastestdet", "fastestdet", "fastestdet"),
]


@pytest.mark.assets
@pytest.mark.parametrize(("file", "factory", "head"), TRAINED)
def test_equals_the_networks_own_decode(
    file: str, factory: str, head: str, foreign: Any, pictures: Callable[[int], Any]
) -> None:
    module, network = foreign(file, factory)
    for picture in pictures(3):
        image = torch.from_numpy(module.prepare(picture)[0])
        adapted = adapt(
            network, head, example=image, task="detect", options={}, nms=Nms(), names=80, python_path=[]
        )
        assert adapted.family == file
        assert adapted.output_names == ("boxes", "scores")
        assert adapted.classes == 80
        with torch.no_grad():
            boxes, scores = adapted.module(image)
            wanted_boxes, wanted_scores = module.decode(network(image))
        assert float(wanted_scores.max()) > 0.2  # there is something in the picture
        assert float((boxes - wanted_boxes).abs().max()) < 1e-3
        assert float((scores - wanted_scores).abs().max()) < 1e-5


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize(("file", "factory", "head"), TRAINED)
def test_the_exported_graph_takes_any_batch(
    file: str, factory: str, head: str, foreign: Any, pictures: Any, exported: Any, session: Any
) -> None:
    module, network = foreign(file, factory)
    images = np.concatenate([module.prepare(picture)[0] for picture in pictures(3)])
    example = torch.from_numpy(images[:1])
    adapted = adapt(
        network, head, example=example, task="detect", options={}, nms=None, names=80, python_path=[]
    )
    model = exported(adapted.module, (example,), adapted.output_names)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "Range", "NonZero", "ScatterND", "Expand", "Loop", "If"}
    found = session(model)(images)
    with torch.no_grad():
        boxes, scores = module.decode(network(torch.from_numpy(images)))
    assert found["boxes"].shape == tuple(boxes.shape)
    # Wider than the decode's own bounds: the networks too differ in their last bits here.
    assert np.abs(found["boxes"] - boxes.numpy()).max() < 0.05
    assert np.abs(found["scores"] - scores.numpy()).max() < 1e-4
