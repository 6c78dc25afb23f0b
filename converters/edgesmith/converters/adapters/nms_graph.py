"""Non-maximum suppression inside the graph, every shape static: no NonZero, no Loop, no plugin.

Greedy suppression over candidates sorted best first is the only fixed point of

    keep_i = valid_i and no j < i with keep_j and M_ij
    M_ij   = same class and j < i and inter_ij > iou * union_ij

so starting from ``keep = valid`` and repeating settles from the best candidate downwards: after t
steps everything is right whose chain of suppressions is at most t long. Chains of real images are
a few long; :data:`STEPS` are done, and ``converged`` says whether the last one changed anything.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesmith.sdk.errors import RecipeError
from edgesmith.sdk.manifest import Nms

logger = logging.getLogger(__name__)

STEPS = 16
TOP_K_LIMIT = 3840  # the most that TensorRT's TopK gives
MANY_CANDIDATES = 500  # the overlap matrix is K x K: beyond this it outweighs small detectors
NMS_OUTPUTS = (
    "boxes",
    "scores",
    "labels",
    "count",
    "converged",
    "candidate_boxes",
    "candidate_scores",
    "candidate_labels",
)


class GraphNms(nn.Module):
    """Canonical boxes (N, K0, 4) and scores (N, K0, C) to the detections of each image.

    Built at ``nms.evaluation_score`` and ``nms.iou``; equal to ``sdk.decode.nms.suppress`` with the
    same settings wherever ``converged``. With K = ``nms.candidates`` (at most K0, or K0 * C for
    ``classes = "all"``) and M = ``nms.max_detections``, the outputs are

    - ``boxes`` (N, M, 4), ``scores`` (N, M), ``labels`` (N, M) int32: best first, then zeros;
    - ``count`` (N,) int32: how many of the M are detections;
    - ``converged`` (N,) bool: false where more steps would change the answer;
    - ``candidate_boxes`` (N, K, 4), ``candidate_scores`` (N, K), ``candidate_labels`` (N, K) int32:
      what entered the suppression, best first, then zeros, for a greedy one on the host.

    Integers are int32 since TensorRT's TopK counts in it, and since its older versions have no
    int64 outputs: the same bundle then gives the same types on all of them.

    Equal scores are ordered by the box's number (and class), as on the host, even where a
    backend's TopK leaves their order open. Only which of several equal scores at the very end of
    the K candidates get in is then up to the backend.

    Raises:
        RecipeError: ``candidates`` or ``max_detections`` is more than TensorRT's TopK can give.
    """

    before: Tensor
    ones: Tensor
    ranks: Tensor

    def __init__(self, nms: Nms, *, rows: int, classes: int, steps: int = STEPS) -> None:
        super().__init__()
        self.steps = steps
        for key in ("candidates", "max_detections"):
            if getattr(nms, key) > TOP_K_LIMIT:
                raise RecipeError(
                    f"nms.{key} is {getattr(nms, key)}; in the graph it is at most {TOP_K_LIMIT}, the "
                    'limit of TensorRT TopK (300 candidates are usual). Lower it, or set nms.where = "host"',
                    key=f"nms.{key}",
                )
        self.classes = classes
        self.every_class = nms.classes == "all"
        self.rows = min(nms.candidates, rows)
        self.candidates = min(nms.candidates, rows * classes) if self.every_class else self.rows
        self.kept = min(nms.max_detections, self.candidates)
        self.padding = nms.max_detections - self.kept
        self.score, self.iou = nms.evaluation_score, nms.iou
        if self.candidates > MANY_CANDIDATES:
            logger.warning(
                "nms.candidates is %d: suppression in the graph compares %d pairs of boxes in %d steps; "
                "300 is usual and much faster",
                self.candidates,
                self.candidates**2,
                STEPS,
            )
        place = torch.arange(self.candidates)
        # before[i, j]: candidate j comes before candidate i.
        self.register_buffer("before", place[None, :] < place[:, None])
        self.register_buffer("ones", torch.ones(1, 1, classes, dtype=torch.int64))
        self.register_buffer("ranks", (self.candidates - place).float()[None])

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return self.detections(*self.select(boxes.float(), scores.float()))

    def detections(self, near: Tensor, found: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The outputs for K candidates, best first: boxes (N, K, 4), scores and labels (N, K)."""
        keep, converged = self.suppress(near, found, labels)
        # Kept candidates by falling rank, all different: the order is fixed. The rest have key 0.
        key, place = torch.topk(keep * self.ranks, self.kept, 1)
        real = key > 0
        out_boxes = torch.where(real.unsqueeze(2), rows_of(near, place), 0.0)
        out_scores = torch.where(real, found.gather(1, place), 0.0)
        out_labels = torch.where(real, labels.gather(1, place), 0)
        if self.padding:
            out_boxes = functional.pad(out_boxes, (0, 0, 0, self.padding))
            out_scores = functional.pad(out_scores, (0, self.padding))
            out_labels = functional.pad(out_labels, (0, self.padding))
        count = real.to(torch.int32).sum(1, dtype=torch.int32)
        return (
            out_boxes,
            out_scores,
            out_labels.to(torch.int32),
            count,
            converged,
            near,
            found,
            labels.to(torch.int32),
        )

    def select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best K candidates above the threshold: boxes, scores, labels int64; zeros after them."""
        best, row = torch.topk(self._above(scores.amax(2)), self.rows, 1)
        if self.every_class:
            # The best K pairs of box and class lie in the K boxes with the best scores: two small
            # TopK in place of one over all pairs. Back in the order of their numbers, since
            # that decides between equal scores.
            row = torch.topk(row.float(), self.rows, 1, largest=False)[0].long()
            pairs = self._above(scores.gather(1, row.unsqueeze(2) * self.ones))
            found, pair = self.ordered(*torch.topk(pairs.flatten(1), self.candidates, 1))
            row, labels = row.gather(1, pair // self.classes), pair % self.classes
        else:
            found, row = self.ordered(best, row)
            labels = scores.argmax(2).gather(1, row)
        real = found > 0
        near = torch.where(real.unsqueeze(2), rows_of(boxes, row), 0.0)
        return near, found, torch.where(real, labels, 0)

    def _above(self, scores: Tensor) -> Tensor:
        """Scores above the threshold; others become zero, which never is, and so mark themselves."""
        return torch.where(scores > self.score, scores, 0.0)

    def ordered(self, found: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates (N, K) by falling score, equal scores by rising number."""
        mine, other = found.unsqueeze(2), found.unsqueeze(1)
        first = (other > mine) | ((other == mine) & (number.unsqueeze(1) < number.unsqueeze(2)))
        behind = first.to(torch.float32).sum(2)
        # Every candidate has another number of candidates before it, so this TopK has no ties.
        _, order = torch.topk(behind, self.candidates, 1, largest=False)
        return found.gather(1, order), number.gather(1, order)

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which candidates stay, float32 (N, K) of ones and zeros, and whether that is settled (N,)."""
        same = labels.unsqueeze(2) == labels.unsqueeze(1)
        return settled(overlapping(boxes, self.iou) & same & self.before, scores > 0, self.steps)


class WithNms(nn.Module):
    """A detector with canonical outputs, then the suppression."""

    def __init__(self, detector: nn.Module, nms: GraphNms) -> None:
        super().__init__()
        self.detector = detector
        self.nms = nms

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        boxes, scores = self.detector(images)
        result: tuple[Tensor, ...] = self.nms(boxes, scores)
        return result


def settled(over: Tensor, valid: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The fixed point: who stays, float32 (N, K) of ones and zeros, and whether it is reached, bool (N,).

    ``over`` is bool (N, K, K): j suppresses i where ``over[i, j]`` and j stays. ``valid`` is bool (N, K).
    """
    suppressors, start = over.float(), valid.float().unsqueeze(2)
    keep, previous = start, start
    for _ in range(steps):
        previous = keep
        # The product counts who suppresses me: zero leaves valid as it is, any other number
        # brings it below one and the ReLU to zero.
        keep = torch.relu(start - suppressors @ keep)
    changed = (keep - previous).abs().amax((1, 2))
    return keep.squeeze(2), changed < 0.5


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, k, 4) of ``values`` (N, K, 4) at ``index`` (N, k)."""
    # Four copies by Concat: an expand would bring the batch size into the graph as a Shape.
    column = index.unsqueeze(2)
    return values.gather(1, torch.cat((column, column, column, column), 2))


def overlapping(boxes: Tensor, iou: float) -> Tensor:
    """bool (N, K, K): two boxes overlap by more than ``iou``; no division, as on the host."""
    x1, y1, x2, y2 = (boxes[..., i : i + 1] for i in range(4))
    left, top = torch.maximum(x1, x1.transpose(1, 2)), torch.maximum(y1, y1.transpose(1, 2))
    right, bottom = torch.minimum(x2, x2.transpose(1, 2)), torch.minimum(y2, y2.transpose(1, 2))
    inter = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    area = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    union = area + area.transpose(1, 2) - inter
    return inter > union * iou
