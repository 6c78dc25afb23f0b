"""The distillation stage: a student, pruned or as it was brought, beside its teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edgesmith.converters.distill.learner import FromTeacher
from edgesmith.converters.distill.teacher import canonical, teacher_of
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.training.curves import Curves
from edgesmith.converters.training.images import TrainingImages
from edgesmith.converters.training.learner import fixed, trainable
from edgesmith.converters.training.loop import Told, Trainer


def distill(
    recipe: Recipe,
    network: nn.Module,
    original: nn.Module,
    data: TrainingImages,
    example: torch.Tensor,
    *,
    folder: Path,
    key: str,
    tell: Callable[[str], None],
    masks: Callable[[], None] | None = None,
) -> Curves:
    """Train a network, in place, by the recipe's ``[distill]``.

    Args:
        recipe: with a ``distill`` table.
        network: the student.
        original: the model as it was brought, the teacher where the recipe names no other.
        data: training images, with labels or without.
        example: one input ``(1, C, H, W)``.
        folder: for checkpoints.
        key: names the stage.
        tell: told in words where it stands.
        masks: of a sparse student.

    Raises:
        RecipeError: the teacher does not go with the student.
        SourceError: it cannot be loaded.
    """
    given = recipe.distill
    assert given is not None
    learner = FromTeacher(
        canonical(recipe, network, example),
        network,
        teacher_of(recipe, original, example),
        task=recipe.task,
        settings=given,
        labelled=data.labels is not None,
        example=example,
        frozen_norm=given.train.norm == "frozen",
    )
    trainable(network)
    learner.masks = masks

    def told(where: Told) -> None:
        tell(f"distill: {where}")

    trainer = Trainer(
        learner,
        data,
        recipe.preprocess(),
        given.train,
        folder=folder,
        key=key,
        seed=recipe.data.seed,
        told=told,
    )
    curves = trainer.fit()
    fixed(network)
    return curves
