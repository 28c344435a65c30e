"""Predictions meet objects one to one, at the least total cost (Hungarian matching, arXiv 2010.04159 A.4)."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from deformable_detr.core.errors import TrainingError
from deformable_detr.core.types import Predictions, Target
from deformable_detr.models.losses.losses import class_cost, giou_loss


class NotFinitePredictionsError(TrainingError):
    """Predictions that are not finite, so that nothing can be matched to them."""


class Costs(NamedTuple):
    """What the parts of the matching cost weigh."""

    class_: float
    l1: float
    giou: float
    alpha: float
    gamma: float


class Assignment(NamedTuple):
    """Result for one image: prediction `queries[i]` answers for object `objects[i]`, ordered by prediction."""

    queries: Int[np.ndarray, "pairs"]
    objects: Int[np.ndarray, "pairs"]


@torch.no_grad()
def match(stages: dict[str, tuple[Predictions, list[Target]]], costs: Costs) -> dict[str, list[Assignment]]:
    """Assignments of every image, for every stage on its own.

    Costs are computed image by image, so nothing is spent on pairs across images, and all of them travel to the
    host in one copy.

    Args:
        stages: predictions by the name of what made them, and the targets they are held against.
        costs: weights of the parts.

    Raises:
        NotFinitePredictionsError: a cost is not finite, because a prediction is not.
    """
    from scipy.optimize import linear_sum_assignment  # prediction does without SciPy

    names, blocks = [], []
    for name, (predictions, targets) in stages.items():
        for image, target in enumerate(targets):
            names.append((name, image))
            blocks.append(_cost(predictions.logits[image], predictions.boxes[image], target, costs))
    flat = torch.cat([block.flatten() for block in blocks]).cpu().numpy() if blocks else np.zeros(0)
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
    """(predictions, objects) of one image, in float32."""
    logits, boxes, wanted = logits.float(), boxes.float(), target.boxes.float()
    by_class = class_cost(logits, alpha=costs.alpha, gamma=costs.gamma)[:, target.labels]
    by_distance = (boxes[:, None] - wanted[None]).abs().sum(-1)
    by_overlap = giou_loss(boxes[:, None], wanted[None]) - 1
    return costs.l1 * by_distance + costs.class_ * by_class + costs.giou * by_overlap
