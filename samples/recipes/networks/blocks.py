"""What the small networks of these recipes are built of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Sequential):
    """Convolution, BatchNorm, activation."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, act: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), act()
        )


class Residual(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Block(channels, channels // 2, 1, act=act), Block(channels // 2, channels, act=act)
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.body(x)
        return added


class Split(nn.Module):
    """A cross-stage partial block: half of the channels pass by, as in YOLOv5 and YOLOv8."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__()
        self.first = Block(channels, channels, 1)
        self.steps = nn.ModuleList(Residual(channels // 2) for _ in range(depth))
        self.last = Block(channels // 2 * (2 + depth), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        mixed: Tensor = self.last(torch.cat(parts, 1))
        return mixed


class Pyramid(nn.Module):
    """A backbone and a neck: features of strides 8, 16 and 32, each with ``width`` channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 16, 3, 2), Block(16, width, 3, 2))
        self.stages = nn.ModuleList(nn.Sequential(Block(width, width, 3, 2), Split(width)) for _ in range(3))
        self.mix = nn.ModuleList(Split(2 * width) for _ in range(2))
        self.narrow = nn.ModuleList(Block(2 * width, width, 1) for _ in range(2))

    def forward(self, images: Tensor) -> list[Tensor]:
        x, found = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        for level, (mix, narrow) in enumerate(zip(self.mix, self.narrow, strict=True)):
            above = nn.functional.interpolate(found[2 - level], scale_factor=2.0, mode="nearest")
            found[1 - level] = narrow(mix(torch.cat((above, found[1 - level]), 1)))
        return found


def output(c_in: int, c_out: int, bias: float = 0.0, gain: float = 1.0) -> nn.Conv2d:
    """A last convolution whose answers are spread, around a bias that makes objects rare."""
    conv = nn.Conv2d(c_in, c_out, 1)
    with torch.no_grad():
        conv.weight.mul_(gain)
        assert conv.bias is not None
        conv.bias.fill_(bias)
    return conv
