"""The losses of a student beside its teacher, by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from edgesmith.converters.distill.losses import Hint, attention_loss, detection_losses, logits_loss
from edgesmith.converters.distill.teacher import Teacher
from edgesmith.converters.recipe_training import DistillTable
from edgesmith.converters.training.images import UNLABELLED
from edgesmith.converters.training.learner import LOSS, Learner, Losses
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Task


class FromTeacher(Learner):
    """A student with canonical outputs that learns from a teacher's.

    Args:
        student: images to a tuple of tensors; the network inside it is what learns.
        network: that network, for the layers that ``settings.features`` names.
        teacher: gives the answers that are wanted.
        task: says what the outputs are.
        settings: temperature, weights, pairs of layers.
        labelled: whether there are labels.
        example: one input ``(1, C, H, W)``, run through both to see the widths of the layers.
    """

    def __init__(
        self,
        student: nn.Module,
        network: nn.Module,
        teacher: Teacher,
        *,
        task: Task,
        settings: DistillTable,
        labelled: bool,
        example: torch.Tensor,
        frozen_norm: bool = False,
    ) -> None:
        super().__init__(student, frozen_norm=frozen_norm)
        self._teacher = (teacher,)  # in a tuple: no part of the state, nor of what learns
        self.task, self.settings, self.labelled = task, settings, labelled
        self._maps = (
            _Maps(network, teacher.network, settings.features, "distill.features")
            if settings.features
            else None
        )
        self._check(example)
        self.hints = nn.ModuleList(self._hints(example))

    def place(self, device: torch.device) -> None:
        self._teacher[0].place(device)

    def close(self) -> None:
        if self._maps is not None:
            self._maps.close()

    def answers(self, images: torch.Tensor) -> torch.Tensor | None:
        return self.student(images)[0] if self.task == "classify" else None

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Losses:
        with torch.no_grad():
            known = self._teacher[0](images)
        wanted = self._maps.teacher() if self._maps is not None else []
        outputs = self.student(images)
        losses = self._answer_losses(outputs, known, labels)
        if self._maps is not None:
            losses["features"] = self.settings.feature_weight * self._feature_loss(
                self._maps.student(), wanted
            )
        losses[LOSS] = torch.stack(list(losses.values())).sum()
        return losses

    def _answer_losses(
        self, outputs: tuple[torch.Tensor, ...], known: tuple[torch.Tensor, ...], labels: torch.Tensor
    ) -> Losses:
        s = self.settings
        if self.task == "detect":
            classes, boxes = detection_losses((outputs[0], outputs[1]), (known[0], known[1]))
            return {"classes": classes, "boxes": s.box_weight * boxes}
        if self.task == "tensor":
            return {
                "outputs": torch.stack([F.l1_loss(a, b) for a, b in zip(outputs, known, strict=True)]).sum()
            }
        share = s.labels if self.labelled else 0.0
        losses = {"teacher": (1 - share) * logits_loss(outputs[0], known[0], s.temperature)}
        if share:
            losses["labels"] = share * F.cross_entropy(outputs[0], labels, ignore_index=UNLABELLED)
        return losses

    def _feature_loss(self, got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        each: list[Callable[..., torch.Tensor]] = list(self.hints) or [attention_loss] * len(got)
        return torch.stack([loss(a, b) for loss, a, b in zip(each, got, wanted, strict=True)]).mean()

    def _check(self, example: torch.Tensor) -> None:
        """Teacher and student must speak of the same things."""
        self.student.eval()
        with torch.no_grad():
            outputs, known = self.student(example), self._teacher[0](example)
        mine, its = [tuple(o.shape) for o in outputs], [tuple(o.shape) for o in known]
        agree = mine == its
        if self.task == "detect":  # the number of boxes may differ, the classes may not
            agree = mine[1][2] == its[1][2]
        if not agree:
            raise RecipeError(
                f"recipe: distill.teacher: the teacher gives {its}, the student {mine}: they must have the "
                "same classes and outputs",
                key="distill.teacher",
            )

    def _hints(self, example: torch.Tensor) -> list[Hint]:
        if self._maps is None:
            return []
        with torch.no_grad():
            self._teacher[0](example)
            wanted = self._maps.teacher()
            self.student(example)
            got = self._maps.student()
        for pair, a, b in zip(self.settings.features, got, wanted, strict=True):
            if a.ndim != 4 or b.ndim != 4:
                raise RecipeError(
                    f"recipe: distill.features: {pair}: the layers give {tuple(a.shape)} and "
                    f"{tuple(b.shape)}; name layers that give maps (N, C, H, W)",
                    key="distill.features",
                )
        if self.settings.feature_loss == "attention":
            return []
        return [Hint(a.shape[1], b.shape[1]) for a, b in zip(got, wanted, strict=True)]


class _Maps:
    """What the named layers of student and teacher gave in the last run."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, pairs: Sequence[str], key: str) -> None:
        if teacher is None:
            raise RecipeError(
                f"recipe: {key}: a bundle shows no inner layers: give the teacher as a module, or take the "
                "key out",
                key=key,
            )
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._count = len(pairs)
        self._hooks: list[RemovableHandle] = []
        for number, pair in enumerate(pairs):
            mine, _, its = pair.partition("=")
            for side, module, name in (("student", student, mine), ("teacher", teacher, its or mine)):
                layers = dict(module.named_modules())
                if name not in layers:
                    raise RecipeError(
                        f"recipe: {key}: the {side} has no layer {name!r}; it has "
                        f"{', '.join(list(layers)[1:9])} ...",
                        key=key,
                    )
                self._hooks.append(layers[name].register_forward_hook(self._keep(side, number)))

    def _keep(self, side: str, number: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            self._kept[side, number] = output

        return keep

    def close(self) -> None:
        """Leave both networks as they were."""
        for hook in self._hooks:
            hook.remove()

    def student(self) -> list[torch.Tensor]:
        """Maps of the student's last run."""
        return [self._kept.pop(("student", number)) for number in range(self._count)]

    def teacher(self) -> list[torch.Tensor]:
        """Maps of the teacher's last run."""
        return [self._kept.pop(("teacher", number)) for number in range(self._count)]
