"""A network brought to the widths of a pruned one's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn


def reshaped(network: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """A copy of the network with these weights, layers made as wide as they are; None where they do not fit.

    Only widths change: a layer takes the shape of its weight, and the numbers that its kind keeps of it.
    """
    network = copy.deepcopy(network)
    layers = dict(network.named_modules())
    for name, value in state.items():
        owner, _, entry = name.rpartition(".")
        layer = layers.get(owner)
        if layer is None:
            return None
        held = layer._parameters.get(entry)
        if held is not None:
            if held.ndim != value.ndim:
                return None
            if held.shape != value.shape:
                layer._parameters[entry] = nn.Parameter(value.clone(), held.requires_grad)
        elif layer._buffers.get(entry) is not None:
            if layer._buffers[entry].shape != value.shape:
                layer._buffers[entry] = value.clone()
        else:
            return None
    for layer in layers.values():
        _count(layer)
    if set(network.state_dict()) != set(state):
        return None
    network.load_state_dict(dict(state))
    return network


def _count(layer: nn.Module) -> None:
    """The numbers of channels that a layer keeps beside its weight."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        first, second = layer.weight.shape[:2]
        if layer.groups > 1 and second == 1 and layer.groups == layer.in_channels:
            layer.groups = first  # depthwise
        outs, ins = first, second * layer.groups
        if isinstance(layer, nn.ConvTranspose2d):
            outs, ins = second * layer.groups, first
        layer.out_channels, layer.in_channels = outs, ins
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        if layer.weight is not None:
            layer.num_features = layer.weight.shape[0]
        elif layer.running_mean is not None:
            layer.num_features = layer.running_mean.shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
