"""What each loss is, against values worked out apart from it."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision

from edgesmith.converters.distill.losses import (
    Hint,
    attention_loss,
    box_loss,
    class_loss,
    detection_losses,
    generalized_iou,
    logits_loss,
)


def test_softened_classes_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0 * math.log(3.0), 0.0]])
    # At T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2.
    wanted = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(logits_loss(student, teacher, 2.0)) == pytest.approx(wanted, rel=1e-5)
    assert float(logits_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_size_of_the_gradient_does_not_fall_with_the_temperature() -> None:
    # T squared is there for this (Hinton 2015, section 2.1).
    sizes = []
    for temperature in (10.0, 100.0):
        student = torch.zeros(1, 5, requires_grad=True)
        torch.autograd.backward(logits_loss(student, torch.tensor([[0.5, -0.2, 0.1, 0.3, 0.0]]), temperature))
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_maps_of_classes_are_compared_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (student, teacher)]
    assert float(logits_loss(student, teacher, 3.0)) == pytest.approx(
        float(logits_loss(flat[0], flat[1], 3.0)), rel=1e-5
    )


def test_attention_looks_at_where_and_not_at_how_much() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 6, 8, 8)
    assert float(attention_loss(features, 7 * features)) == pytest.approx(0.0, abs=1e-6)
    assert float(attention_loss(features, features.flip(3))) > 0.01
    wider = features.repeat(1, 3, 1, 1)  # another number of channels, the same places
    assert float(attention_loss(features, wider)) == pytest.approx(0.0, abs=1e-6)
    assert float(attention_loss(features, torch.randn(2, 3, 4, 4))) > 0


def test_a_hint_can_be_learned_to_nothing() -> None:
    torch.manual_seed(0)
    student = torch.randn(4, 3, 6, 6)
    teacher = torch.nn.Conv2d(3, 5, 1)(student).detach()
    hint = Hint(3, 5)
    optimizer = torch.optim.Adam(hint.parameters(), 0.05)
    first = float(hint(student, teacher).detach())
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(hint(student, teacher))
        optimizer.step()
    assert float(hint(student, teacher).detach()) < 0.01 * first


def test_giou_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    low = torch.rand(20, 2) * 10
    boxes = torch.cat((low, low + 0.5 + torch.rand(20, 2) * 5), 1)
    wanted = torchvision.ops.generalized_box_iou(boxes[:10], boxes[10:])
    assert torch.allclose(generalized_iou(boxes[:10, None], boxes[None, 10:]), wanted, atol=1e-5)


def test_boxes_without_confidence_teach_nothing() -> None:
    student = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 4, 4]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, 0, 10, 8], [50, 50, 60, 60]]])
    loss = box_loss(student, teacher, torch.tensor([[0.9, 0.0]]))
    assert float(loss.detach()) == pytest.approx(1 - 0.8, abs=1e-5)
    torch.autograd.backward(loss)
    assert student.grad is not None
    assert student.grad[0, 1].abs().sum() == 0


def test_the_class_loss_is_least_at_the_teachers_scores() -> None:
    teacher = torch.tensor([[[0.8, 0.1]]])
    at = float(class_loss(teacher, teacher))
    assert at == pytest.approx(0.0, abs=1e-6)
    for other in ([[[0.5, 0.1]]], [[[0.8, 0.4]]], [[[0.99, 0.01]]]):
        assert float(class_loss(torch.tensor(other), teacher)) > at


def test_heads_with_other_grids_are_matched_by_place() -> None:
    # The teacher has two boxes, the student five; the second of the student lies near the teacher's first.
    teacher = torch.tensor([[[10.0, 10, 30, 30], [60, 60, 90, 90]]]), torch.tensor([[[0.9, 0.0], [0.0, 0.8]]])
    boxes = torch.tensor(
        [[[0.0, 0, 5, 5], [11, 9, 30, 31], [40, 40, 50, 50], [61, 58, 92, 90], [0, 90, 5, 99]]]
    )
    boxes.requires_grad_(True)
    scores = torch.full((1, 5, 2), 0.1, requires_grad=True)
    classes, places = detection_losses((boxes, scores), teacher)
    torch.autograd.backward(classes + places)
    assert boxes.grad is not None
    assert scores.grad is not None
    assert [bool(row.any()) for row in boxes.grad[0]] == [False, True, False, True, False]
    assert scores.grad[0, 1, 0] < 0  # towards the teacher's class
    assert scores.grad[0, 3, 1] < 0
    assert scores.grad[0, 0, 0] > 0  # where the teacher has no box, down


def test_an_image_without_objects_has_a_finite_loss() -> None:
    boxes, scores = torch.rand(1, 4, 4), torch.rand(1, 4, 2)
    for known in (torch.zeros(1, 4, 2), torch.zeros(1, 7, 2)):
        losses = detection_losses((boxes, scores), (torch.zeros(1, known.shape[1], 4), known))
        assert all(bool(torch.isfinite(loss)) for loss in losses)
