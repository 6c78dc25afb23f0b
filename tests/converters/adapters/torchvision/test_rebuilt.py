"""Which modules are taken apart, what their classes are called, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgesmith.converters.adapters import Adapted, adapt
from edgesmith.converters.adapters.torchvision import REBUILT, known_class
from edgesmith.converters.adapters.torchvision.base import StaticDetector, melt_frozen
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Nms

KINDS = ("ssd", "retinanet", "fcos", "faster", "mask")
IMAGE = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def adapted(network: nn.Module, head: str = "auto", *, image: Tensor = IMAGE, **given: Any) -> Adapted:
    settings: dict[str, Any] = {"options": {}, "nms": None, "names": None, "python_path": []}
    return adapt(network, head, example=image, task="detect", **{**settings, **given})


@pytest.mark.parametrize(
    ("kind", "names", "classes"),
    [
        ("ssd", None, 5), ("ssd", 5, 5), ("ssd", 6, 6), ("faster", None, 5), ("faster", 6, 6),
        ("retinanet", None, 6), ("retinanet", 5, 5), ("fcos", 6, 6),
    ],
)  # fmt: skip
def test_names_with_and_without_the_background(
    kind: str, names: int | None, classes: int, tiny: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    network = tiny(kind)
    whole = adapted(network, names=6)
    found = adapted(network, names=names)
    assert (found.family, found.classes, found.output_names) == ("torchvision", classes, ("boxes", "scores"))
    with torch.no_grad():
        boxes, scores = found.module(IMAGE)
        all_boxes, all_scores = whole.module(IMAGE)
    assert scores.shape[2] == classes
    assert torch.equal(boxes, all_boxes)
    assert torch.equal(scores, all_scores[..., 6 - classes :])
    if kind in ("ssd", "faster"):
        assert not all_scores[..., 0].any()  # the background is never found


def test_other_numbers_of_names_are_refused(tiny: Callable[..., Any]) -> None:
    with pytest.raises(
        RecipeError, match="80 names, but this SSD has 6 classes; give 6 names, or 5"
    ) as caught:
        adapted(tiny("ssd"), names=80)
    assert caught.value.key == "labels"


def test_the_one_size_of_ssd(tiny: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=r"\[96, 160\], but this SSD takes \[96, 128\]") as caught:
        adapted(tiny("ssd"), image=torch.rand(1, 3, 96, 160))
    assert caught.value.key == "input.size"


def test_every_entry_is_a_class_that_torchvision_has() -> None:
    import importlib

    for theirs, ours in REBUILT.items():
        module, _, name = theirs.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)
        module, name = ours.split(":")
        assert issubclass(getattr(importlib.import_module(module), name), StaticDetector)


def test_a_module_of_another_kind_goes_the_usual_way(tiny: Callable[..., Any]) -> None:
    assert known_class(nn.Conv2d(3, 4, 1)) is None
    with pytest.raises(RecipeError, match="Conv2d is none of torchvision's detectors") as caught:
        adapted(nn.Conv2d(3, 85, 8, 8), "torchvision")
    assert caught.value.key == "model.head"


def test_a_subclass_with_a_decode_of_its_own_is_refused() -> None:
    from torchvision.models.detection import RetinaNet

    class Own(RetinaNet):  # type: ignore[misc]  # the package has no types
        def postprocess_detections(self, *given: Any) -> Any:
            return given

    own = Own.__new__(Own)
    with pytest.raises(SourceError, match="postprocess_detections of its own"):
        known_class(own)


@pytest.mark.parametrize("kind", ["ssd", "faster"])
def test_normalization_happens_once(kind: str, tiny: Callable[..., Any]) -> None:
    network = tiny(kind)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    normalized = (IMAGE - mean) / std
    here = adapted(network).module
    there = adapted(network, image=normalized, options={"normalized": True}).module
    with torch.no_grad():
        for a, b in zip(here(IMAGE), there(normalized), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RecipeError, match="normalizes by itself, but the images run from -2") as caught:
        adapted(network, image=normalized)
    assert caught.value.key == "input"
    with pytest.raises(RecipeError, match=r"set input.mean = \[0.485, 0.456, 0.406\]") as caught:
        adapted(network, options={"normalized": True})
    assert caught.value.key == "model.head_options.normalized"
    with pytest.raises(RecipeError, match="takes 3 channels, the recipe gives 1"):
        adapted(network, image=IMAGE[:, :1])


def test_options_are_checked(tiny: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="unknown field `anchors`"):
        adapted(tiny("ssd"), options={"anchors": [[1, 2]]})
    with pytest.raises(RecipeError, match="Expected `bool`") as caught:
        adapted(tiny("ssd"), options={"normalized": "yes"})
    assert caught.value.key == "model.head_options.normalized"


def test_masks_need_the_suppression_in_the_graph(tiny: Callable[..., Any]) -> None:
    network = tiny("mask")
    with pytest.raises(RecipeError, match=r'set nms\.where = "graph"') as caught:
        adapted(network, nms=Nms())
    assert caught.value.key == "nms.where"
    plain = adapted(network, nms=Nms(), options={"masks": False})
    assert plain.output_names == ("boxes", "scores")
    assert adapted(network, nms=Nms(where="graph")).output_names[-1] == "masks"


def test_a_predictor_of_another_form_is_refused(tiny: Callable[..., Any]) -> None:
    network = tiny("faster")
    network.roi_heads.box_predictor.bbox_pred = nn.Linear(32, 4)
    with pytest.raises(SourceError, match="needs the layers cls_score"):
        adapted(network)


def test_a_head_of_another_make_is_refused(tiny: Callable[..., Any]) -> None:
    network = tiny("retinanet")
    network.head.classification_head = nn.Conv2d(32, 6, 1)
    with pytest.raises(SourceError, match=r"not as torchvision makes it: .*num_classes"):
        adapted(network)


def test_frozen_batch_norms_become_ordinary_ones() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    random = torch.Generator().manual_seed(0)
    frozen = nn.Sequential(FrozenBatchNorm2d(3, eps=1e-3), nn.Sequential(nn.ReLU(), FrozenBatchNorm2d(3)))
    for value in frozen.buffers():
        value.uniform_(0.5, 2, generator=random)
    wanted = frozen(IMAGE)
    melt_frozen(frozen)
    assert [type(m) for m in frozen.modules()].count(nn.BatchNorm2d) == 2
    assert torch.allclose(frozen(IMAGE), wanted, atol=1e-6)


def test_sides_that_are_no_multiples_are_padded_as_torchvision_does(
    tiny: Callable[..., Any], alive: Any, own_answer: Any, same_detections: Any
) -> None:
    from edgesmith.sdk.decode.nms import suppress

    random = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 90, 100, generator=random)
    network = alive(tiny("retinanet"), [image])
    nms = Nms(score=0.049, iou=0.5, classes="all", candidates=5000, max_detections=300)
    boxes, scores = adapted(network, image=image, nms=nms, names=6).module(image)
    found = suppress(boxes[0].numpy(), scores[0].numpy(), nms)
    assert same_detections(own_answer(network, image), *found, 0) > 10
