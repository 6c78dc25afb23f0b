"""``zoo``: an architecture of torchvision or timm by name, filled from a file. Nothing is downloaded."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded
from edgesmith.converters.sources.factory import filled
from edgesmith.sdk.errors import MissingExtraError, SourceError

# zoo: (module, function that lists names, the call that makes a module, the one for trained weights)
ZOOS: dict[str, tuple[str, str, Callable[[Any, str], Any], str]] = {
    "torchvision": (
        "torchvision.models", "list_models",
        lambda zoo, name: zoo.get_model(name, weights=None),
        "torchvision.models.get_model({name!r}, weights='DEFAULT')",
    ),
    "timm": (
        "timm", "list_models",
        lambda zoo, name: zoo.create_model(name, pretrained=False, exportable=True),
        "timm.create_model({name!r}, pretrained=True)",
    ),
}  # fmt: skip


def load(recipe: Recipe) -> Loaded:
    """Make the architecture and fill it.

    Raises:
        SourceError: there is no such architecture, or no weights are given.
        MissingExtraError: the zoo is not installed.
    """
    reference = recipe.model.zoo
    assert reference is not None
    zoo, _, name = reference.partition(":")
    if zoo not in ZOOS or not name:
        raise SourceError(f"recipe: model.zoo: {reference!r} must read torchvision:NAME or timm:NAME")
    module_name, lister, make, trained = ZOOS[zoo]
    library = _library(module_name, zoo)
    names = getattr(library, lister)()
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        said = f"; near it: {', '.join(near)}" if near else ""
        raise SourceError(f"recipe: model.zoo: {zoo} has no model {name!r}{said}")
    if recipe.model.weights is None:
        fetch = f"import torch, {zoo}; torch.save({trained.format(name=name)}.state_dict(), '{name}.pt')"
        raise SourceError(
            f"recipe: model.weights: {reference} needs a weights file: untrained weights make no model, and "
            f'nothing is downloaded here. Fetch trained ones once: python -c "{fetch}"'
        )
    module = make(library, name)
    assert isinstance(module, nn.Module)
    return filled("zoo", reference, module, recipe.resolve(recipe.model.weights))


def _library(module_name: str, zoo: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"model.zoo needs the package {zoo}: pip install {zoo}", extra="dev"
        ) from error
