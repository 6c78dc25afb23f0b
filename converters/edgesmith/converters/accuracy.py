"""Accuracy of a bundle as a user would open it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.converters.recipe import Recipe

if TYPE_CHECKING:
    from edgesmith.sdk.evaluate import Evaluation
    from edgesmith.sdk.manifest import Manifest


def measured_bundle(
    recipe: Recipe, path: Path, manifest: Manifest, members: Mapping[str, bytes]
) -> Evaluation:
    """Write a bundle to a temporary file, measure it on the recipe's labelled images, and delete it.

    Args:
        recipe: with ``data.evaluation``.
        path: the temporary file.
        manifest, members: what the bundle holds.

    Raises:
        DataError: the images or labels cannot be read.
    """
    from edgesmith.converters.precision.stage import evaluation_of
    from edgesmith.sdk.bundle import write_bundle
    from edgesmith.sdk.evaluate import evaluate
    from edgesmith.sdk.models import TASKS

    data = evaluation_of(recipe)
    assert data is not None  # the caller measures only where the recipe has labelled images
    try:
        write_bundle(path, manifest, members)
        with TASKS[recipe.task].load(path, backend="cpu") as model:
            return evaluate(model, data)
    finally:
        path.unlink(missing_ok=True)
