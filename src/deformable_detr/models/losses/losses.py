"""Losses and costs as functions of predictions and targets (arXiv 2010.04159, sections 3 and 5)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.boxes import cxcywh_to_xyxy, generalized_iou


def focal_loss(
    logits: Float[Tensor, "*axes"], targets: Float[Tensor, "*axes"], *, alpha: float, gamma: float
) -> Float[Tensor, "*axes"]:
    """Sigmoid focal loss of each class score (Lin et al. 2017), without a sum or mean.

    Args:
        logits: class scores before the sigmoid.
        targets: 1 where the class is right, else 0.
        alpha: weight of the scores with target 1, in 0..1; those with target 0 weigh 1 - alpha.
        gamma: exponent, at least 0: the higher, the less the scores count that are already good.
    """
    probability = logits.sigmoid()
    surprise = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * miss**gamma * surprise


def class_cost(logits: Float[Tensor, "*axes classes"], *, alpha: float, gamma: float) -> Float[Tensor, "*axes classes"]:
    """Class term of the matching cost: focal loss of each class as target 1, minus that as target 0.

    Args:
        logits: class scores before the sigmoid.
        alpha: weight of the objects, in 0..1; the background weighs 1 - alpha.
        gamma: exponent of the focal loss, at least 0.
    """
    return score_cost(logits.sigmoid(), alpha=alpha, gamma=gamma)


def score_cost(probability: Float[Tensor, "*axes"], *, alpha: float, gamma: float) -> Float[Tensor, "*axes"]:
    """Class term of the matching cost as a function of probabilities in 0..1; see `class_cost`."""
    as_object = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    as_nothing = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return as_object - as_nothing


def l1_loss(boxes: Float[Tensor, "pairs 4"], targets: Float[Tensor, "pairs 4"]) -> Float[Tensor, "pairs"]:
    """L1 loss of each pair of boxes: sum of the absolute differences of cxcywh."""
    return (boxes - targets).abs().sum(-1)


def giou_loss(boxes: Float[Tensor, "*a 4"], targets: Float[Tensor, "*b 4"]) -> Float[Tensor, "..."]:
    """GIoU loss of boxes cxcywh: 1 - GIoU, in 0..2. The leading axes broadcast."""
    return 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))


def one_hot(labels: Tensor, assigned: Tensor, shape: torch.Size) -> Float[Tensor, "batch predictions classes"]:
    """One-hot targets of the class scores: 1 at (image, prediction, class) of each matched pair, else 0.

    Args:
        labels: class id of each pair.
        assigned: image and prediction of each pair, (2, pairs).
        shape: shape of the logits, (batch, predictions, classes).
    """
    targets = torch.zeros(shape, device=labels.device)
    targets[assigned[0], assigned[1], labels] = 1.0
    return targets
