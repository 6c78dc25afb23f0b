"""CornerNet: a box as a pair of corners, found on heatmaps and matched by embeddings.

"CornerNet: Detecting Objects as Paired Keypoints" (Law and Deng, 2018, arXiv 1808.01244, section 3),
CornerNet-Squeeze ("CornerNet-Lite", Law et al., 2019, arXiv 1904.08900), and with heatmaps of centres the
rule of "CenterNet: Keypoint Triplets" (Duan et al., 2019, arXiv 1904.08189, section 3.2). All shapes are
fixed.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

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
    "top_left": frozenset({"top_left", "tl_heat", "tl_heats", "tl"}),
    "bottom_right": frozenset({"bottom_right", "br_heat", "br_heats", "br"}),
    "top_left_tag": frozenset({"top_left_tag", "tl_tag", "tl_tags", "tl_emb"}),
    "bottom_right_tag": frozenset({"bottom_right_tag", "br_tag", "br_tags", "br_emb"}),
    "top_left_offset": frozenset({"top_left_offset", "tl_off", "tl_offs", "tl_regr"}),
    "bottom_right_offset": frozenset({"bottom_right_offset", "br_off", "br_offs", "br_regr"}),
    "centre": frozenset({"centre", "ct_heat", "center"}),
    "centre_offset": frozenset({"centre_offset", "ct_regr", "center_offset"}),
}
CORNERS = tuple(NAMES)[:6]
TRIPLETS = (
    "top_left", "bottom_right", "centre", "top_left_tag", "bottom_right_tag", "top_left_offset",
    "bottom_right_offset", "centre_offset",
)  # fmt: skip
SAME_OBJECT = 0.5  # embeddings nearer than this belong to one object
PAIRS = 1000  # boxes kept of all pairs
# Keypoint triplets, section 3.2: the middle is a third of a small box's side, a fifth of a large one's.
SMALL_AREA = 150.0**2


class Points(NamedTuple):
    """The best points of a heatmap: scores, class numbers, x, y in pixels and cell numbers, all (N, K)."""

    score: Tensor
    label: Tensor
    x: Tensor
    y: Tensor
    cell: Tensor


class CornerNetHead(nn.Module):
    """Heatmaps (N, C, h, w), embeddings (N, 1, h, w) and offsets (N, 2, h, w) of both corners.

        corner = peak of 3 x 3 cells, the best ``candidates`` (100) of all classes; x, y = cell + offset
        pair = same class, embeddings within 0.5, the second corner right of and below the first
        score = mean of the two corners' scores; the best 1000 pairs stay

    With heatmaps of centres a pair stays only where a centre of its class lies in its middle, and the score
    is the mean of all three. ``nms.iou`` suppresses what is found twice, as the authors do (0.5, softly).
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"maps", "strides", "candidates", "activated"})
    output_names = DETECTOR_OUTPUTS
    ones: Tensor
    numbers: Tensor

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
        self.pairs = min(PAIRS, self.candidates**2)
        # Not the stride: 511 pixels on 128 cells, as the authors map them.
        self.step = (size[1] / level.columns, size[0] / level.rows)
        self.register_buffer("ones", torch.ones(1, classes, 1, dtype=torch.int64))
        self.register_buffer("numbers", torch.arange(classes)[None, None])

    @classmethod
    def from_outputs(cls, seen: Outputs) -> CornerNetHead | Declined:
        options = read_options(seen.options)
        roles = roles_of(seen, options.maps, NAMES, (CORNERS, TRIPLETS))
        if isinstance(roles, Declined):
            return roles
        missing = [role for role in CORNERS if role not in roles]
        if missing or ("centre" in roles) != ("centre_offset" in roles):
            return Declined(f"{', '.join(missing) or 'centre or centre_offset'} is missing among the outputs")
        heat = seen.tensors[roles["top_left"]]
        classes = int(heat.shape[1])
        for role, place in roles.items():
            channels = 1 if role.endswith("tag") else 2 if role.endswith("offset") else classes
            wanted = (1, channels, *heat.shape[2:])
            if seen.shapes[place] != wanted:
                return Declined(f"{role} is {seen.shapes[place]}, not {wanted}")
        wrong = classes_declined(classes, seen.labels, f"{classes} heatmaps a corner")
        if wrong is not None:
            return wrong
        named = any(key.rpartition(".")[2] in NAMES["top_left"] for key in seen.keys)
        if classes < 3 and options.maps is None and not named:
            return ambiguous(CORNERS)  # heatmaps look like embeddings or offsets
        levels = levels_from_maps([(int(heat.shape[2]), int(heat.shape[3]))], seen.size, options.strides)
        if isinstance(levels, Declined):
            return levels
        heats = [seen.tensors[roles[role]] for role in ("top_left", "bottom_right")]
        activated = are_activated(heats, options.activated)
        if isinstance(activated, Declined):
            return activated
        return cls(
            levels[0], classes, roles, seen.size,
            candidates=options.candidates or CANDIDATES, activated=activated,
        )  # fmt: skip

    def describe(self) -> str:
        centres = " and centres" if "centre" in self.roles else ""
        return (
            f"corners{centres} on {describe_levels((self.level,), self.classes)}, the best {self.candidates}"
        )

    def forward(self, raw: object) -> tuple[Tensor, Tensor]:
        maps = {role: tensors_of(raw)[place].float() for role, place in self.roles.items()}
        first = self.points(maps["top_left"], maps["top_left_offset"])
        second = self.points(maps["bottom_right"], maps["bottom_right_offset"])
        (one,) = at_cells(maps["top_left_tag"], first.cell)
        (other,) = at_cells(maps["bottom_right_tag"], second.cell)
        fits = (
            (first.label.unsqueeze(2) == second.label.unsqueeze(1))
            & ((one.unsqueeze(2) - other.unsqueeze(1)).abs() <= SAME_OBJECT)
            & (second.x.unsqueeze(1) >= first.x.unsqueeze(2))
            & (second.y.unsqueeze(1) >= first.y.unsqueeze(2))
        )
        mean = (first.score.unsqueeze(2) + second.score.unsqueeze(1)) * 0.5
        score, pair = torch.topk(torch.where(fits, mean, 0.0).flatten(1), self.pairs, 1)
        i, j = pair // self.candidates, pair % self.candidates
        corners = first.x.gather(1, i), first.y.gather(1, i), second.x.gather(1, j), second.y.gather(1, j)
        boxes = torch.stack(corners, 2)
        # Where no pair is left a row is a box of two corners that do not fit: empty, with no score.
        boxes = torch.where((score > 0).unsqueeze(2), boxes, 0.0)
        label = first.label.gather(1, i)
        if "centre" in maps:
            score = self.with_centres(boxes, score, label, self.points(maps["centre"], maps["centre_offset"]))
        return boxes, torch.where(label.unsqueeze(2) == self.numbers, score.unsqueeze(2), 0.0)

    def points(self, heat: Tensor, offset: Tensor) -> Points:
        """The best points of a heatmap over all classes, best first."""
        scores, cells = best_cells(
            peaks_only(heat if self.activated else heat.sigmoid()), self.candidates, self.ones
        )
        score, place = torch.topk(scores.flatten(1), self.candidates, 1)
        cell = cells.gather(1, place % self.candidates)
        right, down = at_cells(offset, cell)
        columns = self.level.columns
        x = ((cell % columns).float() + right) * self.step[0]
        y = ((cell // columns).float() + down) * self.step[1]
        return Points(score, place // self.candidates, x, y, cell)

    def with_centres(self, boxes: Tensor, score: Tensor, label: Tensor, centres: Points) -> Tensor:
        """Scores (N, D) of boxes (N, D, 4) with the best centre of their class in their middle, else zero."""
        x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
        small = (x2 - x1) * (y2 - y1) <= SMALL_AREA
        # The share of the side that lies before the middle region: (n - 1) / 2n for n = 3 and n = 5.
        before = torch.where(small, 1 / 3, 2 / 5)
        left, top = x1 + before * (x2 - x1), y1 + before * (y2 - y1)
        right, bottom = x2 - before * (x2 - x1), y2 - before * (y2 - y1)
        x, y = centres.x.unsqueeze(1), centres.y.unsqueeze(1)
        inside = (
            (x > left.unsqueeze(2)) & (x < right.unsqueeze(2))
            & (y > top.unsqueeze(2)) & (y < bottom.unsqueeze(2))
            & (label.unsqueeze(2) == centres.label.unsqueeze(1))
        )  # fmt: skip
        best = torch.where(inside, centres.score.unsqueeze(1), 0.0).amax(2)
        return torch.where(best > 0, (score * 2 + best) / 3, 0.0)
