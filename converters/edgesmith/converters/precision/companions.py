"""The graphs that travel beside the chosen one, so that a board can race them: FP16, and plain INT8.

A layer's INT8 kernel may be worth more on a board than the accuracy that a multiplication and an addition in
front of the rounding bring: TensorRT can then write INT8 straight from the kernel of the layer before. Which
is faster only the board knows; here each is measured, and travels only inside the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from edgesmith.converters.precision.budget import budget_of
from edgesmith.converters.precision.decide import Decider, Decision, in_fp16
from edgesmith.converters.precision.search import plain_way
from edgesmith.converters.precision.trial import Trial
from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.errors import AccuracyBudgetError
from edgesmith.sdk.evaluate.paired import Paired

HALF, PLAIN = "fp16", "int8-plain"
NAMES = (HALF, PLAIN)
# Repairs that put arithmetic in front of a rounding: without them a way is plain.
ARITHMETIC = frozenset({"factor", "offset", "smooth"})


@dataclass(eq=False)
class Companions:
    """Graphs by variant name, and the plain trial (None where nothing is quantized)."""

    graphs: dict[str, onnx.ModelProto] = field(default_factory=dict)
    plain: Trial | None = None


def companions(recipe: Recipe, decider: Decider) -> Companions:
    """Make what the recipe's mode and ``target.variants`` ask for."""
    if recipe.precision.mode == "fp16":
        return Companions()
    wanted = recipe.target.variants
    # FP16 is what the chosen graph is compared with in any case.
    found = Companions({HALF: in_fp16(decider.bench.exact, decider.bench.table).graph})
    if wanted == "auto" or PLAIN in wanted or recipe.target.dla is not None:
        found.plain = decider.bench.try_way(plain_way(method=recipe.precision.method))
        found.graphs[PLAIN] = decider.finish(found.plain.graph).graph
    return found


def take_along(recipe: Recipe, decision: Decision, beside: Companions) -> None:
    """Add to the decision's graphs those that travel with it: inside the budget, and not its twin.

    Raises:
        AccuracyBudgetError: the recipe names a variant that is past the budget.
    """
    wanted = recipe.target.variants
    for name, graph in beside.graphs.items():
        if name in decision.graphs or (wanted != "auto" and name not in wanted):
            continue
        if name == PLAIN and _plain_already(decision):
            continue
        found = decision.verdicts.get(name)
        if found is None or inside(found, recipe):
            decision.graphs[name] = graph
        elif wanted != "auto":
            raise AccuracyBudgetError(
                f"target.variants names {name}, which loses {found.lost}; the "
                f"budget is {budget_of(recipe):g}: take it out of the list, or raise "
                "precision.max_drop",
                drop=found.drop,
                budget=budget_of(recipe),
            )


def inside(found: Paired, recipe: Recipe) -> bool:
    """Whether a graph's drop is one that the recipe takes."""
    return recipe.precision.accept_drop or found.drop <= budget_of(recipe)


def _plain_already(decision: Decision) -> bool:
    return decision.trial is not None and not decision.trial.way.repairs & ARITHMETIC
