"""What a network costs: multiply-accumulates, parameters, latency here, roofline on a device."""

from __future__ import annotations

import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgesmith.converters.distill.teacher import canonical_model
from edgesmith.converters.export import export_module, slim
from edgesmith.converters.recipe import Recipe
from edgesmith.converters.report.against_float import latency
from edgesmith.device_profiles import DeviceProfile
from edgesmith.sdk.board.profiles import profile
from edgesmith.sdk.board.roofline import Precision, estimate
from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Batch
from edgesmith.sdk.onnx_reader import read_outline


def macs_of(network: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(example)
    return int(counter.get_total_flops()) // 2


def parameters_of(network: nn.Module) -> int:
    """Learned numbers of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def float_graph(recipe: Recipe, network: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """The network with its head as a float graph for one image, for measuring."""
    adapted = canonical_model(recipe, network, example)
    return slim(
        export_module(
            adapted.module,
            network,
            output_names=adapted.output_names,
            channels=example.shape[1],
            size=(example.shape[2], example.shape[3]),
            batch=Batch(),
        )
    )


def latency_share(before: onnx.ModelProto, after: onnx.ModelProto, example: torch.Tensor) -> float:
    """Median latency of a graph over that of another, both measured in turns on one core."""
    found = latency({"before": before, "after": after}, example.numpy())
    return found.p50_ms["after"] / found.p50_ms["before"]


def estimable(recipe: Recipe) -> DeviceProfile:
    """The profile of ``target.device``, whose figures an estimate needs.

    Raises:
        RecipeError: they are not known.
    """
    device = profile(recipe.target.device)
    if not device.modes:
        raise RecipeError(
            f'recipe: prune.target: "estimate" needs a device whose figures are known; target.device is '
            f'"{recipe.target.device}": name another (`edgesmith devices`), or use "macs" or "latency"',
            key="prune.target",
        )
    return device


def roofline_ms(recipe: Recipe, graph: onnx.ModelProto) -> float:
    """Estimated time on ``target.device`` in the recipe's precision, milliseconds.

    Raises:
        RecipeError: the device's figures are not known.
    """
    device = estimable(recipe)
    totals = estimate(read_outline(graph.SerializeToString()), device).totals
    mode = recipe.precision.mode
    wanted: dict[str, tuple[Precision, ...]] = {"fp32": ("fp32",), "fp16": ("fp16", "fp32")}
    return next(totals[p].time_ms for p in wanted.get(mode, ("int8", "fp16", "fp32")) if p in totals)
