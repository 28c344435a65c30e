"""Conversions there and back, and the inverse of the sigmoid."""

import torch

from deformable_detr.core.boxes import area, cxcywh_to_xyxy, inverse_sigmoid, overlap_ratio, xyxy_to_cxcywh


def test_conversions_by_hand_and_back():
    boxes = torch.tensor([[10.0, 20.0, 4.0, 6.0]])
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners, torch.tensor([[8.0, 17.0, 12.0, 23.0]]))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)
    assert area(corners).tolist() == [24.0]


def test_no_boxes_are_fine():
    assert cxcywh_to_xyxy(torch.zeros(3, 0, 4)).shape == (3, 0, 4)


def test_inverse_sigmoid_is_the_inverse_and_finite_at_the_ends():
    logits = torch.linspace(-8, 8, 33)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits, rtol=1e-3, atol=1e-3)
    ends = inverse_sigmoid(torch.tensor([0.0, 1.0, -0.5, 1.5]))
    assert ends.isfinite().all()
    assert ends[0] == ends[2] == -ends[1]


def test_overlap_by_hand():
    # Two boxes of 4 x 2 and 2 x 6 with 2 x 1 in common.
    one, other = torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 7.0], [5.0, 5.0, 6.0, 8.0]])
    torch.testing.assert_close(overlap_ratio(one[:, None], other[None]), torch.tensor([[2 / 18, 0.0]]))
    assert overlap_ratio(one, one).tolist() == [1.0]
    point = torch.tensor([[0.5, 0.25, 0.5, 0.25]])
    assert overlap_ratio(point, point).tolist() == [0.0]
