"""The pruning stage: find, rank, cut until the target is met, tune; 2:4 sparsity after it."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from torch import nn
from torch.nn import functional as F

from edgesmith.converters.cost import (
    estimable,
    float_graph,
    latency_share,
    macs_of,
    parameters_of,
    roofline_ms,
)
from edgesmith.converters.distill.learner import FromTeacher
from edgesmith.converters.distill.teacher import ModuleTeacher, canonical
from edgesmith.converters.prune.groups import Found, cut, find_groups
from edgesmith.converters.prune.importance import NEEDS_IMAGES, Worth, importances
from edgesmith.converters.prune.plan import Gone, Plan, meet, widths
from edgesmith.converters.prune.sparse import Masks, eligible, sparsify
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.recipe_training import DistillTable, PruneTable, TrainTable
from edgesmith.converters.report.compression import KeptWhole, SparseLayer, Width
from edgesmith.converters.training.curves import Curves
from edgesmith.converters.training.images import Samples, TrainingImages, in_order, loader
from edgesmith.converters.training.learner import FromLabels, Learner, fixed, trainable
from edgesmith.converters.training.loop import Told, Trainer
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.errors import RecipeError

log = logging.getLogger(__name__)
# Channels that fill a tile of the tensor cores, by number format.
STEPS = {"int8": 32, "fp16": 8, "fp32": 8}
Tell = Callable[[str], None]


@dataclass
class Pruned:
    """The smaller network, and what was done to it."""

    network: nn.Module
    note: str
    widths: tuple[Width, ...] = ()
    whole: tuple[KeptWhole, ...] = ()
    sparse: tuple[SparseLayer, ...] = ()
    curves: list[Curves] = field(default_factory=list)


def channel_step(recipe: Recipe) -> int:
    """Channels stay in steps of this: what was asked for, else what the device's tensor cores take."""
    assert recipe.prune is not None
    if recipe.prune.round_to != "auto":
        return recipe.prune.round_to
    known = profile(recipe.target.device).precisions
    wanted = (
        "int8" if recipe.precision.mode in ("auto", "int8") and recipe.target.device != "generic" else "fp16"
    )
    return STEPS[wanted if wanted in known else "fp32"]


def prune(
    recipe: Recipe,
    network: nn.Module,
    data: TrainingImages | None,
    example: torch.Tensor,
    *,
    folder: Path,
    key: str,
    tell: Tell,
) -> Pruned:
    """Prune a network by the recipe's ``[prune]``.

    Args:
        recipe: with a ``prune`` table.
        network: in eval mode; it is not changed.
        data: training images, where a part of the stage needs some.
        example: one input ``(1, C, H, W)`` of a real image.
        folder: for checkpoints of tuning.
        key: names the stage.
        tell: told in words where it stands.

    Raises:
        RecipeError: the target cannot be met, or images are missing that are needed.
    """
    given = recipe.prune
    assert given is not None
    original, current = network, copy.deepcopy(network).requires_grad_(False)
    result = Pruned(current, "")
    cost = _cost(recipe, given, original, example)
    left = 1.0
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    found = Found()
    if given.keep < 1:
        for number in range(given.steps):
            tell(f"find channels that can go (round {number + 1} of {given.steps})")
            found = find_groups(current, example, given.untouched)
            if not found.groups:
                raise RecipeError(
                    f"recipe: prune: no layer can lose channels: {_reasons(found)}", key="prune"
                )
            worth = _worth(recipe, given, current, found, data, example)
            keep = given.keep ** ((number + 1) / given.steps)
            tell(f"cut to {100 * keep:.0f} % of {given.target}")
            plan = _plan(recipe, given, current, found, worth, keep, cost, example)
            for name, wide, narrow in widths(current, found.groups, plan.gone):
                before.setdefault(name, wide)
                after[name] = narrow
            current, left = cut(current, example, plan.gone), plan.left
            last = number + 1 == given.steps
            if given.train is not None and not (last and given.sparsity is not None):
                tuned = msgspec.structs.replace(
                    given.train, epochs=max(1, round(given.train.epochs / given.steps))
                )
                place = folder / f"round-{number + 1}"
                place.mkdir(exist_ok=True)
                result.curves.append(
                    tune(recipe, current, original, data, example, tuned, place, f"{key}-{number}", tell)
                )
    if given.sparsity is not None:
        tell("2:4 sparsity")
        found = find_groups(current, example, given.untouched)
        _sparsify(recipe, result, current, original, found, data, example, folder, key, tell)
    result.network = fixed(current)
    result.widths = tuple(Width(layer=n, before=before[n], after=after[n]) for n in before)
    result.whole = tuple(KeptWhole(layer=w.layer, channels=w.channels, why=w.why) for w in found.whole)
    result.note = _note(given, left, len(result.sparse))
    return result


def _sparsify(
    recipe: Recipe,
    result: Pruned,
    current: nn.Module,
    original: nn.Module,
    found: Found,
    data: TrainingImages | None,
    example: torch.Tensor,
    folder: Path,
    key: str,
    tell: Tell,
) -> None:
    """Bring the network's weights to 2:4, in place, and tune what is left."""
    given = recipe.prune
    assert given is not None
    masks, layers = sparsify(current, found, example, given.untouched)
    if not layers:
        raise RecipeError(
            "recipe: prune.sparsity: no layer has input channels in fours", key="prune.sparsity"
        )
    result.sparse = tuple(SparseLayer(layer=s.layer, kept=s.kept, unpermuted=s.unpermuted) for s in layers)
    if given.train is not None:
        place = folder / "sparse"
        place.mkdir(exist_ok=True)
        result.curves.append(
            tune(recipe, current, original, data, example, given.train, place, f"{key}-sparse", tell, masks)
        )


