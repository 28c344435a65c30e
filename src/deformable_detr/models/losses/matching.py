"""Hungarian matching: one-to-one assignment of predictions to objects at least cost (arXiv 2010.04159, section 3)."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from deformable_detr.core.errors import TrainingError
from deformable_detr.core.types import ClassScores, Predictions, Target
from deformable_detr.models.losses.losses import class_cost, giou_loss, score_cost


class NotFinitePredictionsError(TrainingError):
    """Predictions are NaN or infinite, so that they cannot be matched to objects."""


class Costs(NamedTuple):
    """Weights of the terms of the matching cost."""

    class_: float
    """Weight of the class term."""
    l1: float
    """Weight of the L1 distance of the boxes, cxcywh in 0..1."""
    giou: float
    """Weight of -GIoU of the boxes."""
    alpha: float = 0.25
    """Weight of objects in the focal loss, in 0..1, for the class term of sigmoid scores."""
    gamma: float = 2.0
    """Exponent of the focal loss, for the class term of sigmoid scores."""
    scores: ClassScores = "sigmoid"
    """Way from logits to class scores. The class term of softmax scores is minus the probability of the class (arXiv
    2005.12872, section 3.1)."""
    by_position: bool = False
    """Whether the class term takes the probability times the square root of the GIoU, brought to 0..1 with 1 for the
    best pair of the image (Stable-DINO, arXiv 2304.04742)."""


class Assignment(NamedTuple):
    """Matched pairs of one image: prediction `queries[i]` belongs to object `objects[i]`."""

    queries: Int[np.ndarray, "pairs"]
    """Positions of the predictions, ascending."""
    objects: Int[np.ndarray, "pairs"]
    """Positions of the objects in the image's target, each at most once."""


@torch.no_grad()
def match(stages: dict[str, tuple[Predictions, list[Target]]], costs: Costs) -> dict[str, list[Assignment]]:
    """Assignments with the least total cost, for every stage and image on its own.

    Args:
        stages: predictions and their targets, one for each image, by the name of the stage that made them.
        costs: weights of the terms.

    Returns:
        One assignment per image, in the order of the targets, by the name of the stage.

    Raises:
        NotFinitePredictionsError: a cost is not finite, because a prediction is not.
    """
    from scipy.optimize import linear_sum_assignment  # prediction does without SciPy

    # One cost matrix per stage and image: pairs across images are never computed.
    names, blocks = [], []
    for name, (predictions, targets) in stages.items():
        for image, target in enumerate(targets):
            names.append((name, image))
            blocks.append(_cost(predictions.logits[image], predictions.boxes[image], target, costs))
    # One copy to the CPU for all matrices, because every copy waits for the GPU.
    flat = torch.cat([block.flatten() for block in blocks]).cpu().numpy() if blocks else np.zeros(0)
    # The solver works on the CPU, on one matrix after the other.
    assignments: dict[str, list[Assignment]] = {name: [] for name in stages}
    start = 0
    for (name, image), block in zip(names, blocks, strict=True):
        cost = flat[start : start + block.numel()].reshape(block.shape)
        start += block.numel()
        if not np.isfinite(cost).all():
            raise NotFinitePredictionsError(
                f"predictions of {name} for image {image} of the batch are not finite; the usual cause is a learning "
                "rate that is too high"
            )
        rows, columns = linear_sum_assignment(cost)
        assignments[name].append(Assignment(rows.astype(np.int64), columns.astype(np.int64)))
    return assignments


def _cost(logits: Tensor, boxes: Tensor, target: Target, costs: Costs) -> Tensor:
    """Matching cost of one image, (predictions, objects), in float32."""
    logits, boxes, wanted = logits.float(), boxes.float(), target.boxes.float()
    by_distance = (boxes[:, None] - wanted[None]).abs().sum(-1)
    by_overlap = giou_loss(boxes[:, None], wanted[None]) - 1
    if costs.scores == "softmax":
        by_class = -logits.softmax(-1)[:, target.labels]
    elif costs.by_position:
        probability = logits.sigmoid()[:, target.labels] * _position_factor(-by_overlap)
        by_class = score_cost(probability, alpha=costs.alpha, gamma=costs.gamma)
    else:
        by_class = class_cost(logits, alpha=costs.alpha, gamma=costs.gamma)[:, target.labels]
    return costs.l1 * by_distance + costs.class_ * by_class + costs.giou * by_overlap


def _position_factor(giou: Tensor) -> Tensor:
    """Square root of the GIoU of each pair, (predictions, objects), brought to 0..1 with 1 for the image's best."""
    if giou.numel() == 0:
        return giou
    share = (giou + 1).clamp(min=0) / 2
    return (share / share.max().clamp(min=torch.finfo(share.dtype).tiny)).sqrt()
