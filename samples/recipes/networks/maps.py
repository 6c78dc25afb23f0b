"""Networks whose output is a picture: segmentation (FCN, DeepLabv3, U-Net), super-resolution, denoising."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .blocks import Block

CLASSES = 5


class UNet(nn.Module):
    """Down and up with what was seen on the way joined (Ronneberger et al., 2015)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(Block(a, b, act=nn.ReLU), Block(b, b, act=nn.ReLU))
            for a, b in zip(ins, widths, strict=True)
        )
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(Block(2 * a, a, act=nn.ReLU) for a, _ in pairs)
        self.last = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, seen = images, []
        for number, step in enumerate(self.down):
            x = step(x if number == 0 else nn.functional.max_pool2d(x, 2))
            seen.append(x)
        for up, join, beside in zip(self.up, self.join, seen[-2::-1], strict=True):
            x = join(torch.cat((up(x), beside), 1))
        logits: Tensor = self.last(x)
        return logits


class Espcn(nn.Module):
    """Twice the resolution by a sub-pixel convolution (Shi et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 16, 3, padding=1), nn.Tanh(),
            nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, luma: Tensor) -> dict[str, Tensor]:
        return {"upscaled": self.body(luma)}


class DnCnn(nn.Module):
    """The noise is predicted and taken away (Zhang et al., 2017)."""

    def __init__(self, depth: int = 5, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
            *(Block(width, width, act=nn.ReLU) for _ in range(depth)),
            nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, noisy: Tensor) -> dict[str, Tensor]:
        return {"denoised": noisy - self.body(noisy)}


class FirstOutput(nn.Module):
    """torchvision's segmenters give a dict with an auxiliary output: the first entry alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)["out"]
        return logits


def unet() -> nn.Module:
    return UNet()


def espcn() -> nn.Module:
    return Espcn()


def dncnn() -> nn.Module:
    return DnCnn()


def fcn() -> nn.Module:
    from torchvision.models.segmentation import fcn_resnet50

    return FirstOutput(fcn_resnet50(weights=None, weights_backbone=None, num_classes=21))


def deeplabv3() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return FirstOutput(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21))
