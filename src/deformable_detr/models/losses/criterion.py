"""Training criterion: losses of every decoder layer and of the proposals (arXiv 2010.04159, sections 3, 5 and A.4).

Each decoder layer is matched to the objects separately, and so are the proposals.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Denoised, DetectorOutput, Predictions, Target
from deformable_detr.models.losses.losses import focal_loss, giou_loss, l1_loss, one_hot
from deformable_detr.models.losses.matching import Assignment, Costs, match


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the training losses and of the matching costs. The defaults are the paper's (section 5).

    Raises:
        ConfigError: a weight, a cost or `focal_gamma` is negative, `focal_alpha` is outside 0..1, or all costs are 0.
    """

    class_weight: float = 2.0
    """Weight of the focal loss of the class scores; at least 0."""
    l1_weight: float = 5.0
    """Weight of the L1 loss of the boxes, cxcywh in 0..1; at least 0."""
    giou_weight: float = 2.0
    """Weight of the GIoU loss of the boxes, 1 - GIoU; at least 0."""
    class_cost: float = 2.0
    """Weight of the class term in the matching cost; at least 0."""
    l1_cost: float = 5.0
    """Weight of the L1 distance of the boxes, cxcywh in 0..1, in the matching cost; at least 0."""
    giou_cost: float = 2.0
    """Weight of -GIoU of the boxes in the matching cost; at least 0."""
    focal_alpha: float = 0.25
    """Weight of the objects in the focal loss, in 0..1; the background weighs 1 - `focal_alpha`. The class cost uses
    it, too."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss, at least 0: the higher, the less the easy predictions count. The class cost uses
    it, too."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and costs that are all 0."""
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
    """Losses of one batch: the weighted total, its single terms, and the matching they come from."""

    total: Float[Tensor, ""]
    """Weighted sum of all terms; the backward pass starts here."""
    terms: dict[str, Float[Tensor, ""]]
    """Terms before weighting, without gradient, by "stage/term", for instance "decoder.5/giou"."""
    class_error: Float[Tensor, ""]
    """Share of the last layer's matched predictions whose best class is wrong, in percent 0..100; 0 without objects."""
    assignments: dict[str, list[Assignment]]
    """Matched pairs of predictions and objects: for each stage, one `Assignment` per image."""


