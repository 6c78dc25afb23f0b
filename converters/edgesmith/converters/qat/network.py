"""From a module to one that rounds as its INT8 graph will, layer for layer."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional as F

from edgesmith.calibration.scale_table import Quantizer
from edgesmith.calibration.sites import Site
from edgesmith.converters.export import quiet
from edgesmith.converters.qat.fake_quant import ActivationQuantizer, QatLayer
from edgesmith.sdk.errors import RecipeError

log = logging.getLogger(__name__)
aten = torch.ops.aten
SAME = 1e-4  # of a weight's largest: what a layer of the graph may differ from that of the module


@dataclass
class QatNetwork:
    """The traced module, and its layers by the name of the graph's node."""

    module: fx.GraphModule
    layers: dict[str, QatLayer] = field(default_factory=dict)
    activations: dict[str, ActivationQuantizer] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """A weighted call in the traced graph; ``end`` gives the layer's value, BatchNorm included."""

    node: fx.Node
    end: fx.Node
    weight: torch.Tensor
    bias: torch.Tensor
    key: tuple[str, str]
    group: int


def qat_network(
    module: nn.Module,
    example: torch.Tensor,
    sites: list[Site],
    quantizers: Mapping[str, Quantizer],
    layers: frozenset[str],
    *,
    learned: bool,
) -> QatNetwork:
    """Trace a module and give its layers the rounding of the graph's sites.

    Args:
        module: with canonical outputs, in eval mode.
        example: one input ``(1, C, H, W)``.
        sites: the quantizable layers of its float graph.
        quantizers: of what they read, by tensor.
        layers: names of those that are to be in INT8.
        learned: whether scales learn.

    Raises:
        RecipeError: the module cannot be traced for any number of images, or a layer is not found in it.
    """
    traced = _traced(module, example)
    calls = _calls(traced)
    found = QatNetwork(traced)
    made: dict[tuple[str, str], tuple[nn.Parameter, nn.Parameter]] = {}
    left = list(calls)
    for number, site in enumerate(sites):
        call = _match(site, left)
        if call is None:
            if site.name in layers:
                raise RecipeError(
                    f"recipe: qat: {site.name} of the graph is not found among the module's convolutions and "
                    f"linear layers: list {site.module or site.name} in precision.keep_float",
                    key="qat",
                )
            continue
        left.remove(call)
        if call.key not in made:
            made[call.key] = nn.Parameter(call.weight), nn.Parameter(call.bias)
        weight, bias = made[call.key]
        activation = None
        if site.name in layers:
            if site.activation not in found.activations:
                axis = 1 if call.weight.ndim > 2 else -1
                found.activations[site.activation] = ActivationQuantizer(
                    quantizers[site.activation], learned=learned, channel_axis=axis
                )
            activation = found.activations[site.activation]
        layer = QatLayer(weight, bias, _compute(call.node), activation, learned=learned, group=call.group)
        found.layers[site.name] = layer
        _replace(traced, call, layer, f"qat_{number}")
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return found


def _traced(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    two = example.repeat(2, 1, 1, 1)
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                module,
                (two,),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                strict=False,
            )
        except Exception as error:
            # Whatever the user's forward raises comes through here, beside torch's own errors.
            raise RecipeError(
                "recipe: qat: the model cannot be traced for any number of images "
                f"({str(error).strip().splitlines()[0]}): write x.flatten(1) or "
                "x.shape in place of fixed sizes",
                key="qat",
            ) from error
    traced = program.module()
    # An exported module refuses train() and eval(), since its mode is fixed; as a part of another
    # module it must bear the call. What it computes does not change.
    for name in ("train", "eval"):
        traced.__dict__.pop(name, None)
    assert isinstance(traced, fx.GraphModule)
    for parameter in traced.parameters():
        parameter.requires_grad_(False)
    return traced


def _calls(traced: fx.GraphModule) -> list[_Call]:
    """Convolutions and linear layers with constant weights, BatchNorm folded into them."""
    found = []
    kinds = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.linear.default)
    for node in traced.graph.nodes:
        if node.op != "call_function" or node.target not in kinds:
            continue
        source = node.args[1]
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            continue
        weight = _attribute(traced, source).detach().double()
        given = node.args[2] if len(node.args) > 2 else None
        bias = torch.zeros(len(weight), dtype=torch.float64)
        if isinstance(given, fx.Node):
            bias = _attribute(traced, given).detach().double()
        end, norm = node, ""
        users = list(node.users)
        if len(users) == 1 and users[0].target == aten.batch_norm.default and not users[0].args[5]:
            end = users[0]
            weight, bias, norm = _folded(traced, end, weight, bias)
        group = 1 if node.target == aten.linear.default else _argument(node, 6, "groups", 1)
        found.append(_Call(node, end, weight.float(), bias.float(), (str(source.target), norm), int(group)))
    return found


def _folded(
    traced: fx.GraphModule, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """``w' = w gamma / sigma``, ``b' = (b - mean) gamma / sigma + beta``."""
    mean, variance = (_attribute(traced, _node(node.args[n])).detach().double() for n in (3, 4))
    scale = 1 / torch.sqrt(variance + float(node.args[7]))  # type: ignore[arg-type]
    if isinstance(node.args[1], fx.Node):
        scale = scale * _attribute(traced, node.args[1]).detach().double()
    bias = (bias - mean) * scale
    if isinstance(node.args[2], fx.Node):
        bias = bias + _attribute(traced, node.args[2]).detach().double()
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias, str(_node(node.args[3]).target)


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _attribute(traced: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    found = operator.attrgetter(str(node.target))(traced)
    assert isinstance(found, torch.Tensor)
    return found


def _argument(node: fx.Node, place: int, name: str, usual: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, usual)


def _match(site: Site, calls: list[_Call]) -> _Call | None:
    """The first call with the site's weight."""
    wanted = site_weight(site)
    limit = SAME * max(float(np.abs(wanted).max()), 1e-12)
    for call in calls:
        if tuple(call.weight.shape) == wanted.shape and np.allclose(
            call.weight.numpy(), wanted, rtol=0, atol=limit
        ):
            return call
    return None


def site_weight(site: Site) -> NDArray[np.float32]:
    """The weight as PyTorch has it, output channels first."""
    return np.ascontiguousarray(np.moveaxis(site.weight, site.axis, 0))


def _compute(node: fx.Node) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    if node.target == aten.linear.default:
        return F.linear
    kind = F.conv1d if node.target == aten.conv1d.default else F.conv2d
    stride, padding = _argument(node, 3, "stride", 1), _argument(node, 4, "padding", 0)
    dilation, groups = _argument(node, 5, "dilation", 1), _argument(node, 6, "groups", 1)

    def compute(value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return kind(value, weight, bias, stride, padding, dilation, groups)

    return compute


def _replace(traced: fx.GraphModule, call: _Call, layer: QatLayer, name: str) -> None:
    traced.add_submodule(name, layer)
    with traced.graph.inserting_after(call.end):
        new = traced.graph.call_module(name, (call.node.args[0],))
    call.end.replace_all_uses_with(new)
