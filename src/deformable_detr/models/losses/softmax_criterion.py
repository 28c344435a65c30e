"""Training criterion of DETR: cross-entropy with a class "no object", L1 and GIoU (arXiv 2005.12872, section 3.1).

Each decoder layer is matched to the objects separately.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.core.types import DetectorOutput, Predictions, Target
from deformable_detr.models.losses.criterion import (
    CriterionConfig,
    Losses,
    check_targets,
    class_error_of,
    matched_pairs,
    published_weights,
    weighted_sum,
)
from deformable_detr.models.losses.losses import giou_loss, l1_loss
from deformable_detr.models.losses.matching import Assignment, Costs, match


class SoftmaxCriterion(nn.Module):
    """Set loss of DETR: every decoder layer against all objects; unmatched predictions shall say "no object".

    The class loss is a mean of the cross-entropy over all predictions, in which those without an object have the weight
    `no_object_weight` and the others 1. The box losses are sums over the matched pairs, divided by the number of
    objects.

    All divisors are of a whole step, so that a step gives the same in one part or several, in one process or several.
    The sum of the weights is known before the forward pass: an image has as many matched predictions as objects, but
    not more than queries. The official code takes the mean of each process alone instead, and then the mean over the
    processes, which differs where these have unequal numbers of objects.

    Args:
        config: weights of the losses and of the matching costs.
        num_queries: number of predictions for each image.
    """

    def __init__(self, config: CriterionConfig, num_queries: int) -> None:
        super().__init__()
        self.config = config
        self.num_queries = num_queries
        class_weight, class_cost = published_weights(config, class_weight=1.0, class_cost=1.0)
        self.weights = {"class": class_weight, "l1": config.l1_weight, "giou": config.giou_weight}
        self.costs = Costs(class_cost, config.l1_cost, config.giou_cost, scores="softmax")

    def total_weight(self, targets: list[Target]) -> float:
        """Sum of the weights that the predictions for these images have in the mean of the class loss.

        Args:
            targets: ground truth of the images.
        """
        matched = sum(min(len(target.labels), self.num_queries) for target in targets)
        return matched + self.config.no_object_weight * (len(targets) * self.num_queries - matched)

    def forward(
        self,
        output: DetectorOutput,
        targets: list[Target],
        *,
        num_boxes: float | None = None,
        total_weight: float | None = None,
    ) -> Losses:
        """Losses of one batch, over all decoder layers that have predictions.

        Args:
            output: predictions of the network, whose last class is "no object".
            targets: ground truth, one for each image, on the device of the predictions.
            num_boxes: divisor of the box losses; the number of objects in the batch if left out. A value below 1 counts
                as 1.
            total_weight: divisor of the class loss; that of the batch if left out.

        Raises:
            ValueError: the number of targets is not that of the images, a label is no class of the class head, or the
                number of predictions is not `num_queries`.
            TrainingError: a prediction is not finite.
        """
        batch, num_queries, num_rows = output.final.logits.shape
        check_targets(targets, batch, num_rows - 1)
        if num_queries != self.num_queries:
            raise ValueError(f"there are {num_queries} predictions for each image, the loss is for {self.num_queries}")
        if num_boxes is None:
            num_boxes = sum(len(target.labels) for target in targets)
        if total_weight is None:
            total_weight = self.total_weight(targets)
        # The sum of the weights is 0 where "no object" weighs nothing and there is no object; so is the loss, then.
        divisors = {"class": total_weight or 1.0, "l1": max(num_boxes, 1), "giou": max(num_boxes, 1)}
        stages = {f"decoder.{index}": (layer, targets) for index, layer in enumerate(output.layers)}
        # All layers are matched together, so that the costs reach the CPU in one copy.
        assignments = match(stages, self.costs)
        terms = {
            f"{stage}/{term}": loss / divisors[term]
            for stage, (predictions, wanted) in stages.items()
            for term, loss in self._terms(predictions, wanted, assignments[stage]).items()
        }
        last = f"decoder.{len(output.layers) - 1}"
        return Losses(
            weighted_sum(terms, self.weights),
            {name: term.detach() for name, term in terms.items()},
            class_error_of(output.final, targets, assignments[last]),
            assignments,
        )

    def _terms(
        self, predictions: Predictions, targets: list[Target], assignments: list[Assignment]
    ) -> dict[str, Tensor]:
        """Loss terms summed over the batch, before the division.

        The box terms are 0, and still part of the graph of gradients, where nothing is matched.
        """
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        assigned, labels, wanted = matched_pairs(targets, assignments)
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
        classes[assigned[0], assigned[1]] = labels
        weights = torch.ones(logits.shape[-1], device=logits.device)
        weights[no_object] = self.config.no_object_weight
        matched = boxes[assigned[0], assigned[1]]
        return {
            "class": F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights, reduction="sum"),
            "l1": l1_loss(matched, wanted).sum(),
            "giou": giou_loss(matched, wanted).sum(),
        }
