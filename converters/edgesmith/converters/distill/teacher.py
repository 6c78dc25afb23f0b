"""Teachers: a module, an exported program, or the float graph of a bundle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch
from torch import nn

from edgesmith.converters.adapters import Adapted, adapt
from edgesmith.converters.recipe import Model, Recipe
from edgesmith.converters.recipe_training import TeacherTable
from edgesmith.converters.sources import load_source
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Nms


class Teacher(Protocol):
    # A protocol: a graph in onnxruntime is no torch module, and need not act as one.
    """Gives canonical outputs for a batch of images ``(N, C, H, W)``."""

    def __call__(self, images: torch.Tensor, /) -> tuple[torch.Tensor, ...]:
        """The outputs, on the device of ``images``."""

    def place(self, device: torch.device) -> None:
        """Move to where the student is."""

    @property
    def network(self) -> nn.Module | None:
        """The module whose inner maps can be looked at; None for a graph."""


class ModuleTeacher:
    """A module with its head, in eval mode."""

    def __init__(self, adapted: nn.Module, network: nn.Module) -> None:
        self._adapted = adapted.eval().requires_grad_(False)
        self.network: nn.Module | None = network

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self._adapted(images)
        return tuple(found)

    def place(self, device: torch.device) -> None:
        self._adapted.to(device)


class GraphTeacher:
    """The float graph of a bundle in onnxruntime; a graph of a fixed batch gets images in its portions."""

    network: nn.Module | None = None

    def __init__(self, path: Path, recipe: Recipe) -> None:
        from edgesmith.sdk.models import load_model

        self._model = load_model(path, backend="cpu", variant="float")
        manifest = self._model.bundle.manifest
        if manifest.preprocess != recipe.preprocess():
            raise RecipeError(
                f"recipe: distill.teacher.bundle: {path.name} prepares its input otherwise than [input]; "
                "teacher and student have to see the same tensor",
                key="distill.teacher.bundle",
            )
        if manifest.task != recipe.task or (manifest.nms is not None and manifest.nms.where == "graph"):
            what = f"is for {manifest.task}" if manifest.task != recipe.task else "has the suppression in it"
            raise RecipeError(
                f"recipe: distill.teacher.bundle: {path.name} {what}, which cannot teach this student",
                key="distill.teacher.bundle",
            )
        self._names = [spec.name for spec in manifest.outputs]
        self._most = manifest.batch.max

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        array = images.detach().cpu().numpy()
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, len(array), self._most):
            portion = array[start : start + self._most]
            filled = self._filled(portion)
            outputs = self._model.backend.run(np.ascontiguousarray(filled))
            parts.append({name: np.array(outputs[name][: len(portion)]) for name in self._names})
        return tuple(
            torch.from_numpy(np.concatenate([part[name] for part in parts])).to(images.device)
            for name in self._names
        )

    def _filled(self, portion: np.ndarray) -> np.ndarray:
        least = self._model.bundle.manifest.batch.min
        missing = least - len(portion)
        return portion if missing <= 0 else np.concatenate([portion, np.repeat(portion[-1:], missing, 0)])

    def place(self, device: torch.device) -> None:
        """It stays on the CPU."""


def host_nms(recipe: Recipe) -> Nms | None:
    """The recipe's suppression, outside of the graph: what is taught are the candidates."""
    found = recipe.nms_spec()
    return None if found is None else msgspec.structs.replace(found, where="host")


def canonical(
    recipe: Recipe, module: nn.Module, example: torch.Tensor, model: Model | None = None
) -> nn.Module:
    """The module with the head of the recipe's (or another) ``[model]``: images to a tuple of tensors."""
    return canonical_model(recipe, module, example, model).module


def canonical_model(
    recipe: Recipe, module: nn.Module, example: torch.Tensor, model: Model | None = None
) -> Adapted:
    """The same with the names of the outputs."""
    model = model or recipe.model
    return adapt(
        module,
        model.head,
        example=example,
        task=recipe.task,
        options=model.head_options,
        nms=host_nms(recipe),
        names=len(recipe.names()) or None,
        python_path=[recipe.resolve(folder) for folder in model.python_path],
    )


def teacher_of(recipe: Recipe, original: nn.Module, example: torch.Tensor) -> Teacher:
    """The teacher that ``distill.teacher`` names; without it the model as it was brought.

    Args:
        recipe: what is asked.
        original: the model as it was brought; it is copied.
        example: one input ``(1, C, H, W)``.

    Raises:
        RecipeError: the teacher does not go with the recipe's input or task.
        SourceError: it cannot be loaded.
    """
    given = recipe.distill.teacher if recipe.distill is not None else None
    if given is None:
        network = copy.deepcopy(original)
        return ModuleTeacher(canonical(recipe, network, example), network)
    if given.bundle is not None:
        return GraphTeacher(recipe.resolve(given.bundle), recipe)
    model = _model_table(given)
    loaded = load_source(msgspec.structs.replace(recipe, model=model))
    assert loaded.module is not None  # the sources that a teacher may have all give modules
    return ModuleTeacher(canonical(recipe, loaded.module, example, model), loaded.module)


def _model_table(given: TeacherTable) -> Model:
    """The teacher's table as one of ``[model]``."""
    try:
        return Model(
            factory=given.factory,
            program=given.program,
            zoo=given.zoo,
            weights=given.weights,
            python_path=given.python_path,
            head=given.head,
            head_options=given.head_options,
        )
    except ValueError as error:
        raise RecipeError(f"recipe: distill.teacher: {error}", key="distill.teacher") from error
