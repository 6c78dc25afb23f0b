"""What CPUs run of a quantized bundle: float, or the uint8 graph where it is as good and faster."""

from __future__ import annotations

from collections.abc import Sequence

from edgesmith.converters.precision.budget import budget_of
from edgesmith.converters.precision.companions import inside
from edgesmith.converters.precision.decide import Decision, Judge
from edgesmith.converters.precision.trial import Floats, Workbench
from edgesmith.converters.precision.x86_variant import x86_variant
from edgesmith.converters.recipe import Recipe
from edgesmith.sdk.backends.choose import X86
from edgesmith.sdk.backends.processor import has_integer_products


def take_x86(
    recipe: Recipe, bench: Workbench, decision: Decision, calibration: Sequence[Floats], judge: Judge | None
) -> str:
    """Add the variant ``x86`` to the decision where it wins; a sentence that says what CPUs run, and why.

    Without VNNI nothing is tried: what a race there shows is not true of a CPU that has it, and the runtime
    takes the variant on such a CPU alone.
    """
    wanted = recipe.target.variants
    if decision.signed is None:
        return "CPUs run float32: nothing is in INT8."
    if wanted != "auto" and X86 not in wanted:
        return "CPUs run float32: target.variants leaves x86 out."
    if not has_integer_products():
        return (
            "CPUs run float32: this machine's has no VNNI, so a race here would say nothing of one that has "
            "it. Convert on a CPU with VNNI to have the uint8 graph measured."
        )
    found = x86_variant(bench, decision.signed, calibration, vnni=True)
    if not found.wins:
        return f"CPUs run float32, not the uint8 graph: {found.reason}."
    assert found.race is not None  # a graph wins by its race
    speed = f"{found.race.ratio:.2f} times float's time here ({found.race.x86_ms:.2f} ms)"
    verdict = judge({X86: found.graph})[X86] if judge is not None else None
    if verdict is not None and not inside(verdict, recipe):
        return (
            f"CPUs run float32: the uint8 graph takes {speed}, and loses {verdict.lost}, "
            f"past the budget of {budget_of(recipe):g}."
        )
    if verdict is not None:
        decision.verdicts[X86] = verdict
    decision.graphs[X86] = found.graph
    return f"CPUs with VNNI run the uint8 graph: {speed}. Others run float32."
