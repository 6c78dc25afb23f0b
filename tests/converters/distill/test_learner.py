"""Students beside their teachers: what is refused, what learns, what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from edgesmith.converters import Recipe, convert
from edgesmith.converters.distill.learner import FromTeacher
from edgesmith.converters.distill.teacher import canonical, teacher_of
from edgesmith.converters.recipe_training import DistillTable
from edgesmith.converters.training.learner import LOSS, trainable
from edgesmith.sdk.errors import RecipeError

RecipeOf = Callable[..., Recipe]
Seeded = Callable[[nn.Module], nn.Module]


def learner(
    recipe: Recipe, network: nn.Module, original: nn.Module, example: torch.Tensor, **given: Any
) -> FromTeacher:
    return FromTeacher(
        canonical(recipe, network, example),
        network,
        teacher_of(recipe, original, example),
        task=recipe.task,
        settings=DistillTable(**given),
        labelled=bool(given.get("labels")),
        example=example,
    )


def trained(made: FromTeacher, images: torch.Tensor, steps: int = 60) -> tuple[float, float]:
    """Loss at first and in the end."""
    made.eval()
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 0.01)
    labels = torch.full((len(images),), -1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = made(images, labels)[LOSS]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize(
    ("factory", "given"),
    [
        ("classifier", {"labels": 0.0}),
        ("classifier", {"labels": 0.0, "features": ("stem", "body=body"), "feature_loss": "fitnet",
                        "feature_weight": 1.0}),
        ("detector", {}),
    ],
)  # fmt: skip
def test_a_student_comes_to_answer_as_its_teacher(
    recipe_of: RecipeOf, tinynets: ModuleType, seeded: Seeded, tensor: torch.Tensor,
    factory: str, given: dict[str, Any],
) -> None:  # fmt: skip
    torch.manual_seed(0)
    recipe = recipe_of(factory)
    original, student = seeded(getattr(tinynets, factory)()), getattr(tinynets, factory)()
    before = copy.deepcopy(original.state_dict())
    made = learner(recipe, trainable(student), original, tensor[:1], **given)
    first, last = trained(made, tensor)
    assert last < 0.3 * first
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not any("teacher" in name for name in made.state_dict())
    made.close()
    assert not any(module._forward_hooks for module in student.modules())


def test_labels_have_their_share(
    recipe_of: RecipeOf, tinynets: ModuleType, seeded: Seeded, tensor: torch.Tensor
) -> None:
    network = seeded(tinynets.classifier())
    made = learner(recipe_of(), copy.deepcopy(network), network, tensor[:1], labels=0.25)
    with torch.no_grad():
        losses = made.eval()(tensor, torch.tensor([1, 2]))
        plain = nn.functional.cross_entropy(network(tensor), torch.tensor([1, 2]))
    assert float(losses["teacher"]) == pytest.approx(0.0, abs=1e-5)
    assert float(losses["labels"]) == pytest.approx(0.25 * float(plain), rel=1e-4)
    assert float(losses[LOSS]) == pytest.approx(float(losses["teacher"] + losses["labels"]), rel=1e-5)


@pytest.mark.slow
def test_a_bundle_teaches_like_the_module_in_it(
    recipe_of: RecipeOf, tinynets: ModuleType, seeded: Seeded, tensor: torch.Tensor, tmp_path: Path
) -> None:
    convert(recipe_of("detector"), tmp_path / "t.edge")
    original = seeded(tinynets.detector())
    recipe = recipe_of("detector", distill={"teacher": {"bundle": str(tmp_path / "t.edge")}})
    known = teacher_of(recipe, tinynets.detector(), tensor[:1])(tensor)
    wanted = canonical(recipe, original, tensor[:1])(tensor)
    for a, b in zip(known, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    with pytest.raises(RecipeError, match="shows no inner layers"):
        FromTeacher(
            canonical(recipe, original, tensor[:1]), original, teacher_of(recipe, original, tensor[:1]),
            task="detect", settings=DistillTable(features=("body",)), labelled=False, example=tensor[:1],
        )  # fmt: skip
    other = recipe_of("detector", distill={"teacher": {"bundle": str(tmp_path / "t.edge")}},
                      input={"size": [64, 64], "color": "bgr"})  # fmt: skip
    with pytest.raises(RecipeError, match="prepares its input otherwise"):
        teacher_of(other, original, tensor[:1])


def test_another_module_teaches(
    recipe_of: RecipeOf, weights: dict[str, Path], networks: Path, tensor: torch.Tensor, tinynets: ModuleType,
    seeded: Seeded,
) -> None:  # fmt: skip
    table = {"factory": "tinynets:classifier", "weights": str(weights["classifier"]),
             "python_path": [str(networks)]}  # fmt: skip
    recipe = recipe_of(distill={"teacher": table})
    known = teacher_of(recipe, tinynets.classifier(), tensor[:1])
    assert torch.allclose(known(tensor)[0], seeded(tinynets.classifier())(tensor), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"features": ("stm",)}, "the student has no layer 'stm'; it has stem"),
        ({"features": ("stem=bdy",)}, "the teacher has no layer 'bdy'"),
        ({"features": ("classifier",)}, r"name layers that give maps \(N, C, H, W\)"),
    ],
)
def test_layers_that_are_not_there(
    recipe_of: RecipeOf, tinynets: ModuleType, tensor: torch.Tensor, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        learner(recipe_of(), tinynets.classifier(), tinynets.classifier(), tensor[:1], **given)


def test_other_classes_are_refused(recipe_of: RecipeOf, tinynets: ModuleType, tensor: torch.Tensor) -> None:
    with pytest.raises(RecipeError, match="must have the same classes"):
        learner(recipe_of(), tinynets.Classifier(4), tinynets.classifier(), tensor[:1])
