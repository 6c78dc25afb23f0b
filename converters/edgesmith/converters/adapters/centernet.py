"""CenterNet: the centre of an object is a peak of its class's heatmap.

"Objects as Points" (Zhou et al., 2019, arXiv 1904.07850, section 4).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgesmith.converters.adapters.base import DETECTOR_OUTPUTS, Declined, Outputs, tensors_of
from edgesmith.converters.adapters.heatmaps import (
    CANDIDATES,
    ambiguous,
    at_cells,
    best_cells,
    peaks_only,
    roles_of,
)
from edgesmith.converters.adapters.levels import (
    Level,
    are_activated,
    classes_declined,
    describe_levels,
    levels_from_maps,
)
from edgesmith.converters.adapters.options import read_options

NAMES = {
    "heatmap": frozenset({"heatmap", "heatmaps", "hm", "center_heatmap"}),
    "size": frozenset({"size", "sizes", "wh"}),
    "offset": frozenset({"offset", "offsets", "reg", "off"}),
}
ORDER = ("heatmap", "size", "offset")


class CenterNetHead(nn.Module):
    """Maps of one stride: class heatmap (N, C, h, w), sizes (N, 2, h, w), offsets (N, 2, h, w) or none.

        peak = largest of its 3 x 3 cells      x, y = (column, row) + offset     w, h = size, all in cells
        score = sigmoid(heatmap) at a peak, else 0

    The ``candidates`` cells (100) with the best scores are given, each with all its classes: nothing needs
    suppressing. Set ``nms.iou = 1.0`` and ``nms.classes = "all"`` in the recipe for the author's decode.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"maps", "strides", "candidates", "activated"})
    ONE_BOX_AN_OBJECT = True
    output_names = DETECTOR_OUTPUTS
    ones: Tensor
    step: Tensor

    def __init__(
        self,
        level: Level,
        classes: int,
        roles: dict[str, int],
        size: tuple[int, int],
        *,
        candidates: int = CANDIDATES,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.level, self.classes, self.roles, self.activated = level, classes, roles, activated
        self.candidates = min(candidates, level.cells)
        self.register_buffer("ones", torch.ones(1, classes, 1, dtype=torch.int64))
        self.register_buffer("step", torch.tensor([size[1] / level.columns, size[0] / level.rows]))

    @classmethod
    def from_outputs(cls, seen: Outputs) -> CenterNetHead | Declined:
        options = read_options(seen.options)
        roles = roles_of(seen, options.maps, NAMES, (ORDER, ORDER[:2]))
        if isinstance(roles, Declined):
            return roles
        if not {"heatmap", "size"} <= set(roles):
            return Declined("it takes at least a heatmap (N, C, h, w) and sizes (N, 2, h, w)")
        heat = seen.tensors[roles["heatmap"]]
        shapes = {role: seen.shapes[place] for role, place in roles.items()}
        if any(len(shape) != 4 or shape[2:] != heat.shape[2:] for shape in shapes.values()):
            return Declined(f"heatmap, sizes and offsets have the same rows and columns, these are {shapes}")
        if any(shape[1] != 2 for role, shape in shapes.items() if role != "heatmap"):
            return Declined(f"sizes and offsets have 2 channels, these are {shapes}")
        wrong = classes_declined(int(heat.shape[1]), seen.labels, f"{heat.shape[1]} heatmaps")
        if wrong is not None:
            return wrong
        by_order = options.maps is None and not any(
            key.rpartition(".")[2] in NAMES["heatmap"] for key in seen.keys
        )
        if by_order:
            return ambiguous(ORDER)  # sizes and offsets look alike
        levels = levels_from_maps([(int(heat.shape[2]), int(heat.shape[3]))], seen.size, options.strides)
        if isinstance(levels, Declined):
            return levels
        activated = are_activated([heat], options.activated)
        if isinstance(activated, Declined):
            return activated
        return cls(
            levels[0], int(heat.shape[1]), roles, seen.size,
            candidates=options.candidates or CANDIDATES, activated=activated,
        )  # fmt: skip

    def describe(self) -> str:
        return f"centres on {describe_levels((self.level,), self.classes)}, the best {self.candidates} cells"

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        tensors = tensors_of(raw)
        heat = tensors[self.roles["heatmap"]].float()
        if not self.activated:
            heat = heat.sigmoid()
        scores, cell = best_cells(peaks_only(heat), self.candidates, self.ones)
        columns = self.level.columns
        x, y = (cell % columns).float(), (cell // columns).float()
        if "offset" in self.roles:
            right, down = at_cells(tensors[self.roles["offset"]].float(), cell)
            x, y = x + right, y + down
        width, height = at_cells(tensors[self.roles["size"]].float(), cell)
        centre = torch.stack((x, y), 2) * self.step
        # A size below zero, which an untrained network gives, is an empty box.
        half = torch.stack((width, height), 2).clamp(min=0) * (self.step * 0.5)
        return torch.cat((centre - half, centre + half), 2), scores.transpose(1, 2)
