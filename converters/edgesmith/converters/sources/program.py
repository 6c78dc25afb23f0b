"""``program``: a ``.pt2`` file of :func:`torch.export.save`."""

from __future__ import annotations

import operator
import warnings

import torch
from torch import nn

from edgesmith.converters.recipe import Recipe
from edgesmith.converters.sources.base import Loaded, sha256_of
from edgesmith.sdk.errors import SourceError


def load(recipe: Recipe) -> Loaded:
    """Load an exported program.

    Raises:
        SourceError: the file is no exported program, or it was exported in training mode.
    """
    assert recipe.model.program is not None
    path = recipe.resolve(recipe.model.program)
    try:
        with warnings.catch_warnings():
            # Written by an older torch: said by torch as a warning, and parity is measured anyway.
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as error:
        # torch raises plain Exceptions of many kinds on files that it did not write.
        raise SourceError(
            f"{path}: cannot be read as an exported program ({str(error).strip().splitlines()[0]}); "
            "write it with torch.export.save(torch.export.export(model.eval(), (images,)), path)"
        ) from error
    _refuse_training(program, str(path))
    module: nn.Module = program.module()
    # An exported module refuses train() and eval(), since its mode is fixed; as a part of another
    # module it must bear the call. What it computes does not change.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    module.requires_grad_(False)
    return Loaded(kind="program", name=f"program {path.name}", sha256=sha256_of(path), module=module)


def _refuse_training(program: torch.export.ExportedProgram, path: str) -> None:
    """Batch norm and dropout behave differently in training, and the program has one of the two baked in."""
    training = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}
    for node in program.graph.nodes:
        name = str(node.target)
        at = training.get(name)
        if at is not None and len(node.args) > at and operator.truth(node.args[at]):
            raise SourceError(
                f"{path}: exported in training mode ({name} at {node.name}); "
                "call model.eval() before torch.export.export"
            )
