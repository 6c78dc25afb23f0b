"""``factory``: the user's own Python makes the module, a file fills it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded, import_attribute, search_path, sha256_of, told
from edgesmith.converters.sources.state_dict import fill, read_state_dict
from edgesmith.sdk.errors import SourceError


def load(recipe: Recipe) -> Loaded:
    """Call the factory and fill the module it returns.

    Raises:
        SourceError: the factory failed, or the weights do not fit.
    """
    reference, weights = recipe.model.factory, recipe.model.weights
    assert reference is not None
    assert weights is not None
    folders = [recipe.resolve(folder) for folder in recipe.model.python_path]
    module = make(reference, folders)
    return filled("factory", reference, module, recipe.resolve(weights))


def make(reference: str, folders: list[Path]) -> nn.Module:
    """The module that ``module:factory`` returns."""
    factory = import_attribute(reference, folders, "model.factory")
    if not callable(factory):
        raise SourceError(
            f"recipe: model.factory: {reference} is a {type(factory).__name__}, not a function or class"
        )
    try:
        with search_path(folders):
            module = factory()
    except (Exception, SystemExit) as error:
        raise SourceError(told(f"recipe: model.factory: {reference}() failed", error)) from error
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"recipe: model.factory: {reference}() returned a {type(module).__name__}, not a torch.nn.Module"
        )
    return module


def filled(kind: str, name: str, module: nn.Module, weights: Path) -> Loaded:
    """The module with a file's weights, ready to export."""
    state, notes = read_state_dict(weights)
    notes += fill(module, state, weights)
    return Loaded(
        kind=kind,
        name=f"{kind} {name} with {weights.name}",
        sha256=sha256_of(weights),
        module=module.eval().cpu().requires_grad_(False),
        notes=tuple(notes),
    )
