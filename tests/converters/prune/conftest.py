"""Small networks with every kind of coupling."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def block(wide: int, out: int, *, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(wide, out, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class Coupled(nn.Module):
    """A residual sum, a concatenation, a depthwise and a grouped convolution, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.inner = block(16, 24)
        self.back = nn.Conv2d(24, 16, 1)
        self.left, self.right = block(16, 8), block(16, 12)
        self.depthwise = block(20, 20, groups=20)
        self.point = block(20, 12)
        self.grouped = block(12, 16, groups=2)
        self.up = nn.ConvTranspose2d(16, 10, 2, 2)
        self.classifier = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.back(self.inner(x)))
        x = self.depthwise(torch.cat((self.left(x), self.right(x)), 1))
        x = F.relu(self.up(self.grouped(self.point(x))))
        found: torch.Tensor = self.classifier(x.mean((2, 3)))
        return found


class Padded(nn.Module):
    """A shortcut that pads channels, as CIFAR's ResNets have it, and one layer that it does not concern."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.out = block(3, 8), block(8, 16), nn.Conv2d(16, 16, 1)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(self.out(self.inner(x)) + F.pad(x, (0, 0, 0, 0, 4, 4)))
        found: torch.Tensor = self.classifier(x.mean((2, 3)))
        return found


class Attention(nn.Module):
    """One block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.second(F.gelu(self.first(x)))
        found: torch.Tensor = self.head(x.mean(1))
        return found


def filled(network: nn.Module) -> nn.Module:
    """Seeded weights, norms with statistics that matter."""
    random = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if value.dtype == torch.float32:
            noise = torch.randn(value.shape, generator=random)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.7 + 0.3 * noise)
    return network.eval().requires_grad_(False)


@pytest.fixture
def coupled() -> nn.Module:
    return filled(Coupled())


@pytest.fixture
def padded() -> nn.Module:
    return filled(Padded())


@pytest.fixture
def attention() -> nn.Module:
    return filled(Attention())


@pytest.fixture
def image() -> torch.Tensor:
    """One input (1, 3, 16, 16)."""
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
