"""CornerNet, CornerNet-Squeeze and CenterNet: an hourglass, corner pooling, heatmaps. Small."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import Block, output

CLASSES = 4
WIDTH = 32
RARE = -2.5


class Fire(nn.Module):
    """SqueezeNet's fire module with a depthwise branch and a shortcut, as CornerNet-Squeeze has it."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        half = c_out // 2
        self.squeeze = nn.Sequential(nn.Conv2d(c_in, half, 1, bias=False), nn.BatchNorm2d(half))
        self.wide = nn.Conv2d(half, half, 1, stride, bias=False)
        self.deep = nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        thin = self.squeeze(x)
        y = self.norm(torch.cat((self.wide(thin), self.deep(thin)), 1))
        return torch.relu(x + y if self.skip else y)


class Bottleneck(nn.Module):
    """A residual block whose shortcut follows its stride and width."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Block(c_in, c_out, 3, stride, nn.ReLU),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        plain = stride == 1 and c_in == c_out
        self.shortcut = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Hourglass(nn.Module):
    """Down and up again, with what was seen on the way added: Newell et al., 2016."""

    def __init__(self, depth: int, kind: type[nn.Module]) -> None:
        super().__init__()
        self.beside = kind(WIDTH, WIDTH)
        self.down = kind(WIDTH, WIDTH, 2)
        self.inner = Hourglass(depth - 1, kind) if depth > 1 else kind(WIDTH, WIDTH)
        self.up = kind(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        below = self.up(self.inner(self.down(x)))
        raised = nn.functional.interpolate(below, scale_factor=2.0, mode="nearest")
        kept: Tensor = self.beside(x)
        return kept + raised


def running_max(x: Tensor, dim: int, *, backwards: bool) -> Tensor:
    """The largest value so far along an axis, from its beginning or from its end: corner pooling."""
    if backwards:
        return x.flip(dim).cummax(dim).values.flip(dim)
    return x.cummax(dim).values


class CornerPool(nn.Module):
    """Where a corner lies there is no object yet: it looks along both axes for the box's edges."""

    def __init__(self, *, top_left: bool) -> None:
        super().__init__()
        self.top_left = top_left
        self.rows, self.columns = Block(WIDTH, WIDTH, act=nn.ReLU), Block(WIDTH, WIDTH, act=nn.ReLU)
        self.joined = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.beside = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        down = running_max(self.rows(x), 2, backwards=self.top_left)
        across = running_max(self.columns(x), 3, backwards=self.top_left)
        return torch.relu(self.joined(down + across) + self.beside(x))


class Corner(nn.Module):
    """Pooling for one corner, then its heatmap, embedding and offset."""

    def __init__(self, *, top_left: bool) -> None:
        super().__init__()
        self.pool = CornerPool(top_left=top_left)
        self.heat = output(WIDTH, CLASSES, bias=RARE)
        self.tag = output(WIDTH, 1, gain=0.2)
        self.offset = output(WIDTH, 2, bias=0.5, gain=0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = self.pool(x)
        return self.heat(pooled), self.tag(pooled), self.offset(pooled)


class CornerNet(nn.Module):
    """The stem at stride 4, an hourglass, both corners; six maps in the authors' order."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 16, 7, 2, nn.ReLU), kind(16, WIDTH, 2))
        self.hourglass = Hourglass(3, kind)
        self.first, self.second = Corner(top_left=True), Corner(top_left=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.hourglass(self.stem(images))
        first, second = self.first(features), self.second(features)
        return tuple(part for pair in zip(first, second, strict=True) for part in pair)


class CenterNet(nn.Module):
    """An hourglass and three maps by name, as the authors return them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 16, 7, 2, nn.ReLU), Bottleneck(16, WIDTH, 2))
        self.hourglass = nn.Sequential(Hourglass(3, Bottleneck), Block(WIDTH, WIDTH, act=nn.ReLU))
        self.hm = output(WIDTH, CLASSES, bias=RARE)
        self.wh = output(WIDTH, 2, bias=6.0, gain=2.0)
        self.reg = output(WIDTH, 2, bias=0.5, gain=0.2)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        features = self.hourglass(self.stem(images))
        return [{"hm": self.hm(features), "wh": self.wh(features), "reg": self.reg(features)}]


def cornernet() -> nn.Module:
    return CornerNet(Bottleneck)


def cornernet_squeeze() -> nn.Module:
    return CornerNet(Fire)


def centernet() -> nn.Module:
    return CenterNet()