class Criterion(nn.Module):
    """Set loss of the paper (section 3): every decoder layer, and the proposals if any, against all objects.

    Predictions for noisy copies of the objects (denoising) have the same losses with the same weights, without
    matching.

    Args:
        config: weights and costs.
        proposals: labels that the proposals learn: "object", where every label is class 0, so that their score only
            says whether there is an object (A.4, two-stage); or "class", as in DINO.
    """

    def __init__(self, config: CriterionConfig, *, proposals: Literal["object", "class"] = "object") -> None:
        super().__init__()
        self.config = config
        self.proposals = proposals
        self.weights = {"class": config.class_weight, "l1": config.l1_weight, "giou": config.giou_weight}
        self.costs = Costs(config.class_cost, config.l1_cost, config.giou_cost, config.focal_alpha, config.focal_gamma)

    def forward(self, output: DetectorOutput, targets: list[Target], *, num_boxes: float | None = None) -> Losses:
        """Losses of one batch, over all stages: the decoder layers, the proposals, and the denoised copies.

        Args:
            output: predictions of the network.
            targets: ground truth, one for each image, on the device of the predictions.
            num_boxes: divisor of all sums; the number of objects in the batch if left out. A value below 1 counts as 1.

        Raises:
            ValueError: the number of targets is not that of the images, or a label is no class of the class heads.
            TrainingError: a prediction is not finite.
        """
        _check(output.final, targets)
        # The targets of each stage: the labels tell classes apart in the decoder, and objects from background in the
        # proposals.
        stages = {f"decoder.{index}": (layer, targets) for index, layer in enumerate(output.layers)}
        if output.proposals is not None:
            wanted = targets
            if self.proposals == "object":
                wanted = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
            stages["proposals"] = (output.proposals, wanted)
        if num_boxes is None:
            num_boxes = sum(len(target.labels) for target in targets)
        # All stages are matched together, so that the costs reach the CPU in one copy.
        assignments = match(stages, self.costs)
        terms = {
            f"{stage}/{term}": loss / max(num_boxes, 1)
            for stage, (predictions, wanted) in stages.items()
            for term, loss in self._terms(predictions, *_pairs(wanted, assignments[stage])).items()
        }
        if output.denoising is not None:
            terms |= self._denoising_terms(output.denoising, targets, max(num_boxes, 1))
        last = f"decoder.{len(output.layers) - 1}"
        return Losses(
            self.weighted_sum(terms),
            {name: term.detach() for name, term in terms.items()},
            _class_error(output.final, targets, assignments[last]),
            assignments,
        )

    def weighted_sum(self, terms: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Weighted sum of loss terms named "stage/term"; a term without a weight is an error.

        Raises:
            ValueError: this criterion has no weight for one of the terms.
        """
        unknown = {name.rsplit("/", 1)[-1] for name in terms} - self.weights.keys()
        if unknown:
            raise ValueError(f"no weight for the loss terms {sorted(unknown)}; there are {sorted(self.weights)}")
        return torch.stack([self.weights[name.rsplit("/", 1)[-1]] * term for name, term in terms.items()]).sum()

    def _denoising_terms(self, denoising: Denoised, targets: list[Target], num_boxes: float | int) -> dict[str, Tensor]:
        """Loss terms of the noisy copies, divided by the number of boxes and of groups."""
        pairs = _pairs_of_copies(targets, denoising.objects)
        return {
            f"denoising.{index}/{term}": loss / (num_boxes * denoising.num_groups)
            for index, layer in enumerate(denoising.layers)
            for term, loss in self._terms(layer, *pairs).items()
        }

    def _terms(self, predictions: Predictions, assigned: Tensor, labels: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Loss terms summed over the batch, before the division by the number of boxes.

        The box terms are 0, and still part of the graph of gradients, where nothing is matched.

        Args:
            predictions: predictions of one stage.
            assigned: image and prediction of each pair, (2, pairs).
            labels: class id of each pair, (pairs,).
            wanted: box cxcywh of each pair, (pairs, 4).
        """
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        scores = one_hot(labels, assigned, logits.shape)
        matched = boxes[assigned[0], assigned[1]]
        config = self.config
        return {
            "class": focal_loss(logits, scores, alpha=config.focal_alpha, gamma=config.focal_gamma).sum(),
            "l1": l1_loss(matched, wanted).sum(),
            "giou": giou_loss(matched, wanted).sum(),
        }


def _pairs(targets: list[Target], assignments: list[Assignment]) -> tuple[Tensor, Tensor, Tensor]:
    """Matched pairs of the batch: image and prediction (2, pairs), label (pairs,), and box cxcywh (pairs, 4)."""
    device = targets[0].boxes.device
    images = np.concatenate([np.full(len(one.queries), image) for image, one in enumerate(assignments)])
    queries = np.concatenate([one.queries for one in assignments])
    assigned = torch.from_numpy(np.stack([images, queries]).astype(np.int64)).to(device)
    objects = [torch.from_numpy(one.objects).to(device) for one in assignments]
    labels = torch.cat([target.labels[index] for target, index in zip(targets, objects, strict=True)])
    wanted = torch.cat([target.boxes[index] for target, index in zip(targets, objects, strict=True)]).float()
    return assigned, labels, wanted


def _pairs_of_copies(targets: list[Target], objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of noisy copies and their objects, as from `_pairs`; `objects` is that of `Denoised`."""
    device = targets[0].boxes.device
    assigned = (objects >= 0).nonzero().T.to(device)
    behind = [one[one >= 0].to(device) for one in objects]
    labels = torch.cat([target.labels[index] for target, index in zip(targets, behind, strict=True)])
    wanted = torch.cat([target.boxes[index] for target, index in zip(targets, behind, strict=True)]).float()
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
        return  # reading the labels would wait for the GPU; the data set has checked them already
    for image, target in enumerate(targets):
        if len(target.labels) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < classes:
            raise ValueError(
                f"image {image} has labels {int(target.labels.min())}..{int(target.labels.max())}, "
                f"the class heads have 0..{classes - 1}"
            )
