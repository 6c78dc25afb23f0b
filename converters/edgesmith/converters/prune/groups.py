"""Channels that can only go together, found by Torch-Pruning's dependency graph (Fang et al. 2023, DepGraph).

Whether a group may be cut is not taken on trust: channels that were silenced (their filters, biases and norms
set to zero) and channels that were removed must give the same answers. What makes the outputs, sums whose
shortcut pads channels, norms and attention over channels, reshapes that count channels: all of them fail this
and are left whole, by name and with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch_pruning  # type: ignore[import-untyped]
from torch import nn
from torch_pruning.dependency.group import Group as Coupled  # type: ignore[import-untyped]

log = logging.getLogger(__name__)
TOLERANCE = 1e-3  # of the largest answer: sums of floats in another order
LEAST_WIDTH = 2
# What a forward, and Torch-Pruning's bookkeeping, raise on channels that do not go together.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
Conv = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Member:
    """One layer of a group. ``channels[i]`` of it belongs to channel ``roots[i]`` of the group.

    ``makes``: its output channels are meant, else its input channels.
    """

    name: str
    makes: bool
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels of layers that go together; ``root`` is the first layer that makes them."""

    root: str
    width: int
    members: tuple[Member, ...]

    @property
    def makers(self) -> tuple[str, ...]:
        """Convolutions and linear layers that make these channels, and norms over them."""
        return tuple(dict.fromkeys(m.name for m in self.members if m.makes))


@dataclass(frozen=True)
class Whole:
    """A layer that keeps all its channels, and why."""

    layer: str
    channels: int
    why: str


@dataclass
class Found:
    """What can be cut, and what cannot."""

    groups: list[Group] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)


def dependency_graph(network: nn.Module, example: torch.Tensor) -> torch_pruning.DependencyGraph:
    """Torch-Pruning's graph of a network in eval mode whose parameters have gradients."""
    network.eval()
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    with quiet(), torch.enable_grad():
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(network, example, output_transform=_tensors, verbose=False)
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Torch-Pruning's notes on what it cannot follow: that is found by trying."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch_pruning(\.|$)")
        yield


def _tensors(output: object) -> list[torch.Tensor]:
    """The tensors of a result, however nested."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [t for part in output for t in _tensors(part)]
    return []


def coupled(graph: torch_pruning.DependencyGraph, root: str, channels: Sequence[int]) -> Coupled:
    """Torch-Pruning's own group for some output channels of a layer."""
    module = dict(graph.model.named_modules())[root]
    pruner = graph.get_pruner_of_module(module)
    with quiet():
        return graph.get_pruning_group(module, pruner.prune_out_channels, list(channels))


