"""Segmenters and tensor models the whole way: recipe, precision, proof, and what the runtime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from edgesmith.calibration.images import pseudo_images
from edgesmith.converters import Recipe, convert
from edgesmith.converters.outcome import ConvertReport
from edgesmith.converters.precision.budget import budget_of
from edgesmith.sdk import Bundle, Segmenter, TensorModel, self_test

NETWORKS = '''
import torch
from torch import nn


class Colours(nn.Module):
    """The logit of each of three classes grows with one colour."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.body = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return {"out": self.head(torch.relu(self.body(x))), "aux": x}


class Enlarger(nn.Module):
    """Twice as large: bilinear, and a small correction."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.body = nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, y):
        x = torch.relu(self.body(torch.relu(self.stem(y))))
        return torch.nn.functional.pixel_shuffle(y.repeat(1, 4, 1, 1) + 0.02 * self.last(x), 2)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 11, (32, 3), 1, (0, 1))

    def forward(self, x):
        return 4 * self.stem(x)[:, :, 0].transpose(1, 2)


def colours():
    return Colours()


def enlarger():
    return Enlarger()


def reader():
    return Reader()
'''


def put(path: Path, image: NDArray[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with seeded weights, 20 pictures, and six with masks of their strongest colour."""
    folder = tmp_path_factory.mktemp("dense")
    (folder / "densenets.py").write_text(NETWORKS)
    scope: dict[str, Any] = {}
    exec(compile(NETWORKS, "densenets", "exec"), scope)
    for name in ("colours", "enlarger", "reader"):
        torch.manual_seed(3)
        module: Any = scope[name]()
        if name == "colours":  # each colour through a channel of its own
            with torch.no_grad():
                for layer in module.children():
                    layer.weight *= 0.05
                    layer.bias *= 0
                for colour in range(3):
                    module.stem.weight[colour, colour, 1, 1] += 1
                    module.body.weight[colour, 0, 1, 1] += 1
                    module.head.weight[colour, colour] += 1
        save_file(module.state_dict(), folder / f"{name}.safetensors")
    for number in range(20):
        put(folder / "photos" / f"{number:02d}.png", pseudo_images(1, 70 + number, (48, 64))[0])
    for number in range(6):
        image = pseudo_images(1, 200 + number, (40, 56))[0]
        put(folder / "marked" / f"{number}.bmp", image)
        put(folder / "marked" / f"{number}.png", image[..., ::-1].argmax(2).astype(np.uint8) * 100)
    return folder


def converted(world: Path, name: str, out: Path, **tables: Any) -> ConvertReport:
    table: dict[str, Any] = {
        "model": {
            "factory": f"densenets:{name}", "weights": f"{name}.safetensors", "python_path": ["."],
            **tables.pop("model", {}),
        },
        **tables,
    }  # fmt: skip
    return convert(Recipe.from_dict(table, base=world), out)


def test_a_segmenter_in_the_precision_that_keeps_its_iou(world: Path, tmp_path: Path) -> None:
    evaluation = {"images": "marked", "masks": "marked", "mask_values": [0, 100, 200]}
    report = converted(
        world, "colours", tmp_path / "x.edge", task="segment", labels=["red", "green", "blue"],
        input={"size": [40, 56]}, data={"calibration": "photos", "evaluation": evaluation},
        precision={"mode": "auto", "max_drop": 5.0},
    )  # fmt: skip
    assert (report.metric, report.task) == ("mIoU", "segment")
    assert report.float is not None
    assert report.float > 70
    assert report.drop is not None
    assert report.drop < 5
    assert report.int8_macs_share > 0.4
    assert report.parity["pixel_agreement"] == 1.0
    bundle = Bundle.open(tmp_path / "x.edge")
    assert {"fp16", "auto"} <= bundle.manifest.variants.keys()
    assert "mean IoU" in bundle.read("report.html").decode()
    with Segmenter.load(tmp_path / "x.edge", backend="cpu", variant="auto") as model:
        assert self_test(model).passed
        frame = np.zeros((30, 50, 3), np.uint8)
        frame[:, 25:] = (0, 0, 250)
        frame[:, :25] = (250, 0, 0)
        found = model(frame)
        assert {region.name for region in found} == {"blue", "red"}
        assert found.class_map[15, [5, 45]].tolist() == [2, 0]


def test_an_enhancer_of_any_size_in_int8(world: Path, tmp_path: Path) -> None:
    report = converted(
        world, "enlarger", tmp_path / "x.edge", task="tensor", input={"color": "y"},
        model={"head_options": {"names": ["luma"]}},
        data={"calibration": "photos", "evaluation": {"images": "marked", "metric": "psnr", "downscale": 2}},
        precision={"mode": "int8", "accept_drop": True},
    )  # fmt: skip
    assert (report.metric, report.task) == ("psnr", "tensor")
    assert report.float is not None
    assert report.chosen is not None
    assert report.float > report.chosen - 0.5 > 15
    bundle = Bundle.open(tmp_path / "x.edge")
    assert bundle.manifest.outputs[0].name == "luma"
    assert " dB" in bundle.read("report.html").decode()
    with TensorModel.load(tmp_path / "x.edge", backend="cpu", variant="int8") as model:
        assert self_test(model).passed
        assert model(np.zeros((34, 22, 3), np.uint8))["luma"].shape == (1, 68, 44)


def test_a_reader_brings_its_alphabet(world: Path, tmp_path: Path) -> None:
    converted(
        world, "reader", tmp_path / "x.edge", task="tensor", data={"calibration": "photos"},
        model={"head_options": {"alphabet": "0123456789"}},
        input={"size": [32, 80], "fit": "stretch", "color": "y"},
    )  # fmt: skip
    with TensorModel.load(tmp_path / "x.edge", backend="cpu") as model:
        assert model.names == ("", *"0123456789")
        found = model(pseudo_images(1, 1, (40, 100))[0])
        assert found["output"].shape == (80, 11)
        assert found.text is not None
        assert set(found.text[0]) <= set("0123456789")
        assert 0 < found.text[1] <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ["a", "b"]}, r"names are 2, the outputs are 1"),
        ({"alphabet": "abc"}, r"an alphabet of 3 characters goes with an output \(N, T, 4\)"),
        ({"names": 3}, r"head_options\.names: Expected `array"),
        ({"anchors": []}, "no head of task .tensor. takes anchors"),
    ],
)
def test_options_that_do_not_fit(world: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        converted(
            world, "reader", tmp_path / "x.edge", task="tensor", model={"head_options": options},
            input={"size": [32, 80], "fit": "stretch", "color": "y"},
        )  # fmt: skip


def test_the_budget_is_in_the_unit_of_the_metric(world: Path) -> None:
    table: dict[str, Any] = {"task": "tensor", "model": {"zoo": "torchvision:resnet18"}}
    data = {"evaluation": {"images": "photos", "metric": "psnr", "downscale": 2}}
    assert budget_of(Recipe.from_dict(table, base=world)) == 0.5
    assert budget_of(Recipe.from_dict({**table, "data": data}, base=world)) == 0.3
    given = {**table, "data": data, "precision": {"max_drop": 1.5}}
    assert budget_of(Recipe.from_dict(given, base=world)) == 1.5
