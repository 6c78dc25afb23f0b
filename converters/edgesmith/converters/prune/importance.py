"""What each channel of a group is worth; comparable between groups: the mean of a group is 1."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgesmith.converters.prune.groups import Conv, Group, Member

log = logging.getLogger(__name__)
Kind = Literal["group", "l1", "l2", "bn-scale", "taylor", "activation"]
Worth = NDArray[np.float64]
Norm = (nn.BatchNorm1d, nn.BatchNorm2d)
NEEDS_IMAGES = frozenset({"taylor", "activation"})


def importances(
    network: nn.Module,
    groups: Sequence[Group],
    kind: Kind,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]] = (),
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, Worth]:
    """Worth by the name of each group's root, ``(width,)``.

    ``l1`` and ``l2``: norms of the filters that make a channel (Li et al. 2017). ``group``: the norm of all
    weights that go with it, those that read it too (Fang et al. 2023, DepGraph, eq. 5). ``bn-scale``: the
    BatchNorm's factor (Liu et al. 2017). ``taylor``: the square of what the loss changes without it, to the
    first order (Molchanov et al. 2019, eq. 8). ``activation``: the mean size of its values.

    Args:
        network: is left as it is but for gradients.
        groups: of :func:`~edgesmith.converters.prune.groups.find_groups`.
        kind: see above.
        batches: images and labels, for ``taylor`` and ``activation``.
        loss: of images and labels, with the network in it, for ``taylor``.
    """
    layers = dict(network.named_modules())
    if kind == "taylor":
        assert loss is not None
        found = _taylor(network, groups, batches, loss)
    elif kind == "activation":
        found = _activation(network, groups, batches)
    elif kind == "bn-scale":
        found = {group.root: _bn_scale(layers, group) for group in groups}
    else:
        found = {group.root: _norms(layers, group, kind) for group in groups}
    return {root: worth / max(float(worth.mean()), 1e-30) for root, worth in found.items()}


def _weights(
    layers: dict[str, nn.Module], group: Group, *, readers: bool
) -> Iterator[tuple[Member, torch.Tensor]]:
    """Weights of the group's convolutions and linear layers, the group's channels first."""
    for member in group.members:
        layer = layers[member.name]
        if not isinstance(layer, (*Conv, nn.Linear)) or not (member.makes or readers):
            continue
        weight = layer.weight.detach()
        swapped = isinstance(layer, nn.ConvTranspose2d)
        # A depthwise filter makes and reads its channel at once.
        depthwise = isinstance(layer, Conv) and layer.groups > 1
        axis = 0 if (member.makes != swapped or depthwise) else 1
        yield member, weight.movedim(axis, 0)


def _norms(layers: dict[str, nn.Module], group: Group, kind: str) -> Worth:
    worth = np.zeros(group.width)
    for member, weight in _weights(layers, group, readers=kind == "group"):
        flat = weight.flatten(1)
        each = flat.abs().sum(1) if kind == "l1" else flat.pow(2).sum(1)
        np.add.at(worth, list(member.roots), each.double().numpy()[list(member.channels)])
    return worth if kind == "l1" else np.sqrt(worth)


def _bn_scale(layers: dict[str, nn.Module], group: Group) -> Worth:
    worth = np.zeros(group.width)
    for member in group.members:
        layer = layers[member.name]
        if isinstance(layer, Norm) and member.makes and layer.affine:
            factors = layer.weight.detach().abs().double().numpy()
            np.add.at(worth, list(member.roots), factors[list(member.channels)])
    if worth.any():
        return worth
    log.warning("%s has no BatchNorm: its channels are ranked by the norm of their filters", group.root)
    return _norms(layers, group, "l2")


def _taylor(
    network: nn.Module,
    groups: Sequence[Group],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> dict[str, Worth]:
    layers = dict(network.named_modules())
    found = {group.root: np.zeros(group.width) for group in groups}
    fixed = [p for p in network.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in fixed:
        parameter.requires_grad_(True)
    for images, labels in batches:
        network.zero_grad()
        with torch.enable_grad():
            loss(images, labels).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            change = np.zeros(group.width)
            for member in group.members:
                layer = layers[member.name]
                if not member.makes or not isinstance(layer, (*Conv, nn.Linear, *Norm)):
                    continue
                for name, parameter in layer.named_parameters(recurse=False):
                    if parameter.grad is None:
                        continue
                    product = (parameter.detach() * parameter.grad).double()
                    if isinstance(layer, nn.ConvTranspose2d) and name == "weight" and layer.groups == 1:
                        product = product.movedim(1, 0)
                    each = product.flatten(1).sum(1) if product.ndim > 1 else product
                    np.add.at(change, list(member.roots), each.numpy()[list(member.channels)])
            found[group.root] += change**2
    network.zero_grad()
    for parameter in fixed:
        parameter.requires_grad_(False)
    return found


@torch.no_grad()
def _activation(
    network: nn.Module, groups: Sequence[Group], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, Worth]:
    layers = dict(network.named_modules())
    found = {group.root: np.zeros(group.width) for group in groups}
    hooks = []
    for group in groups:
        makers = [
            m for m in group.members if m.makes and isinstance(layers[m.name], (*Conv, nn.Linear, *Norm))
        ]
        norms = [m for m in makers if isinstance(layers[m.name], Norm)]
        for member in norms or makers[:1]:
            hooks.append(layers[member.name].register_forward_hook(_adding(found[group.root], member)))
    for images, _ in batches:
        network(images)
    for hook in hooks:
        hook.remove()
    return found


def _adding(worth: Worth, member: Member) -> Callable[[nn.Module, object, torch.Tensor], None]:
    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        axis = output.ndim - 1 if isinstance(module, nn.Linear) else 1
        others = [n for n in range(output.ndim) if n != axis]
        each = output.abs().double().mean(others)
        np.add.at(worth, list(member.roots), each.numpy()[list(member.channels)])

    return add
