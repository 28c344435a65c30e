"""Losses against numbers worked out by hand and against plain loops."""

import math

import pytest
import torch

from deformable_detr.core.boxes import cxcywh_to_xyxy, generalized_iou
from deformable_detr.models.losses.losses import class_cost, focal_loss, giou_loss, l1_loss, one_hot


def test_focal_loss_by_hand():
    # p = 0.8: as an object 0.25 * 0.2^2 * -log 0.8, as background 0.75 * 0.8^2 * -log 0.2.
    logit = math.log(4)
    loss = focal_loss(torch.tensor([logit, logit]), torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2.0)
    expected = torch.tensor([0.25 * 0.04 * -math.log(0.8), 0.75 * 0.64 * -math.log(0.2)])
    torch.testing.assert_close(loss, expected)


def test_focal_loss_is_finite_far_out():
    loss = focal_loss(torch.tensor([-200.0, 200.0]), torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2.0)
    torch.testing.assert_close(loss, torch.tensor([50.0, 150.0]))


def test_class_cost_is_object_minus_background():
    logits = torch.randn(4, 3)
    ones, zeros = torch.ones_like(logits), torch.zeros_like(logits)
    expected = focal_loss(logits, ones, alpha=0.3, gamma=1.5) - focal_loss(logits, zeros, alpha=0.3, gamma=1.5)
    torch.testing.assert_close(class_cost(logits, alpha=0.3, gamma=1.5), expected, rtol=1e-4, atol=1e-6)


def test_l1_and_giou_by_hand():
    # Two unit squares side by side with a gap of one: IoU 0, hull 3, union 2.
    one = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    other = torch.tensor([[2.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(l1_loss(one, other), torch.tensor([2.0]))
    torch.testing.assert_close(giou_loss(one, other), torch.tensor([1 + 1 / 3]))
    torch.testing.assert_close(giou_loss(one, one), torch.tensor([0.0]))


def test_giou_pairwise_equals_one_by_one():
    a = cxcywh_to_xyxy(torch.rand(5, 4) + 0.01)
    b = cxcywh_to_xyxy(torch.rand(3, 4) + 0.01)
    pairwise = generalized_iou(a[:, None], b[None])
    for i, j in torch.cartesian_prod(torch.arange(5), torch.arange(3)).tolist():
        overlap_w = max(0.0, min(a[i, 2].item(), b[j, 2].item()) - max(a[i, 0].item(), b[j, 0].item()))
        overlap_h = max(0.0, min(a[i, 3].item(), b[j, 3].item()) - max(a[i, 1].item(), b[j, 1].item()))
        hull_w = max(a[i, 2].item(), b[j, 2].item()) - min(a[i, 0].item(), b[j, 0].item())
        hull_h = max(a[i, 3].item(), b[j, 3].item()) - min(a[i, 1].item(), b[j, 1].item())
        area_a = (a[i, 2] - a[i, 0]).item() * (a[i, 3] - a[i, 1]).item()
        area_b = (b[j, 2] - b[j, 0]).item() * (b[j, 3] - b[j, 1]).item()
        union = area_a + area_b - overlap_w * overlap_h
        expected = overlap_w * overlap_h / union - (hull_w * hull_h - union) / (hull_w * hull_h)
        assert pairwise[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_giou_of_boxes_without_extent_is_finite():
    point = torch.tensor([[0.5, 0.25, 0.0, 0.0]])
    assert giou_loss(point, point).isfinite().all()


def test_one_hot_marks_image_prediction_and_class():
    targets = one_hot(torch.tensor([2, 0]), torch.tensor([[0, 1], [3, 1]]), torch.Size((2, 5, 3)))
    assert targets.sum() == 2
    assert targets[0, 3, 2] == 1
    assert targets[1, 1, 0] == 1
