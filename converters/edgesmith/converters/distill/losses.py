"""What a student's answers lack of a teacher's."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-6
FOCUS = 2.0  # power of the distance in the class loss: answers that agree already weigh little
CONFIDENT = 0.05  # score below which a teacher's box teaches nothing about its place
MOST_BOXES = 100  # of a teacher's image, where boxes have to be matched


def logits_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence of softened classes, times T squared (Hinton, Vinyals, Dean 2015, section 2).

    Args:
        student, teacher: logits ``(N, C)``, or ``(N, C, H, W)`` by pixel.
        temperature: T.
    """
    wanted = F.softmax(teacher.float() / temperature, 1)
    got = F.log_softmax(student.float() / temperature, 1)
    each = F.kl_div(got, wanted, reduction="none").sum(1)
    return each.mean() * temperature**2


def attention_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Distance of normalised attention maps, mean squares over channels (Zagoruyko, Komodakis 2017, eq. 2).

    Args:
        student, teacher: ``(N, C, H, W)``; the finer map is averaged to the coarser one's size.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    maps = []
    for values in (student, teacher):
        energy = values.float().pow(2).mean(1, keepdim=True)
        maps.append(F.normalize(F.adaptive_avg_pool2d(energy, size).flatten(1), dim=1))
    return (maps[0] - maps[1]).pow(2).sum(1).mean()


class Hint(nn.Module):
    """Mean squared distance after a learned projection to the teacher's width (Romero 2015, FitNets)."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(student_width, teacher_width, 1)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` each; the student's map is averaged to the teacher's size."""
        got = self.projection(F.adaptive_avg_pool2d(student, (teacher.shape[2], teacher.shape[3])))
        return F.mse_loss(got.float(), teacher.float())


def class_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the teacher's scores, weighted by the squared distance (Li et al. 2020, GFL, eq. 4).

    Args:
        student, teacher: scores 0..1 ``(N, K, C)``.
    """
    got = student.float().clamp(EPSILON, 1 - EPSILON)
    wanted = teacher.float()
    entropy = -(wanted * got.log() + (1 - wanted) * (1 - got).log())
    each = (wanted - got).abs().pow(FOCUS) * entropy
    return each.sum() / wanted.amax(2).sum().clamp(min=1.0)


def box_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """1 - GIoU (Rezatofighi et al. 2019), weighted by the teacher's confidence.

    Args:
        student, teacher: boxes xyxy ``(..., 4)``.
        weight: ``(...)``.
    """
    each = 1 - generalized_iou(student.float(), teacher.float())
    return (weight * each).sum() / weight.sum().clamp(min=EPSILON)


def generalized_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """GIoU of boxes xyxy ``(..., 4)``, broadcast, -1..1."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1), (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    union = (areas[0] + areas[1] - common).clamp(min=EPSILON)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = around.clamp(min=0).prod(-1).clamp(min=EPSILON)
    return common / union - (hull - union) / hull


def detection_losses(
    student: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class loss and box loss of canonical outputs, apart.

    Where both give as many boxes, the boxes at one place are compared; heads of other families have other
    grids: there each confident box of the teacher teaches the student's nearest.

    Args:
        student, teacher: boxes ``(N, K, 4)`` xyxy and scores ``(N, K, C)`` each.
    """
    (boxes, scores), (known_boxes, known_scores) = student, teacher
    if boxes.shape[1] != known_boxes.shape[1]:
        known_boxes, known_scores = _matched(boxes, scores, known_boxes, known_scores)
    confidence = known_scores.amax(2)
    weight = torch.where(confidence >= CONFIDENT, confidence, torch.zeros_like(confidence))
    return class_loss(scores, known_scores), box_loss(boxes, known_boxes, weight)


@torch.no_grad()
def _matched(
    boxes: torch.Tensor, scores: torch.Tensor, known_boxes: torch.Tensor, known_scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's boxes and scores on the student's places ``(N, K, ...)``, zero where it has none.

    The least confident box is put first, so that a place that two want goes to the surer one.
    """
    targets = torch.zeros_like(boxes, dtype=torch.float32), torch.zeros_like(scores, dtype=torch.float32)
    count = min(MOST_BOXES, known_boxes.shape[1])
    for image in range(len(boxes)):
        sure = known_scores[image].amax(1)
        order = sure.topk(count).indices.flip(0)
        order = order[sure[order] >= CONFIDENT]
        if not len(order):
            continue
        wanted, classes = known_boxes[image, order], known_scores[image, order]
        near = generalized_iou(wanted[:, None].float(), boxes[image][None].float())
        best = classes.argmax(1)
        fit = near + scores[image].float()[:, best].T  # place first, then what it is already
        place = fit.argmax(1)
        for row, at in enumerate(place.tolist()):
            targets[0][image, at], targets[1][image, at] = wanted[row].float(), classes[row].float()
    return targets
