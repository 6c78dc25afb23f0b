"""RoIAlign by one GridSample equals torchvision's operator, on every level and at every edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.torchvision.roi_align import RoiAlign
from edgesmith.sdk.errors import SourceError

SIZE = (192, 256)


def regions(seed: int) -> Tensor:
    """Boxes (2, 220, 4): of all sizes, thinner than a cell, at the edges, and empty."""
    random = torch.Generator().manual_seed(seed)
    height, width = SIZE
    corners = torch.rand(2, 220, 2, 2, generator=random) * torch.tensor([width, height])
    boxes = torch.cat((corners.amin(2), corners.amax(2)), 2)
    boxes[:, :20, 2:] = boxes[:, :20, :2] + 1.5
    boxes[:, 20:30, 0], boxes[:, 20:30, 2] = width - 0.5, width
    boxes[:, 30:40, 1], boxes[:, 30:40, 3] = height - 0.5, height
    boxes[:, 40:60] *= 0.1
    boxes[:, 60:65] = 0
    boxes[:, 65:70] = torch.tensor([0.0, 0.0, width, height])
    return torch.minimum(boxes, torch.tensor([width, height, width, height]).float())


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (16, 32), (8,)])
@pytest.mark.parametrize("cells", [7, 14])
def test_equals_the_operator(strides: tuple[int, ...], cells: int) -> None:
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    maps = {str(n): torch.randn(2, 5, SIZE[0] // s, SIZE[1] // s) for n, s in enumerate(strides)}
    pool = MultiScaleRoIAlign(list(maps), cells, 2)
    boxes = regions(cells)
    wanted = pool(maps, list(boxes), [SIZE, SIZE])
    mine = RoiAlign(pool, [(m.shape[2], m.shape[3]) for m in maps.values()], SIZE)
    found = mine(list(maps.values()), boxes)
    assert found.shape == wanted.shape == (440, 5, cells, cells)
    assert float((found - wanted).abs().max()) < 1e-4
    assert float(wanted[20:30].abs().min()) == 0  # the samples beyond the edge count as nothing


class Pooled(nn.Module):
    """Two maps and boxes to features."""

    def __init__(self, pool: RoiAlign) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor) -> tuple[Tensor]:
        return (self.pool([fine, coarse], boxes),)


def test_in_the_graph_there_is_one_sampling_and_no_operator_of_its_own(exported: Any, session: Any) -> None:
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    maps = {str(n): torch.randn(2, 5, SIZE[0] // s, SIZE[1] // s) for n, s in enumerate((8, 16))}
    pool, boxes = MultiScaleRoIAlign(list(maps), 7, 2), regions(0)
    module = Pooled(RoiAlign(pool, [(m.shape[2], m.shape[3]) for m in maps.values()], SIZE))
    model = exported(module, tuple(t[:1] for t in (*maps.values(), boxes)), ("features",))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GridSample") == 1
    assert not {"RoiAlign", "NonZero", "If", "Loop", "ScatterND", "MatMul"} & set(kinds)
    found = session(model)(*(t.numpy() for t in (*maps.values(), boxes)))["features"]
    wanted = pool(maps, list(boxes), [SIZE, SIZE]).numpy()
    assert float(abs(found - wanted).max()) < 1e-3


def test_every_level_is_read() -> None:
    from torchvision.ops import MultiScaleRoIAlign

    maps = {
        str(n): torch.full((1, 1, 192 // s, 256 // s), float(n + 1)) for n, s in enumerate((4, 8, 16, 32))
    }
    pool = MultiScaleRoIAlign(list(maps), 7, 2)
    # Stride 8 begins at a side of 112 pixels, the next ones at twice that.
    sides = [111.9, 112.0, 223.9, 224.0, 447.9, 448.0]
    boxes = torch.tensor([[[0, 0, s, s] for s in sides]])
    mine = RoiAlign(pool, [(m.shape[2], m.shape[3]) for m in maps.values()], SIZE)
    wanted = pool(maps, list(boxes), [SIZE])[:, 0, 0, 0]
    assert wanted.tolist() == [1, 2, 2, 3, 3, 4]
    assert torch.allclose(mine(list(maps.values()), boxes)[:, 0, 0, 0], wanted)


def test_a_number_of_samples_that_depends_on_the_box_is_refused() -> None:
    from torchvision.ops import MultiScaleRoIAlign

    pool: Any = MultiScaleRoIAlign(["0"], 7, 0)
    with pytest.raises(SourceError, match=r"sampling_ratio 0.*Set it to 2"):
        RoiAlign(pool, [(24, 32)], SIZE)
