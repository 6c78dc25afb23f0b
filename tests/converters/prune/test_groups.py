"""What can be cut and what cannot; a cut network is the network with silent channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgesmith.converters.prune.groups import cut, find_groups, silenced


def test_channels_go_together_or_not_at_all(coupled: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(coupled, image)
    groups = {group.root: set(group.makers) for group in found.groups}
    # The sum binds the stem to what is added; the concatenation binds each part to its depthwise channels.
    assert groups["stem.0"] == {"stem.0", "stem.1", "back"}
    assert groups["inner.0"] == {"inner.0", "inner.1"}
    assert groups["up"] == {"up"}
    assert groups["left.0"] == {"left.0", "left.1", "depthwise.0", "depthwise.1"}
    assert groups["right.0"] == {"right.0", "right.1", "depthwise.0", "depthwise.1"}
    whole = {w.layer: w.why for w in found.whole}
    assert "makes the outputs" in whole["classifier"]
    assert "grouped convolution grouped.0 (2 groups)" in whole["grouped.0"]
    assert "grouped convolution grouped.0 (2 groups)" in whole["point.0"]


def test_a_cut_network_is_one_with_silent_channels(coupled: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(coupled, image)
    channels = {group.root: list(range(1, group.width, 3)) for group in found.groups}
    small = cut(coupled, image, channels)
    wanted = silenced(coupled, found.groups, channels)(image)
    assert torch.allclose(small(image), wanted, atol=1e-5)
    assert not torch.allclose(small(image), coupled(image), atol=1e-3)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (coupled, small))
    assert after < 0.7 * before


def test_a_shortcut_that_pads_channels_keeps_them(padded: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(padded, image)
    assert [group.root for group in found.groups] == ["inner.0"]
    assert {w.layer for w in found.whole} >= {"stem.0", "classifier"}
    assert all(w.why for w in found.whole)


def test_attention_and_norms_over_channels_keep_theirs(attention: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(attention, image)
    assert [group.root for group in found.groups] == ["first"]
    why = {w.layer: w.why for w in found.whole}["patches"]
    assert "LayerNorm norm" in why or "attention" in why


def test_what_the_user_names_is_untouched(coupled: nn.Module, image: torch.Tensor) -> None:
    found = find_groups(coupled, image, ["back", "inner*"])
    assert not {"stem.0", "inner.0"} & {group.root for group in found.groups}
    assert {w.layer: w.why for w in found.whole}["stem.0"] == "prune.untouched names it (back)"


def test_an_activation_that_is_not_zero_at_zero_is_told(image: torch.Tensor) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    found = find_groups(network.eval().requires_grad_(False), image)
    assert [group.root for group in found.groups] == ["2"]
    assert "not the same as silencing it" in {w.layer: w.why for w in found.whole}["0"]


@pytest.mark.parametrize("network", ["coupled", "padded", "attention"])
def test_the_network_itself_is_left_alone(
    request: pytest.FixtureRequest, network: str, image: torch.Tensor
) -> None:
    module = request.getfixturevalue(network)
    before = module(image)
    find_groups(module, image)
    assert torch.equal(module(image), before)
    assert not any(p.requires_grad for p in module.parameters())
