"""The demo's detector: plain PyTorch, the part of a user's own model code.

A small fully convolutional network with a feature pyramid. Its raw output is laid out as YOLOX
lays it out before decoding, one tensor a stride (8, 16, 32).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASS_COUNT = 5
STRIDES = (8, 16, 32)


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, activation; ``groups = channels`` makes it depthwise.

    The activation is SiLU, or ReLU where ``relu``: on the largest maps SiLU costs more than it brings.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = False
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True) if relu else nn.SiLU(inplace=True),
        )


class LightUnit(nn.Sequential):
    """A depthwise convolution and a pointwise one, each with batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            ConvUnit(inputs, inputs, kernel, stride, groups=inputs),
            ConvUnit(inputs, outputs, 1),
        )


class DenseBlock(nn.Module):
    """A residual bottleneck with an ordinary 3x3 convolution; (N, C, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = ConvUnit(channels, channels // 2, 1)
        self.expand = ConvUnit(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's work to its input."""
        out: Tensor = x + self.expand(self.squeeze(x))
        return out


class LightBlock(nn.Module):
    """A residual block of a 5x5 depthwise and a pointwise convolution; (N, C, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = LightUnit(channels, channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's work to its input."""
        out: Tensor = x + self.body(x)
        return out


class Head(nn.Module):
    """One stride's predictions: (N, C, h, w) to (N, 5 + classes, h, w)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.box_stem = LightUnit(channels, channels)
        self.class_stem = LightUnit(channels, channels)
        self.box = nn.Conv2d(channels, 4, 1)
        self.objectness = nn.Conv2d(channels, 1, 1)
        self.classes = nn.Conv2d(channels, classes, 1)
        # Both start near 1 in 100: else the many empty cells drown the first steps.
        for layer in (self.objectness, self.classes):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, -4.6)

    def forward(self, x: Tensor) -> Tensor:
        """Channels: dx, dy, log w, log h (in cells), objectness logit, class logits."""
        place = self.box_stem(x)
        return torch.cat([self.box(place), self.objectness(place), self.classes(self.class_stem(x))], dim=1)


class DemoDetector(nn.Module):
    """The detector.

    Input: float32 (N, 3, S, S), RGB 0..1, S a multiple of 32. Output: three tensors
    (N, 5 + classes, S / stride, S / stride) for strides 8, 16 and 32. A box's centre is
    ``(cell + d) * stride`` and its size ``exp(.) * stride``, in input pixels; its score is
    ``sigmoid(objectness) * sigmoid(class)``.
    """

    def __init__(self, classes: int = CLASS_COUNT) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvUnit(3, 12, 3, 2, relu=True), ConvUnit(12, 24, 3, 2, relu=True))
        self.stage8 = nn.Sequential(ConvUnit(24, 48, 3, 2), DenseBlock(48))
        self.stage16 = nn.Sequential(ConvUnit(48, 96, 3, 2), DenseBlock(96), LightBlock(96))
        self.stage32 = nn.Sequential(LightUnit(96, 160, 3, 2), LightBlock(160), LightBlock(160))
        width = 48
        self.side8 = ConvUnit(48, width, 1)
        self.side16 = ConvUnit(96, width, 1)
        self.side32 = ConvUnit(160, width, 1)
        self.merge16 = LightUnit(width * 2, width, 5)
        self.merge8 = LightUnit(width * 2, width, 3)
        self.down16 = ConvUnit(width, width, 3, 2, groups=width)
        self.out16 = LightUnit(width * 2, width, 5)
        self.down32 = ConvUnit(width, width, 3, 2, groups=width)
        self.out32 = LightUnit(width * 2, width, 5)
        self.heads = nn.ModuleList(Head(width, classes) for _ in STRIDES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw predictions at strides 8, 16 and 32."""
        c8 = self.stage8(self.stem(images))
        c16 = self.stage16(c8)
        p32 = self.side32(self.stage32(c16))
        p16 = self.merge16(torch.cat([self.side16(c16), functional.interpolate(p32, scale_factor=2.0)], 1))
        p8 = self.merge8(torch.cat([self.side8(c8), functional.interpolate(p16, scale_factor=2.0)], 1))
        n16 = self.out16(torch.cat([self.down16(p8), p16], 1))
        n32 = self.out32(torch.cat([self.down32(n16), p32], 1))
        return self.heads[0](p8), self.heads[1](n16), self.heads[2](n32)


def demo_detector() -> nn.Module:
    """The demo's detector in evaluation mode, not yet trained."""
    return DemoDetector().eval()
