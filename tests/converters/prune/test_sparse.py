"""2:4: the pattern, the permutation that computes the same and keeps more, the graph that is checked."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgesmith.converters.passes.sparsity import has_pattern, require_sparse, sparse_layers
from edgesmith.converters.prune.groups import find_groups
from edgesmith.converters.prune.sparse import best_order, eligible, mask_of, sparsify
from edgesmith.sdk.errors import ExportError


def kept(rows: np.ndarray, order: np.ndarray) -> float:
    fours = np.sort(rows[:, order].reshape(len(rows), -1, 4), 2)
    return float(fours[..., 2:].sum())


def test_two_of_four_along_the_input_channels() -> None:
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    masked = (weight * mask_of(weight)).numpy()
    assert has_pattern(masked)
    assert float((masked != 0).mean()) == 0.5
    assert not has_pattern(weight.numpy())
    assert not has_pattern(np.zeros((4, 6)))  # six channels are no fours
    # The two largest are those that stay.
    assert np.allclose(
        np.sort(np.abs(weight[0, :4, 0, 0].numpy()))[2:], np.sort(np.abs(masked[0, :4, 0, 0]))[2:]
    )


def test_a_better_order_is_found_where_there_is_one() -> None:
    random = np.random.default_rng(0)
    # Channels 0..7 are large, 8..15 small: in order half of the large ones are lost.
    rows = np.concatenate((random.uniform(5, 6, (32, 8)), random.uniform(0, 1, (32, 8))), 1).astype(
        np.float32
    )
    order = best_order(rows)
    assert sorted(order) == list(range(16))
    assert kept(rows, order) > 1.8 * kept(rows, np.arange(16)) * 0.9
    assert kept(rows, order) >= 0.99 * rows[:, :8].sum()


def test_permuted_it_computes_the_same_and_keeps_more(coupled: nn.Module, image: torch.Tensor) -> None:
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():  # input channels of very different sizes, so that the order matters
        for layer in eligible(coupled).values():
            layer.weight *= (
                torch.rand(layer.weight.shape[1], generator=random)
                .pow(3)
                .reshape(1, -1, *[1] * (layer.weight.ndim - 2))
            )
    masks, layers = sparsify(coupled, find_groups(coupled, image), image)  # asserts equal answers itself
    assert {s.layer for s in layers} == set(eligible(coupled))
    assert sum(s.kept for s in layers) > sum(s.unpermuted for s in layers) + 0.1
    named = dict(coupled.named_modules())
    assert all(has_pattern(named[s.layer].weight.numpy()) for s in layers)
    with torch.no_grad():
        named["inner.0"].weight.add_(1.0)
    masks()
    assert has_pattern(named["inner.0"].weight.numpy())


def test_what_is_eligible(coupled: nn.Module) -> None:
    found = eligible(coupled, ["left*"])
    assert "inner.0" in found
    assert not {"stem.0", "depthwise.0", "grouped.0", "left.0", "classifier"} & set(found)


def graph(weight: np.ndarray, *, integers: bool) -> onnx.ModelProto:
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    agraph (float[1, 8, 4, 4] x) => (float[1, 4, 4, 4] y) { y = Conv (x, w) }
    """
    if integers:
        text = text.replace("{ y =", "<float s = {0.5}> { w = DequantizeLinear (q, s)\n y =")
    model = onnx.parser.parse_model(text)
    name = "q" if integers else "w"
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    model.graph.node[-1].name = "conv"
    return model


@pytest.mark.parametrize("integers", [False, True])
def test_the_graph_is_checked_in_float_and_in_int8(integers: bool) -> None:
    weight = np.random.default_rng(0).integers(1, 9, (4, 8, 1, 1)).astype(np.int8 if integers else np.float32)
    assert sparse_layers(graph(weight, integers=integers)) == []
    with pytest.raises(ExportError, match=r"sparsity is lost in 1 layers .*conv"):
        require_sparse(graph(weight, integers=integers), ["conv"])
    weight[:, ::2] = 0
    assert sparse_layers(graph(weight, integers=integers)) == ["conv"]
    require_sparse(graph(weight, integers=integers), ["conv"])
