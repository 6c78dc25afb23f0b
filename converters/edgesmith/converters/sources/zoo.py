"""``zoo``: an architecture of torchvision or timm by name, filled from a file. Nothing is downloaded."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import nn

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded
from edgesmith.converters.sources.factory import filled
from edgesmith.converters.sources.state_dict import read_state_dict
from edgesmith.sdk.errors import MissingExtraError, SourceError

Keys = Collection[str]
# Parts of torchvision's networks that are only there when they are asked for: the argument, and how the
# keys of their weights begin.
_OPTIONAL = {"aux_loss": ("aux_classifier.",), "aux_logits": ("aux1.", "aux2.", "AuxLogits.")}


class Zoo(NamedTuple):
    """A library of architectures: its module, the call that makes one, and the one for trained weights."""

    module: str
    make: Callable[[Any, str, Keys], Any]
    trained: str


def _torchvision(library: Any, name: str, keys: Keys) -> Any:
    builder = library.get_model_builder(name)
    arguments: dict[str, Any] = {"weights": None}
    known = inspect.signature(builder).parameters
    if "weights_backbone" in known:
        arguments["weights_backbone"] = None  # would be downloaded
    for argument, prefixes in _OPTIONAL.items():
        if argument in known or (argument == "aux_logits" and builder.__name__ in _WITH_AUX):
            arguments[argument] = any(key.startswith(prefixes) for key in keys)
    if builder.__name__ in _WITH_AUX:
        arguments["init_weights"] = False  # takes a minute, and the file has them
    return builder(**arguments)


def _timm(library: Any, name: str, keys: Keys) -> Any:
    return library.create_model(name, pretrained=False, exportable=True)


_WITH_AUX = ("googlenet", "inception_v3")
ZOOS: dict[str, Zoo] = {
    "torchvision": Zoo(
        "torchvision.models", _torchvision, "torchvision.models.get_model({name!r}, weights='DEFAULT')"
    ),
    "timm": Zoo("timm", _timm, "timm.create_model({name!r}, pretrained=True)"),
}


def load(recipe: Recipe) -> Loaded:
    """Make the architecture and fill it.

    Raises:
        SourceError: there is no such architecture, or no weights are given.
        MissingExtraError: the zoo is not installed.
    """
    reference = recipe.model.zoo
    assert reference is not None
    zoo, name, library = found(reference)
    if recipe.model.weights is None:
        raise SourceError(
            f"recipe: model.weights: {reference} needs a weights file: untrained weights make no model, and "
            f"nothing is downloaded here. Fetch trained ones once: {how_to_fetch(zoo, name)}"
        )
    weights = recipe.resolve(recipe.model.weights)
    keys, _ = read_state_dict(weights)
    module = ZOOS[zoo].make(library, name, keys)
    assert isinstance(module, nn.Module)
    return filled("zoo", reference, module, weights)


def found(reference: str) -> tuple[str, str, Any]:
    """Zoo, name and library of ``torchvision:NAME`` or ``timm:NAME``.

    Raises:
        SourceError: there is no such architecture.
        MissingExtraError: the zoo is not installed.
    """
    zoo, _, name = reference.partition(":")
    if zoo not in ZOOS or not name:
        raise SourceError(f"recipe: model.zoo: {reference!r} must read torchvision:NAME or timm:NAME")
    library = _library(ZOOS[zoo].module, zoo)
    names = library.list_models()
    if name.partition(".")[0] not in names:  # timm names the training behind a dot
        near = difflib.get_close_matches(name, names, 3)
        said = f"; near it: {', '.join(near)}" if near else ""
        raise SourceError(f"recipe: model.zoo: {zoo} has no model {name!r}{said}")
    return zoo, name, library


def how_to_fetch(zoo: str, name: str) -> str:
    """The command that makes a file of the trained weights."""
    call = ZOOS[zoo].trained.format(name=name)
    code = f"import torch, {zoo}; torch.save({call}.state_dict(), '{name}.pt')"
    return f'python -c "{code}"'


def _library(module_name: str, zoo: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"model.zoo needs the package {zoo}: pip install {zoo}", extra="dev"
        ) from error
