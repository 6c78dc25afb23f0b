"""Which family ``auto`` takes from shapes and labels, and when it refuses."""

from __future__ import annotations

import importlib
from typing import Any, get_args

import pytest
import torch
from torch import nn

from edgesmith.converters.adapters import adapt
from edgesmith.converters.adapters.families import FAMILIES
from edgesmith.sdk.errors import RecipeError, SourceError
from edgesmith.sdk.manifest import Nms, Task


def maps(channels: int, sides: tuple[int, ...] = (8, 4, 2)) -> list[tuple[int, ...]]:
    return [(1, channels, side, side) for side in sides]


def chosen(network: nn.Module, head: str = "auto", **given: Any) -> str:
    settings: dict[str, Any] = {
        "example": torch.rand(1, 3, 64, 64), "task": "detect", "options": {}, "nms": Nms(),
        "names": None, "python_path": [],
    }  # fmt: skip
    return adapt(network, head, **{**settings, **given}).family


@pytest.mark.parametrize(
    ("shapes", "labels", "options", "family"),
    [
        (maps(85), 80, {}, "yolox"),
        (maps(85, (8,)), 80, {}, None),  # one map: FastestDet's as well
        (maps(85), None, {}, None),  # YOLOX of 80 classes, NanoDet of 77 and 2 bins ...
        (maps(85, (4, 8, 2)), 80, {}, "yolox"),
        ([(1, 84, 85)], 80, {}, "yolox"),
        (maps(112), 80, {}, "nanodet"),
        (maps(112, (8, 4, 2, 1)), 80, {}, "nanodet"),
        (maps(255), 80, {}, None),  # the maps of YOLOv5 and of YOLOv3 look alike
        ([(1, 3, s, s, 85) for s in (8, 4, 2)], 80, {}, None),
        (maps(85), 80, {"anchors": [[8, 8], [16, 16], [32, 32]]}, None),
        ([(1, 252, 85)], 80, {}, None),
        (maps(112), None, {"bins": 8}, None),  # NanoDet's classes stand before the sides, YOLOv8's after
        (maps(144), 80, {}, None),
        (maps(144), 76, {}, "nanodet"),  # 17 bins
        (maps(255), 250, {}, "yolox"),
        (maps(27), None, {}, None),  # YOLOX of 22 classes, YOLOv5 of 4
        (maps(37), 1, {}, "nanodet"),  # 9 bins
        (maps(18), 1, {}, None),
        (maps(20), 1, {}, None),
        (maps(84), 80, {}, None),
        ([(1, 84, 64)], 80, {}, None),
    ],
)
def test_auto(
    shapes: list[tuple[int, ...]],
    labels: int | None,
    options: dict[str, object],
    family: str | None,
    noise: Any,
    fixed: Any,
) -> None:
    network = fixed(noise(*shapes))
    if family is None:
        with pytest.raises(RecipeError) as caught:
            chosen(network, names=labels, options=options)
        assert caught.value.key == "model.head"
        for shape in shapes:
            assert str(shape) in str(caught.value)
    else:
        assert chosen(network, names=labels, options=options) == family


def test_doubt_names_the_candidates_and_what_each_would_read(noise: Any, fixed: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen(fixed(noise(*maps(27))))
    message = str(caught.value)
    assert 'Set model.head to "yolox" or "yolov5" or "yolov3"' in message
    assert "yolox: 3 levels with strides 8, 16, 32 and 22 classes" in message
    assert "yolov5: 3 levels with strides 8, 16, 32 and 4 classes, 3 anchors a cell" in message
    assert "with no labels" in message
    assert "or give labels" in message


def test_without_labels_nanodet_is_a_candidate_that_needs_its_bins(noise: Any, fixed: Any) -> None:
    # 112 channels may be 107 classes of YOLOX or any number of classes and bins of NanoDet.
    with pytest.raises(RecipeError) as caught:
        chosen(fixed(noise(*maps(112))))
    assert caught.value.key == "model.head"
    assert "yolox" in str(caught.value)
    assert "nanodet" in str(caught.value)


def test_no_fit_says_why_for_each_family(noise: Any, fixed: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen(fixed(noise(*maps(84))), names=80)
    for name in FAMILIES["detect"]:
        assert f"{name}: " in str(caught.value)
    assert "module:function" in str(caught.value)


def test_a_named_head_that_does_not_fit_names_those_that_do(noise: Any, fixed: Any) -> None:
    with pytest.raises(SourceError, match="These fit: yolox"):
        chosen(fixed(noise(*maps(85))), "nanodet", names=80)


@pytest.mark.parametrize(
    ("head", "task", "key", "part"),
    [
        (
            "yolo",
            "detect",
            "model.head",
            "auto, yolox, yolov5, yolov3, yolov8, nanodet, fastestdet, end_to_end, detr, centernet, "
            "cornernet, ",
        ),
        ("yolox", "classify", "model.head", 'not a head of task "classify": auto, classifier'),
        ("decode:run", "segment", "model.head", 'goes with task "detect"'),
    ],
)
def test_unknown_heads(head: str, task: str, key: str, part: str, noise: Any, fixed: Any) -> None:
    with pytest.raises(RecipeError, match=part) as caught:
        chosen(fixed(noise(*maps(85))), head, task=task)
    assert caught.value.key == key


def test_unknown_options_are_refused_by_name(noise: Any, fixed: Any) -> None:
    with pytest.raises(
        RecipeError, match="takes no option stride; it takes activated, decoded, strides"
    ) as caught:
        chosen(fixed(noise(*maps(85))), "yolox", options={"stride": [8]}, names=80)
    assert caught.value.key == "model.head_options.stride"
    with pytest.raises(
        RecipeError,
        match="the options are activated, activation, anchors, bins, boxes, candidates, classes, d",
    ) as caught:
        chosen(fixed(noise(*maps(85))), options={"stride": [8]}, names=80)
    assert caught.value.key == "model.head_options.stride"


def test_an_option_of_the_wrong_kind_is_named_with_its_place(noise: Any, fixed: Any) -> None:
    with pytest.raises(RecipeError, match="Expected `int`, got `str`") as caught:
        chosen(fixed(noise(*maps(85))), options={"strides": [8, "16", 32]}, names=80)
    assert caught.value.key == "model.head_options.strides[1]"


def test_a_module_that_fails_or_gives_no_tensor(fixed: Any) -> None:
    with pytest.raises(SourceError, match="fails on an input of shape"):
        chosen(nn.Conv2d(1, 4, 3))
    with pytest.raises(SourceError, match="without a tensor in it"):
        chosen(fixed({"boxes": None}))


def test_the_module_is_put_in_eval_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8)).train()
    chosen(network, "yolox", names=3)
    assert not network[1].training


def test_every_path_of_the_table_is_a_family() -> None:
    assert set(FAMILIES) == set(get_args(Task))
    for table in FAMILIES.values():
        for path in table.values():
            module, attribute = path.split(":")
            family = getattr(importlib.import_module(module), attribute)
            assert isinstance(family.OPTIONS, frozenset)
            assert callable(family.from_outputs)