def _note(given: PruneTable, left: float, sparse: int) -> str:
    parts = []
    if given.keep < 1:
        parts.append(f"{100 * left:.1f} % of {given.target} left, by {given.importance}, {given.scope}")
    if sparse:
        parts.append(f"2:4 sparsity in {sparse} layers")
    parts.append("tuned" if given.train is not None else "not tuned")
    return ", ".join(parts)


def _reasons(found: Found) -> str:
    return "; ".join(f"{whole.layer}: {whole.why}" for whole in found.whole[:4]) or "there is none"


def _cost(
    recipe: Recipe, given: PruneTable, original: nn.Module, example: torch.Tensor
) -> Callable[[nn.Module], float]:
    """What a network costs, as a share of the original's."""
    if given.target == "macs":
        macs = macs_of(original, example)
        return lambda network: macs_of(network, example) / macs
    if given.target == "parameters":
        parameters = parameters_of(original)
        return lambda network: parameters_of(network) / parameters
    if given.target == "latency" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            'recipe: prune.target: "latency" is measured by one process: run `edgesmith prune` alone first, '
            "and the others find its stage",
            key="prune.target",
        )
    if given.target == "estimate":
        estimable(recipe)  # refused before anything is exported
    before = float_graph(recipe, original, example)
    if given.target == "latency":
        return lambda network: latency_share(before, float_graph(recipe, network, example), example)
    time_ms = roofline_ms(recipe, before)
    return lambda network: roofline_ms(recipe, float_graph(recipe, network, example)) / time_ms


def _plan(
    recipe: Recipe,
    given: PruneTable,
    network: nn.Module,
    found: Found,
    worth: dict[str, Worth],
    keep: float,
    cost: Callable[[nn.Module], float],
    example: torch.Tensor,
) -> Plan:
    def of(gone: Gone) -> float:
        return cost(cut(network, example, gone))

    return meet(found.groups, worth, keep, of, scope=given.scope, step=channel_step(recipe), most=given.most)


def _worth(
    recipe: Recipe,
    given: PruneTable,
    network: nn.Module,
    found: Found,
    data: TrainingImages | None,
    example: torch.Tensor,
) -> dict[str, Worth]:
    if given.importance not in NEEDS_IMAGES:
        return importances(network, found.groups, given.importance)
    assert data is not None  # the chain reads them where the importance needs some
    some = data.pick(range(min(given.images, len(data))))
    samples = Samples(some, recipe.preprocess(), (), recipe.data.seed)
    batches = loader(samples, in_order(len(some), 32, 0, 1), 0)
    student = canonical(recipe, network, example)
    if recipe.task == "classify" and data.labels is not None:

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(student(images)[0], labels)
    else:

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            # Beside itself nothing is lost, to the first order too: the answers' own size stands for it.
            return torch.stack([answer.float().pow(2).mean() for answer in student(images)]).sum()

    return importances(network, found.groups, given.importance, batches, loss)


def _from_original(
    recipe: Recipe, network: nn.Module, original: nn.Module, example: torch.Tensor, *, frozen_norm: bool
) -> FromTeacher:
    """A learner that has the network as it was before for a teacher."""
    teacher = copy.deepcopy(original)
    return FromTeacher(
        canonical(recipe, network, example),
        network,
        ModuleTeacher(canonical(recipe, teacher, example), teacher),
        task=recipe.task,
        settings=DistillTable(labels=0.0),
        labelled=False,
        example=example,
        frozen_norm=frozen_norm,
    )


def tune(
    recipe: Recipe,
    network: nn.Module,
    original: nn.Module,
    data: TrainingImages | None,
    example: torch.Tensor,
    settings: TrainTable,
    folder: Path,
    key: str,
    tell: Tell,
    masks: Callable[[], None] | None = None,
) -> Curves:
    """Win back what pruning cost: a classifier by its labels, all else by the answers of the original."""
    assert data is not None  # the chain reads them where something is tuned
    frozen = settings.norm == "frozen"
    learner: Learner
    if recipe.task == "classify" and data.labels is not None:
        learner = FromLabels(_Logits(canonical(recipe, network, example)), frozen_norm=frozen)
    else:
        learner = _from_original(recipe, network, original, example, frozen_norm=frozen)
    trainable(network)
    learner.masks = masks

    def told(where: Told) -> None:
        tell(f"tune: {where}")

    trainer = Trainer(
        learner, data, recipe.preprocess(), settings, folder=folder, key=key, seed=recipe.data.seed, told=told
    )
    curves = trainer.fit()
    fixed(network)
    return curves


def masks_of(recipe: Recipe, network: nn.Module) -> Masks | None:
    """The masks that a network has to keep while it learns on; None where it is dense."""
    given = recipe.prune
    if given is None or given.sparsity is None:
        return None
    return Masks(layer.weight for layer in eligible(network, given.untouched).values())


class _Logits(nn.Module):
    """A classifier's logits alone, in place of a tuple."""

    def __init__(self, adapted: nn.Module) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.adapted(images)[0]
        return found
