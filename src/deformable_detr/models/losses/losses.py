"""Pure functions of predictions and targets (arXiv 2010.04159, A.4)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deformable_detr.core.boxes import cxcywh_to_xyxy, generalized_iou


def focal_loss(
    logits: Float[Tensor, "*axes"], targets: Float[Tensor, "*axes"], *, alpha: float, gamma: float
) -> Float[Tensor, "*axes"]:
    """Sigmoid focal loss of each score (Lin et al. 2017), nothing summed.

    Args:
        logits: before the sigmoid.
        targets: 0 or 1.
        alpha: weight of the ones; zeros weigh 1 - alpha.
        gamma: how much less an already good score counts.
    """
    probability = logits.sigmoid()
    surprise = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * miss**gamma * surprise


def class_cost(logits: Float[Tensor, "*axes classes"], *, alpha: float, gamma: float) -> Float[Tensor, "*axes classes"]:
    """What calling a prediction each class would add to the focal loss; the matcher's class cost."""
    probability = logits.sigmoid()
    as_object = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    as_nothing = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return as_object - as_nothing


def l1_loss(boxes: Float[Tensor, "pairs 4"], targets: Float[Tensor, "pairs 4"]) -> Float[Tensor, "pairs"]:
    """Sum of the absolute differences of cxcywh."""
    return (boxes - targets).abs().sum(-1)


def giou_loss(boxes: Float[Tensor, "*a 4"], targets: Float[Tensor, "*b 4"]) -> Float[Tensor, "..."]:
    """1 - GIoU of boxes cxcywh, in 0..2, with broadcasting."""
    return 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))


def one_hot(labels: Tensor, assigned: Tensor, shape: torch.Size) -> Float[Tensor, "batch predictions classes"]:
    """Targets of the class scores: 1 at (image, prediction, class) of each pair, 0 elsewhere.

    Args:
        labels: class id of each pair.
        assigned: image and prediction of each pair, (2, pairs).
        shape: of the logits.
    """
    targets = torch.zeros(shape, device=labels.device)
    targets[assigned[0], assigned[1], labels] = 1.0
    return targets
