"""What channels are worth, and how many go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgesmith.converters.prune.groups import cut, find_groups
from edgesmith.converters.prune.importance import importances
from edgesmith.converters.prune.plan import chosen, meet, step_of, widths
from edgesmith.sdk.errors import RecipeError


@pytest.fixture
def chain() -> nn.Module:
    """Two convolutions with a BatchNorm between; channel 2 of the first is dead to the output."""
    torch.manual_seed(0)
    first, norm, second = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
    with torch.no_grad():
        first.weight[2] *= 1e-3
        norm.weight[2] = 1e-3
        second.weight[:, 2] *= 1e-3
    network = nn.Sequential(first, norm, nn.ReLU(), second, nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["group", "l1", "l2", "bn-scale", "taylor", "activation"])
def test_a_dead_channel_is_worth_the_least(chain: nn.Module, image: torch.Tensor, kind: Any) -> None:
    found = find_groups(chain, image)
    batches = [(image, torch.tensor([1]))]
    worth = importances(
        chain, found.groups, kind, batches, lambda images, labels: F.cross_entropy(chain(images), labels)
    )
    assert int(np.argmin(worth["0"])) == 2
    assert all(np.mean(each) == pytest.approx(1.0) for each in worth.values())
    assert not any(p.requires_grad for p in chain.parameters())


def test_norms_by_hand(chain: nn.Module, image: torch.Tensor) -> None:
    groups = [g for g in find_groups(chain, image).groups if g.root == "0"]
    first, second = chain[0].weight, chain[3].weight  # type: ignore[index]
    l1 = importances(chain, groups, "l1")["0"]
    wanted = first.abs().sum((1, 2, 3)).double().numpy()
    assert np.allclose(l1, wanted / wanted.mean())
    both = importances(chain, groups, "group")["0"]
    norm = (first.pow(2).sum((1, 2, 3)) + second.pow(2).sum((0, 2, 3))).sqrt().double().numpy()
    assert np.allclose(both, norm / norm.mean(), rtol=1e-5)


def test_channels_stay_in_steps_and_the_least_go(coupled: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(coupled, image)
    worth = importances(coupled, found.groups, "l2")
    gone = chosen(found.groups, worth, 0.5, scope="uniform", step=4, most=0.9)
    for group in found.groups:
        numbers = gone[group.root]
        assert (group.width - len(numbers)) % min(4, group.width // 2) == 0
        if numbers:
            kept = np.delete(worth[group.root], numbers)
            assert worth[group.root][numbers].max() <= kept.min()
    none = chosen(found.groups, worth, 0.0, scope="global", step=1, most=0.9)
    assert not any(none.values())


def test_no_layer_loses_more_than_most(coupled: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(coupled, image)
    worth = importances(coupled, found.groups, "l2")
    gone = chosen(found.groups, worth, 1.0, scope="global", step=1, most=0.5)
    assert all(len(gone[g.root]) <= g.width // 2 for g in found.groups)


@pytest.mark.parametrize(("width", "step", "wanted"), [(256, 32, 32), (64, 32, 16), (32, 32, 8), (16, 8, 8),
                                                       (12, 8, 6), (3, 8, 1)])  # fmt: skip
def test_narrow_layers_have_finer_steps(width: int, step: int, wanted: int) -> None:
    assert step_of(width, step) == wanted


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_the_weakest_cut_that_meets_the_target(coupled: nn.Module, image: torch.Tensor, scope: Any) -> None:
    found = find_groups(coupled, image)
    worth = importances(coupled, found.groups, "group")
    before = sum(p.numel() for p in coupled.parameters())

    def cost(gone: dict[str, list[int]]) -> float:
        return sum(p.numel() for p in cut(coupled, image, gone).parameters()) / before

    plan = meet(found.groups, worth, 0.7, cost, scope=scope, step=1, most=0.9)
    assert 0.55 < plan.left <= 0.705
    assert cost(plan.gone) == pytest.approx(plan.left)
    told = {name: (wide, narrow) for name, wide, narrow in widths(coupled, found.groups, plan.gone)}
    small = dict(cut(coupled, image, plan.gone).named_modules())
    assert told["stem.0"] == (16, small["stem.0"].out_channels)
    assert told["stem.0"][1] == told["back"][1]
    with pytest.raises(RecipeError, match=r"at least 0\.\d+ of the target remains"):
        meet(found.groups, worth, 0.01, cost, scope=scope, step=1, most=0.5)
