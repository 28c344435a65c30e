"""Boxes as numbers: conversions, overlap, and the inverse of the sigmoid they are predicted through."""

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes: Float[Tensor, "*axes 4"]) -> Float[Tensor, "*axes 4"]:
    """Boxes given by centre and size as left, top, right, bottom; the unit stays."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*axes 4"]) -> Float[Tensor, "*axes 4"]:
    """Boxes given by left, top, right, bottom as centre and size; the unit stays."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def area(boxes_xyxy: Float[Tensor, "*axes 4"]) -> Float[Tensor, "*axes"]:
    """Area of each box, width times height; negative if one side is negative."""
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return size[..., 0] * size[..., 1]


def generalized_iou(a_xyxy: Float[Tensor, "*a 4"], b_xyxy: Float[Tensor, "*b 4"]) -> Float[Tensor, "..."]:
    """GIoU in -1..1 (Rezatofighi et al. 2019), box by box, with ordinary broadcasting.

    All pairs are `generalized_iou(a[:, None], b[None])`. Two boxes without any extent have GIoU -1, not NaN.
    """
    overlap, union = _overlap_and_union(a_xyxy, b_xyxy)
    hull_size = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    tiny = torch.finfo(a_xyxy.dtype).tiny
    hull = hull_size.prod(-1).clamp(min=tiny)
    return overlap / union.clamp(min=tiny) - (hull - union) / hull


def overlap_ratio(a_xyxy: Float[Tensor, "*a 4"], b_xyxy: Float[Tensor, "*b 4"]) -> Float[Tensor, "..."]:
    """IoU in 0..1, box by box, with ordinary broadcasting; two boxes without any extent have IoU 0.

    All pairs are `overlap_ratio(a[:, None], b[None])`.
    """
    overlap, union = _overlap_and_union(a_xyxy, b_xyxy)
    return (overlap / union.clamp(min=torch.finfo(a_xyxy.dtype).tiny)).clamp(max=1)


def _overlap_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the overlap and of the union of each pair of boxes."""
    overlap_size = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    overlap = overlap_size.clamp(min=0).prod(-1)
    return overlap, area(a_xyxy) + area(b_xyxy) - overlap


def inverse_sigmoid(probability: Float[Tensor, "*axes"], eps: float = 1e-5) -> Float[Tensor, "*axes"]:
    """Logit of a probability, finite at 0 and 1: both odds stay at or above `eps`, as published weights expect."""
    probability = probability.clamp(0, 1)
    return torch.log(probability.clamp(min=eps) / (1 - probability).clamp(min=eps))
