"""What is trained: a network together with its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from edgesmith.converters.training.images import UNLABELLED

Losses = dict[str, torch.Tensor]
LOSS = "loss"  # the sum that is minimised


class Learner(nn.Module, ABC):
    """A network ``student`` with a loss; what else learns with it (projections, scales) is a part of it too.

    ``frozen_norm`` keeps BatchNorm's statistics as they are.
    """

    def __init__(self, student: nn.Module, *, frozen_norm: bool = False) -> None:
        super().__init__()
        self.student = student
        self.frozen_norm = frozen_norm
        self.masks: Callable[[], None] | None = None

    @abstractmethod
    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Losses:
        """Losses by name, their sum under ``loss``.

        Args:
            images: ``(N, C, H, W)`` float32.
            labels: ``(N,)`` class indices, -1 where there is none.
        """

    def answers(self, images: torch.Tensor) -> torch.Tensor | None:
        """Logits ``(N, C)``; None for what is not a classifier."""
        found = self.student(images)
        return found if isinstance(found, torch.Tensor) and found.ndim == 2 else None

    def after_step(self) -> None:
        """What has to hold after every step of the optimizer: masks of a sparse network."""
        if self.masks is not None:
            self.masks()

    def place(self, device: torch.device) -> None:
        """Move what is no part of the state (a teacher) to where the student is."""

    def close(self) -> None:
        """Take off the network what was put on it for training (hooks)."""

    def parameter_groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """Parameters by rate and decay: vectors (biases, norms, scales) take no weight decay."""
        wide = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        narrow = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": wide, "lr": rate, "weight_decay": decay}]
        groups.append({"params": narrow, "lr": rate, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if self.frozen_norm:
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class FromLabels(Learner):
    """A classifier that learns from labels alone (cross-entropy)."""

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Losses:
        logits = self.student(images)
        return {LOSS: F.cross_entropy(logits, labels, ignore_index=UNLABELLED)}


def trainable(module: nn.Module) -> nn.Module:
    """Let every parameter of floats learn again: a loaded model has them fixed."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return module


def fixed(module: nn.Module) -> nn.Module:
    """Ready to export: in eval mode, on the CPU, without gradients."""
    return module.eval().cpu().requires_grad_(False)
