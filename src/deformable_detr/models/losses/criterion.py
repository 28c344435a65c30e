"""The loss of a step: every decoder layer and the proposals, each matched on its own (arXiv 2010.04159, A.4)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, Predictions, Target
from deformable_detr.models.losses.losses import focal_loss, giou_loss, l1_loss, one_hot
from deformable_detr.models.losses.matching import Assignment, Costs, match


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the losses, and of the same parts in the cost that matching minimises. Defaults are the paper's."""

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    focal_alpha: float = 0.25
    """Weight of objects against background, in the loss and in the matching cost alike."""
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        """Refuse negative weights and costs that decide nothing."""
        for name in (
            "class_weight",
            "l1_weight",
            "giou_weight",
            "class_cost",
            "l1_cost",
            "giou_cost",
            "focal_gamma",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.focal_alpha <= 1:
            raise ConfigError(f"focal_alpha is {self.focal_alpha}; it must be in 0..1")
        if self.class_cost == self.l1_cost == self.giou_cost == 0:
            raise ConfigError("class_cost, l1_cost and giou_cost are all 0; matching needs at least one")


class Losses(NamedTuple):
    """The sum to minimise, and its terms before weighting, by "stage/term", e.g. "decoder.5/giou"."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    class_error: Float[Tensor, ""]
    """Share of the last layer's matched predictions whose best class is wrong, in percent; 0 without objects."""
    assignments: dict[str, list[Assignment]]
    """Which prediction answers for which object, by stage and image."""


class Criterion(nn.Module):
    """Every decoder layer, and the proposals if there are any, is held against all objects; nothing is left out."""

    def __init__(self, config: CriterionConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = {"class": config.class_weight, "l1": config.l1_weight, "giou": config.giou_weight}
        self.costs = Costs(config.class_cost, config.l1_cost, config.giou_cost, config.focal_alpha, config.focal_gamma)

    def forward(self, output: DetectorOutput, targets: list[Target], *, num_boxes: float | None = None) -> Losses:
        """The weighted sum over stages and terms.

        Proposals are held against the same boxes, with every label set to class 0: they only ask whether there is
        an object.

        Args:
            output: of the model.
            targets: one for each image, on the same device.
            num_boxes: what the sums are divided by; the number of objects in the batch by default. At least 1.

        Raises:
            ValueError: another number of targets than images, or a label the class heads do not have.
            TrainingError: a prediction is not finite.
        """
        _check(output.final, targets)
        stages = {f"decoder.{index}": (layer, targets) for index, layer in enumerate(output.layers)}
        if output.proposals is not None:
            anything = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
            stages["proposals"] = (output.proposals, anything)
        if num_boxes is None:
            num_boxes = sum(len(target.labels) for target in targets)
        assignments = match(stages, self.costs)
        terms = {
            f"{stage}/{term}": loss / max(num_boxes, 1)
            for stage, (predictions, wanted) in stages.items()
            for term, loss in self._terms(predictions, wanted, assignments[stage]).items()
        }
        last = f"decoder.{len(output.layers) - 1}"
        return Losses(
            self.weighted_sum(terms),
            {name: term.detach() for name, term in terms.items()},
            _class_error(output.final, targets, assignments[last]),
            assignments,
        )

    def weighted_sum(self, terms: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Total of terms named "stage/term"; a term without a weight is an error, never dropped.

        Raises:
            ValueError: a term this criterion has no weight for.
        """
        unknown = {name.rsplit("/", 1)[-1] for name in terms} - self.weights.keys()
        if unknown:
            raise ValueError(f"no weight for the loss terms {sorted(unknown)}; there are {sorted(self.weights)}")
        return torch.stack([self.weights[name.rsplit("/", 1)[-1]] * term for name, term in terms.items()]).sum()

    def _terms(
        self, predictions: Predictions, targets: list[Target], assignments: list[Assignment]
    ) -> dict[str, Tensor]:
        """Sums over the batch, not yet divided by the number of boxes. Zero, with a gradient, where nothing matched."""
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        assigned, labels, wanted = _pairs(targets, assignments)
        scores = one_hot(labels, assigned, logits.shape)
        matched = boxes[assigned[0], assigned[1]]
        config = self.config
        return {
            "class": focal_loss(logits, scores, alpha=config.focal_alpha, gamma=config.focal_gamma).sum(),
            "l1": l1_loss(matched, wanted).sum(),
            "giou": giou_loss(matched, wanted).sum(),
        }


def _pairs(targets: list[Target], assignments: list[Assignment]) -> tuple[Tensor, Tensor, Tensor]:
    """Image and prediction (2, pairs), label (pairs,) and box (pairs, 4) of every pair of the batch."""
    device = targets[0].boxes.device
    images = np.concatenate([np.full(len(one.queries), image) for image, one in enumerate(assignments)])
    queries = np.concatenate([one.queries for one in assignments])
    assigned = torch.from_numpy(np.stack([images, queries]).astype(np.int64)).to(device)
    objects = [torch.from_numpy(one.objects).to(device) for one in assignments]
    labels = torch.cat([target.labels[index] for target, index in zip(targets, objects, strict=True)])
    wanted = torch.cat([target.boxes[index] for target, index in zip(targets, objects, strict=True)]).float()
    return assigned, labels, wanted


@torch.no_grad()
def _class_error(predictions: Predictions, targets: list[Target], assignments: list[Assignment]) -> Tensor:
    assigned, labels, _ = _pairs(targets, assignments)
    if len(labels) == 0:
        return predictions.logits.new_zeros((), dtype=torch.float32)
    best = predictions.logits[assigned[0], assigned[1]].argmax(-1)
    return 100.0 * (best != labels).float().mean()


def _check(predictions: Predictions, targets: list[Target]) -> None:
    batch, _, classes = predictions.logits.shape
    if len(targets) != batch:
        raise ValueError(f"{len(targets)} targets for {batch} images")
    if predictions.logits.is_cuda:
        return  # a look at the labels would wait for the device; the data set has checked them
    for image, target in enumerate(targets):
        if len(target.labels) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < classes:
            raise ValueError(
                f"image {image} has labels {int(target.labels.min())}..{int(target.labels.max())}, "
                f"the class heads have 0..{classes - 1}"
            )