def cut(network: nn.Module, example: torch.Tensor, channels: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the network without these channels, by the name of each group's root."""
    network = copy.deepcopy(network)
    graph = dependency_graph(network, example)
    for root, numbers in channels.items():
        if len(numbers):
            coupled(graph, root, numbers).prune()
    return network.eval().requires_grad_(False)


def find_groups(network: nn.Module, example: torch.Tensor, untouched: Sequence[str] = ()) -> Found:
    """The groups of a network that can be cut, proven on ``example``, and the layers that stay whole.

    Args:
        network: takes ``example`` (1, C, H, W).
        example: should reach all of the network; of a real image.
        untouched: name patterns of layers that are to keep their channels.
    """
    original = copy.deepcopy(network)
    graph = dependency_graph(copy.deepcopy(network), example)
    names = {module: name for name, module in graph.model.named_modules()}
    found, candidates = Found(), []
    attention = {
        id(inner)
        for module in graph.model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner in module.modules()
    }
    seen: set[str] = set()
    for name, layer in graph.model.named_modules():
        if layer not in graph.module2node or not isinstance(layer, (*Conv, nn.Linear)) or name in seen:
            continue
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        try:
            part = coupled(graph, name, range(width))
        except FAULTS as error:
            why = f"what its channels are coupled to cannot be followed ({type(error).__name__}: {error})"
            found.whole.append(Whole(name, width, why))
            continue
        group = _group(graph, part, names)
        if group is None:
            continue
        seen |= set(group.makers)
        reason = _refused(graph, part, group, untouched, attention)
        if reason is None:
            candidates.append(group)
        else:
            found.whole.append(Whole(group.root, group.width, reason))
    probe = _Probe(original, example)
    sound = probe.sound(candidates)
    found.groups = [group for group in candidates if group.root not in probe.reasons]
    assert len(sound) == len(found.groups)
    found.whole += [
        Whole(g.root, g.width, probe.reasons[g.root]) for g in candidates if g.root in probe.reasons
    ]
    return found


def _group(
    graph: torch_pruning.DependencyGraph, part: Coupled, names: Mapping[nn.Module, str]
) -> Group | None:
    members = []
    for item in part:
        layer = item.dep.target.module
        if layer not in names or not list(layer.parameters(recurse=False)):
            continue  # an operation without weights
        makes = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
        roots = item.root_idxs if item.root_idxs is not None else item.idxs
        members.append(Member(names[layer], makes, tuple(map(int, item.idxs)), tuple(map(int, roots))))
    root = part[0].dep.target.module
    width = len(part[0].idxs)
    if not members or width < LEAST_WIDTH:
        return None
    return Group(names[root], width, tuple(members))


def _refused(
    graph: torch_pruning.DependencyGraph,
    part: Coupled,
    group: Group,
    untouched: Sequence[str],
    attention: set[int],
) -> str | None:
    """Why a group stays whole before it is tried; None where it may go."""
    layers = dict(graph.model.named_modules())
    for name in group.makers:
        for pattern in untouched:
            if fnmatch.fnmatch(name, pattern):
                return f"prune.untouched names it ({pattern})"
    for member in group.members:
        layer = layers[member.name]
        if id(layer) in attention:
            return f"the channels enter the attention {member.name.rpartition('.')[0] or member.name}"
        if isinstance(layer, Conv) and layer.groups > 1 and layer.groups != layer.in_channels:
            return f"the grouped convolution {member.name} ({layer.groups} groups) would lose its even groups"
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            kind = type(layer).__name__
            return f"{kind} {member.name} norms over the channels: what is left would change"
    if any(isinstance(item.dep.target.module, nn.Parameter) for item in part):
        return "the channels meet a parameter outside of any layer"
    return None


class _Probe:
    """Cuts groups on trial, and halves the list where that goes wrong until the guilty are known."""

    def __init__(self, network: nn.Module, example: torch.Tensor) -> None:
        self.network = network.eval().requires_grad_(False)
        self.example = example
        self.reasons: dict[str, str] = {}

    def sound(self, groups: list[Group]) -> list[Group]:
        """The groups that can be cut together; the others get a reason."""
        if not groups:
            return []
        why = self._fault(groups)
        if why is None:
            return groups
        if len(groups) == 1:
            self.reasons[groups[0].root] = why
            log.info("%s keeps its channels: %s", groups[0].root, why)
            return []
        middle = len(groups) // 2
        kept = self.sound(groups[:middle]) + self.sound(groups[middle:])
        if len(kept) == len(groups):
            # Each half is sound and both together are not: the first stands, the rest is tried one by one.
            kept = groups[:middle]
            for group in groups[middle:]:
                why = self._fault([*kept, group])
                if why is None:
                    kept = [*kept, group]
                else:
                    self.reasons[group.root] = why
        return kept

    def _fault(self, groups: list[Group]) -> str | None:
        """What goes wrong when every other channel of the groups goes; None where nothing does."""
        channels = {group.root: list(range(0, group.width, 2)) for group in groups}
        with torch.no_grad():
            wanted = _tensors(silenced(self.network, groups, channels)(self.example))
        try:
            with torch.no_grad():
                got = _tensors(cut(self.network, self.example, channels)(self.example))
        except FAULTS as error:
            return (
                f"without some of its channels the network fails ({str(error).strip().splitlines()[0][:120]})"
            )
        if [t.shape for t in got] != [t.shape for t in wanted]:
            return "it makes the outputs"
        for a, b in zip(got, wanted, strict=True):
            if not torch.allclose(a, b, rtol=0.0, atol=TOLERANCE * max(1e-6, float(b.abs().max()))):
                return "taking a channel out is not the same as silencing it"
        return None


def silenced(network: nn.Module, groups: Sequence[Group], channels: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the network in which these channels are always zero."""
    network = copy.deepcopy(network)
    layers = dict(network.named_modules())
    for group in groups:
        gone = set(channels[group.root])
        for member in group.members:
            if not member.makes:
                continue
            numbers = [c for c, r in zip(member.channels, member.roots, strict=True) if r in gone]
            layer = layers[member.name]
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1 else 0
            for name, parameter in layer.named_parameters(recurse=False):
                index = [slice(None)] * parameter.ndim
                at = axis if name == "weight" else 0
                if parameter.shape[at] == 1 and len(member.channels) > 1:
                    continue  # one slope for all channels (PReLU)
                index[at] = numbers  # type: ignore[call-overload]
                parameter.data[tuple(index)] = 0.0
    return network.eval()
