"""The one table of source kinds."""

from __future__ import annotations

import importlib

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded

# key of [model]: module with a function ``load(recipe) -> Loaded``
KINDS: dict[str, str] = {
    "factory": "edgesmith.converters.sources.factory",
    "program": "edgesmith.converters.sources.program",
    "torchscript": "edgesmith.converters.sources.torchscript",
    "onnx": "edgesmith.converters.sources.onnx_file",
    "zoo": "edgesmith.converters.sources.zoo",
}


def load_source(recipe: Recipe) -> Loaded:
    """The trained model that a recipe names.

    Raises:
        SourceError: it cannot be loaded; the message says what to change.
    """
    loaded = importlib.import_module(KINDS[recipe.model.source]).load(recipe)
    assert isinstance(loaded, Loaded)
    return loaded
