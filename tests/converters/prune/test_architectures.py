"""Pruned architectures of all kinds still export, compile for TensorRT and match PyTorch (random weights)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgesmith.converters import Recipe, compiled, convert
from edgesmith.converters.compiled import CompiledGraph
from edgesmith.sdk.bundle import Bundle

torchvision = pytest.importorskip("torchvision")
NETWORKS = '''
import torch
import torchvision
from torch import nn


def resnet50():
    return torchvision.models.resnet50(num_classes=20)


def mobilenet_v2():
    return torchvision.models.mobilenet_v2(num_classes=20)


def densenet121():
    return torchvision.models.densenet121(num_classes=20)


def vit():
    return torchvision.models.VisionTransformer(
        image_size=96, patch_size=16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=20
    )


class SsdLite(nn.Module):
    """torchvision's backbone and head; boxes as they come, spread over the picture."""

    def __init__(self):
        super().__init__()
        detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=6
        )
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x):
        found = self.head(list(self.backbone(x).values()))
        centre = 48 + 40 * found["bbox_regression"][..., :2].tanh()
        half = 2 + 10 * found["bbox_regression"][..., 2:].sigmoid()
        return torch.cat((centre - half, centre + half), -1), found["cls_logits"].sigmoid()


def block(wide, out, stride=1):
    return nn.Sequential(nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU())


class Csp(nn.Module):
    """Two paths, one with a residual, joined (YOLOv5's C3)."""

    def __init__(self, wide):
        super().__init__()
        self.left, self.right = block(wide, wide // 2), block(wide, wide // 2)
        self.inner = nn.Sequential(block(wide // 2, wide // 2), block(wide // 2, wide // 2))
        self.out = block(wide, wide)

    def forward(self, x):
        y = self.left(x)
        return self.out(torch.cat((y + self.inner(y), self.right(x)), 1))


class Yolo(nn.Module):
    """Three levels of raw maps with a top-down path: 4 sides, objectness, 3 classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, 2), block(16, 32, 2), block(32, 32, 2), Csp(32))
        self.middle = nn.Sequential(block(32, 64, 2), Csp(64))
        self.deep = nn.Sequential(block(64, 64, 2), Csp(64))
        self.up = nn.Upsample(scale_factor=2)
        self.join, self.fine = block(128, 64), block(96, 64)
        self.heads = nn.ModuleList(nn.Conv2d(64, 8, 1) for _ in range(3))

    def forward(self, x):
        a = self.stem(x)
        b = self.middle(a)
        c = self.deep(b)
        b = self.join(torch.cat((b, self.up(c)), 1))
        a = self.fine(torch.cat((a, self.up(b)), 1))
        return tuple(head(level) for head, level in zip(self.heads, (a, b, c)))
'''
CASES: dict[str, dict[str, Any]] = {
    "resnet50": {}, "mobilenet_v2": {}, "densenet121": {}, "vit": {"keep": 0.85},
    "SsdLite": {"task": "detect", "head": "canonical", "keep": 0.75},
    "Yolo": {"task": "detect", "head": "yolox"},
}  # fmt: skip


class Told(msgspec.Struct, frozen=True):
    compiled: tuple[CompiledGraph, ...]


def seeded(network: nn.Module) -> nn.Module:
    """Weights whose answers are neither all alike nor out of bounds, and norms with statistics."""
    random = torch.Generator().manual_seed(11)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=random))
            module.running_var.copy_(0.8 + 0.4 * torch.rand(module.num_features, generator=random))
    return network


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a large network beside other work
@pytest.mark.parametrize("name", CASES)
def test_pruned_it_exports_compiles_and_matches(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    (tmp_path / "architectures.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "architectures", raising=False)
    torch.manual_seed(0)
    network = seeded(getattr(importlib.import_module("architectures"), name)())
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    recipe = Recipe.from_dict(
        {
            "task": case.get("task", "classify"),
            "model": {"factory": f"architectures:{name}", "weights": "w.safetensors", "python_path": ["."],
                      "head": case.get("head", "auto")},
            "input": {"size": [96, 96], "fit": "stretch"},
            "prune": {"keep": case.get("keep", 0.6), "round_to": 4},
        },
        base=tmp_path,
    )  # fmt: skip
    there = importlib.util.find_spec("tensorrt_rtx_bindings") is not None
    monkeypatch.setattr(compiled, "installed", lambda: there)
    told = convert(recipe, tmp_path / "m.edge")  # compares the pruned module with the graph
    pruned = told.stages[1]
    assert pruned.figures is not None
    assert told.stages[0].figures is not None
    share = pruned.figures.macs / told.stages[0].figures.macs
    assert share < case.get("keep", 0.6) + 0.01
    assert len([w for w in pruned.widths if w.after < w.before]) >= 3
    assert pruned.whole
    if there:
        graphs = msgspec.json.decode(Bundle.open(tmp_path / "m.edge").read("report.json"), type=Told).compiled
        assert {g.outcome for g in graphs} == {"compiled"}
