"""How much accuracy a recipe lets go."""

from __future__ import annotations

from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.metrics import usual_budget


def budget_of(recipe: Recipe) -> float:
    """``precision.max_drop``, else what is usual: 0.5 points, 0.3 dB where PSNR is measured."""
    if recipe.precision.max_drop is not None:
        return recipe.precision.max_drop
    evaluation = recipe.data.evaluation
    return usual_budget(evaluation.metric if evaluation is not None else None)
