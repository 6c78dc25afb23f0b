"""The network that rounds computes what the Q/DQ graph computes, before and after it learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgesmith.calibration.collect import collect
from edgesmith.calibration.images import Images, tensors
from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import sites_of
from edgesmith.converters import Recipe
from edgesmith.converters.cost import float_graph
from edgesmith.converters.distill.teacher import canonical
from edgesmith.converters.passes.insert_qdq import InsertQdq
from edgesmith.converters.precision.quantizers import quantizers_for
from edgesmith.converters.qat.fake_quant import ActivationQuantizer, QatLayer
from edgesmith.converters.qat.network import qat_network
from edgesmith.converters.qat.stage import written
from edgesmith.converters.runners import graph_runner
from edgesmith.sdk.errors import RecipeError

RecipeOf = Callable[..., Recipe]
Seeded = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize("repairs", [pytest.param((), marks=pytest.mark.slow), ("factor", "offset")])
def test_it_rounds_as_the_graph_does(
    recipe_of: RecipeOf, tinynets: ModuleType, seeded: Seeded, photos: Path, repairs: tuple[str, ...]
) -> None:
    recipe, network = recipe_of(), seeded(tinynets.classifier())
    inputs = list(tensors(Images.open(photos), recipe.preprocess()))
    example = torch.from_numpy(inputs[0])
    exact = float_graph(recipe, network, example)
    table = collect(exact.SerializeToString(), Images.open(photos), recipe.preprocess()).table()
    sites = sites_of(ir.serde.deserialize_model(exact))
    layers = frozenset(site.name for site in sites)
    quantizers = quantizers_for(table, sites, method="mse", repairs=repairs)
    made = qat_network(canonical(recipe, network, example), example, sites, quantizers, layers, learned=True)
    assert set(made.layers) == layers

    def graph_answers() -> np.ndarray:
        weights = {f"{n}.weight": torch.from_numpy(made.layers[n].final_weight()) for n in made.layers}
        biases = {f"{n}.bias": made.layers[n].bias.detach() for n in made.layers}
        tuned = written(exact, weights | biases)
        learned = {name: activation.quantizer() for name, activation in made.activations.items()}
        model = InsertQdq(learned, list(layers))(ir.serde.deserialize_model(tuned)).model
        run = graph_runner(ir.to_proto(model), optimised=False)
        return np.concatenate([run(value)["logits"] for value in inputs])

    def module_answers() -> np.ndarray:
        with torch.no_grad():
            return np.concatenate([made.module(torch.from_numpy(v))[0].numpy() for v in inputs])

    exact_answers = np.concatenate([graph_runner(exact)(value)["logits"] for value in inputs])
    step = float(np.abs(exact_answers).max()) / 127
    assert np.abs(module_answers() - graph_answers()).max() < 0.05 * step
    assert np.abs(module_answers() - exact_answers).max() > 0.05 * step  # it does round
    # A few steps towards the float answers, scales learning along.
    for layer in made.layers.values():
        layer.weight.requires_grad_(True)
        layer.bias.requires_grad_(True)
    optimizer = torch.optim.Adam([p for p in made.module.parameters() if p.requires_grad], 1e-4)
    batch = torch.from_numpy(np.concatenate(inputs))
    wanted, losses = torch.from_numpy(exact_answers), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (made.module(batch)[0] - wanted).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.9 * losses[0]
    assert any(float(a.stretch.detach()) != 0 for a in made.activations.values())
    assert all(float(layer.shrink.detach().abs().max()) > 0 for layer in made.layers.values())
    assert np.abs(module_answers() - graph_answers()).max() < 0.05 * step


def test_a_layer_that_is_not_there_is_told(
    recipe_of: RecipeOf, tinynets: ModuleType, seeded: Seeded, tensor: torch.Tensor
) -> None:
    recipe, network = recipe_of(), seeded(tinynets.classifier())
    sites = sites_of(ir.serde.deserialize_model(float_graph(recipe, network, tensor[:1])))
    other = canonical(recipe, tinynets.classifier().eval(), tensor[:1])
    names = frozenset(site.name for site in sites)
    with pytest.raises(
        RecipeError, match=r"stem\.0.* is not found among the module's .*precision\.keep_float"
    ):
        qat_network(other, tensor[:1], sites, {}, names, learned=True)


def test_rounding_passes_the_gradient_inside_the_window_alone() -> None:
    rounding = ActivationQuantizer(Quantizer(scale=0.1), learned=True, channel_axis=1)
    value = torch.tensor([[0.33, -0.04, 20.0]], requires_grad=True)
    rounding(value).sum().backward()
    assert torch.allclose(rounding(value), torch.tensor([[0.3, 0.0, 12.7]]), atol=1e-6)
    assert value.grad is not None
    assert value.grad.tolist() == [[1.0, 1.0, 0.0]]
    # LSQ, eq. 3: v_bar - v inside, the limit outside; times the scale, as its logarithm is what learns.
    wanted = 0.1 * ((3 - 3.3) + (0 - -0.4) + 127)
    assert rounding.stretch.grad is not None
    assert float(rounding.stretch.grad) == pytest.approx(wanted, rel=1e-5)


def test_weights_are_cut_so_that_their_scales_follow_from_them() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 1, 1))
    rounding = ActivationQuantizer(Quantizer(scale=0.1), learned=False, channel_axis=1)
    layer = QatLayer(weight, nn.Parameter(torch.zeros(4)), nn.functional.conv2d, rounding, learned=True)
    with torch.no_grad():
        layer.shrink[:] = torch.tensor([0.0, -0.5, -1.0, 0.3])
    final = layer.final_weight()
    scale = np.abs(final).reshape(4, -1).max(1).reshape(4, 1, 1, 1) / 127
    integers = np.rint(final / scale)
    assert np.allclose(integers * scale, layer.rounded_weight().detach().numpy(), atol=1e-6)
    assert np.abs(final[2]).max() == pytest.approx(
        float(weight[2].detach().abs().max()) * np.exp(-1.0), rel=1e-5
    )
    assert np.allclose(final[3], weight[3].detach().numpy())  # a scale does not grow past what is there
