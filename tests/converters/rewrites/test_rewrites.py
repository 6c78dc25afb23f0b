"""What TensorRT lacks, rewritten: the exported graph against PyTorch, and no trace of the operator left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesmith.converters.compile_check import compile_check
from edgesmith.converters.export import export_module
from edgesmith.converters.operators import REWRITES
from edgesmith.converters.rewrites import folding, pooling, rewritten
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.errors import UnsupportedOperatorError
from edgesmith.sdk.manifest import Batch

ODD = (9, 13)
ONE, SEVERAL = Batch(min=1, opt=1, max=1), Batch(min=1, opt=2, max=4)
Step = Callable[[Tensor], Tensor]


class Only(nn.Module):
    """One step of a network."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def exported(step: Step, batch: Batch = ONE, size: tuple[int, int] | None = ODD) -> Any:
    module = Only(step).eval()
    return export_module(module, module, output_names=["out"], channels=4, size=size, batch=batch)


def numbers(shape: tuple[int, ...] = (2, 4, *ODD)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def traced(step: Step) -> Any:
    return torch.export.export(Only(step), (numbers(),), strict=False)


def top(x: Tensor) -> Tensor:
    return x.flip(2).cummax(2).values.flip(2)


def bottom(x: Tensor) -> Tensor:
    return x.cummax(2).values


def left(x: Tensor) -> Tensor:
    return torch.cummax(x.flip([-1]), dim=-1)[0].flip(-1)


def right(x: Tensor) -> Tensor:
    return torch.cummax(x, 3)[0]


def smallest(x: Tensor) -> Tensor:
    return x.cummin(1).values


@pytest.mark.parametrize("step", [top, bottom, left, right, smallest])
def test_corner_pooling_is_shifted_maxima_to_the_bit(step: Step) -> None:
    program = traced(step)
    changed = rewritten(program)
    names = {str(node.target) for node in changed.graph.nodes if node.op == "call_function"}
    assert names == {
        "aten.slice.Tensor", "aten.cat.default",
        "aten.minimum.default" if step is smallest else "aten.maximum.default",
    }  # fmt: skip
    x = numbers()
    x[0, 0, 3, :] = float("inf")
    x[0, 1, :, 4] = -float("inf")
    assert torch.equal(changed.module()(x), step(x))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 31])
def test_any_length(length: int) -> None:
    x = numbers((2, 4, length, 5))
    program = torch.export.export(Only(top), (x,), strict=False)
    changed = rewritten(program)
    assert torch.equal(changed.module()(x), top(x))
    maxima = [n for n in changed.graph.nodes if n.target is torch.ops.aten.maximum.default]
    assert len(maxima) == int(np.ceil(np.log2(length)))


def test_a_flip_that_others_read_or_of_other_axes_stays() -> None:
    x = numbers()
    steps: tuple[Step, ...] = (
        lambda x: x.flip(2) + x.flip(2).cummax(2).values.flip(3),
        lambda x: x.flip(2, 3).cummax(2).values.flip(2, 3),
        lambda x: (y := x.flip(2).cummax(2).values) + y.flip(2),
    )
    for step in steps:
        changed = rewritten(torch.export.export(Only(step), (x,), strict=False))
        assert torch.equal(changed.module()(x), step(x))
        names = {str(node.target) for node in changed.graph.nodes}
        assert "aten.flip.default" in names
        assert "aten.cummax.default" not in names


def test_indices_that_are_read_leave_the_operator_and_it_is_named() -> None:
    with pytest.raises(UnsupportedOperatorError) as caught:
        exported(lambda x: x.cummax(2).indices.float())
    assert caught.value.operator == "aten.cummax"


def test_programs_without_such_steps_are_left_alone() -> None:
    program = traced(lambda x: functional.max_pool2d(x, 2).relu())
    assert rewritten(program) is program


OTHERS: dict[str, tuple[Step, float]] = {
    "products": (lambda x: x.cumprod(3), 1e-5),
    "dilated": (lambda x: functional.max_pool2d(x, 3, 2, 1, dilation=2), 0.0),
    "dilated beside plain": (
        lambda x: functional.max_pool2d(functional.max_pool2d(x, (2, 3), 1, dilation=(2, 1)), 2), 0.0,
    ),
    "adaptive": (lambda x: functional.adaptive_max_pool2d(x, (4, 5)), 0.0),
    "fold": (lambda x: functional.fold(functional.unfold(x, 3, padding=1), ODD, 3, padding=1), 1e-5),
    "fold with steps": (
        lambda x: functional.fold(
            functional.unfold(x, (2, 3), dilation=(1, 2), padding=1, stride=2), ODD, (2, 3), (1, 2), 1, 2
        ),
        1e-5,
    ),
    "bilinear": (lambda x: functional.interpolate(x, (5, 6), mode="bilinear", antialias=True), 1e-5),
    "bicubic": (
        lambda x: functional.interpolate(
            x, scale_factor=0.6, mode="bicubic", antialias=True, align_corners=True
        ),
        1e-5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_the_rewritten_program_answers_the_same(name: str) -> None:
    step, allowed = OTHERS[name]
    x = numbers()
    program = traced(step)
    before = {str(node.target) for node in program.graph.nodes}
    changed = rewritten(program)
    assert changed is not program
    found = changed.module()(x)
    assert found.shape == step(x).shape
    assert float((found - step(x)).abs().max()) <= allowed
    gone = before - {str(node.target) for node in changed.graph.nodes}
    assert any(part in target for target in gone for part in ("cumprod", "max_pool", "col2im", "_aa"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [ONE, SEVERAL])
@pytest.mark.parametrize("name", [*OTHERS, "top", "right"])
def test_the_graph_answers_the_same_and_compiles(name: str, batch: Batch) -> None:
    step, allowed = {**OTHERS, "top": (top, 0.0), "right": (right, 0.0)}[name]
    model = exported(step, batch)
    x = numbers((batch.opt, 4, *ODD))
    assert np.abs(graph_runner(model)(x.numpy())["out"] - step(x).numpy()).max() <= allowed
    report = compile_check(model.SerializeToString(), batch=batch, size=ODD)
    assert report.outcome in ("compiled", "not-installed"), report.errors


def test_open_axes_are_left_to_the_exporter() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"aten\.cummax"):
        exported(top, size=None)


def test_every_rewrite_is_in_the_table_of_operators() -> None:
    listed = {rewrite.module for rewrite in REWRITES}
    assert {pooling.__name__, folding.__name__, "edgesmith.converters.rewrites.running"} <= listed
