"""Training criterion: losses of every decoder layer and of the proposals (arXiv 2010.04159, sections 3, 5 and A.4).

Each decoder layer is matched to the objects separately, and so are the proposals.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.boxes import cxcywh_to_xyxy, overlap_ratio
from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Denoised, DetectorOutput, Predictions, Target
from deformable_detr.models.losses.classification import ClassLossName, class_loss
from deformable_detr.models.losses.losses import giou_loss, l1_loss
from deformable_detr.models.losses.matching import Assignment, Costs, match


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the training losses and of the matching costs. The defaults are the paper's (section 5).

    Raises:
        ConfigError: a weight, a cost or `focal_gamma` is negative, `focal_alpha` is outside 0..1, or all costs are 0.
    """

    class_loss: ClassLossName = "focal"
    """Loss of the class scores: "focal", the paper's; or one that draws the score of a matched prediction to the
    quality of its box: "ia_bce" (Align-DETR), "varifocal" (VarifocalNet), "mal" (DEIM), or "position" (Stable-DINO),
    with which the class cost heeds the boxes, too. See `models/losses/classification.py`. Denoising keeps "focal"."""
    class_weight: float | Literal["auto"] = "auto"
    """Weight of the loss of the class scores; at least 0. "auto": the model's published one, which is 2 for
    Deformable DETR and 1 for DINO, both with the focal loss, and 1 for the cross-entropy of DETR. The papers have 1
    with "ia_bce", "varifocal" and "mal", and 6 with "position"."""
    l1_weight: float = 5.0
    """Weight of the L1 loss of the boxes, cxcywh in 0..1; at least 0."""
    giou_weight: float = 2.0
    """Weight of the GIoU loss of the boxes, 1 - GIoU; at least 0."""
    class_cost: float | Literal["auto"] = "auto"
    """Weight of the class term in the matching cost; at least 0. "auto": the model's published one, which is 2 for
    Deformable DETR and DINO, and 1 for DETR."""
    l1_cost: float = 5.0
    """Weight of the L1 distance of the boxes, cxcywh in 0..1, in the matching cost; at least 0."""
    giou_cost: float = 2.0
    """Weight of -GIoU of the boxes in the matching cost; at least 0."""
    focal_alpha: float = 0.25
    """Weight of the objects in the losses "focal" and "position", in 0..1; the background weighs 1 - `focal_alpha`.
    The class cost uses it with every loss."""
    focal_gamma: float = 2.0
    """Exponent of the losses "focal" and "position", at least 0: the higher, the less the easy predictions count. The
    class cost uses it with every loss."""
    no_object_weight: float = 0.1
    """Weight of the predictions without an object in the cross-entropy of DETR; at least 0. The others weigh 1."""

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
            "no_object_weight",
        ):
            value = getattr(self, name)
            if value != "auto" and not value >= 0:
                raise ConfigError(f"{name} is {value}; it must be at least 0")
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
    """Matched pairs of predictions and objects: for each stage, one `Assignment` per image. Stages of further groups
    of queries end in "/group 1" and so on; those of one-to-many queries are "one_to_many/0" and so on, by layer."""


class Criterion(nn.Module):
    """Set loss of the paper (section 3): every decoder layer, and the proposals if any, against all objects.

    Predictions for noisy copies of the objects (denoising) have the same losses with the same weights, without
    matching.

    Args:
        config: weights and costs.
        proposals: labels that the proposals learn: "object", where every label is class 0, so that their score only
            says whether there is an object (A.4, two-stage); or "class", as in DINO.
        class_weight: weight of the class loss that is meant by "auto": 2 is that of Deformable DETR.
    """

    def __init__(
        self,
        config: CriterionConfig,
        *,
        proposals: Literal["object", "class"] = "object",
        class_weight: float = 2.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.proposals = proposals
        weight, class_cost = published_weights(config, class_weight=class_weight, class_cost=2.0)
        self.weights = {"class": weight, "l1": config.l1_weight, "giou": config.giou_weight}
        self.costs = Costs(
            class_cost,
            config.l1_cost,
            config.giou_cost,
            config.focal_alpha,
            config.focal_gamma,
            by_position=config.class_loss == "position",
        )

    def forward(self, output: DetectorOutput, targets: list[Target], *, num_boxes: float | None = None) -> Losses:
        """Losses of one batch, over all stages: the decoder layers, the proposals, and the denoised copies.

        With groups of queries, each stage is the average over the groups, every one of which is matched for itself
        (Group DETR). The stage "one_to_many" is the sum over all layers of the queries that are matched several to one,
        divided by that number of times (H-DETR). Copies have the focal loss, whatever `class_loss` is.

        Args:
            output: predictions of the network.
            targets: ground truth, one for each image, on the device of the predictions.
            num_boxes: divisor of all sums; the number of objects in the batch if left out. A value below 1 counts as 1.

        Raises:
            ValueError: the number of targets is not that of the images, or a label is no class of the class heads.
            TrainingError: a prediction is not finite.
        """
        check_targets(targets, len(output.final.logits), output.final.logits.shape[-1])
        # The targets of each stage: the labels tell classes apart in the decoder, and objects from background in the
        # proposals.
        wanted_of_proposals = targets
        if self.proposals == "object":
            wanted_of_proposals = [target._replace(labels=torch.zeros_like(target.labels)) for target in targets]
        stages: dict[str, tuple[Predictions, list[Target]]] = {}
        if output.one_to_many is not None:
            repeats = output.one_to_many.repeats
            repeated = [Target(one.labels.repeat(repeats), one.boxes.repeat(repeats, 1)) for one in targets]
            stages |= {
                f"one_to_many/{index}": (layer, repeated) for index, layer in enumerate(output.one_to_many.layers)
            }
        for suffix, layers, proposals in _groups_of(output):
            stages |= {f"decoder.{index}{suffix}": (layer, targets) for index, layer in enumerate(layers)}
            if proposals is not None:
                stages[f"proposals{suffix}"] = (proposals, wanted_of_proposals)
        if num_boxes is None:
            num_boxes = sum(len(target.labels) for target in targets)
        # All stages are matched together, so that the costs reach the CPU in one copy.
        assignments = match(stages, self.costs)
        # Groups of queries are averaged. Of the one-to-many queries, all layers make one stage.
        terms: dict[str, Tensor] = {}
        for stage, (predictions, wanted) in stages.items():
            name, _, _ = stage.partition("/")
            times = repeats if name == "one_to_many" else 1 + len(output.groups)
            pairs = matched_pairs(wanted, assignments[stage])
            for term, loss in self._terms(predictions, *pairs, self.config.class_loss).items():
                share = loss / (max(num_boxes, 1) * times)
                terms[f"{name}/{term}"] = terms[f"{name}/{term}"] + share if f"{name}/{term}" in terms else share
        if output.denoising is not None:
            terms |= self._denoising_terms(output.denoising, targets, max(num_boxes, 1))
        last = f"decoder.{len(output.layers) - 1}"
        return Losses(
            self.weighted_sum(terms),
            {name: term.detach() for name, term in terms.items()},
            class_error_of(output.final, targets, assignments[last]),
            assignments,
        )

    def weighted_sum(self, terms: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Weighted sum of loss terms named "stage/term"; a term without a weight is an error.

        Raises:
            ValueError: this criterion has no weight for one of the terms.
        """
        return weighted_sum(terms, self.weights)

    def _denoising_terms(self, denoising: Denoised, targets: list[Target], num_boxes: float | int) -> dict[str, Tensor]:
        """Loss terms of the noisy copies, divided by the number of boxes and of groups."""
        pairs = _pairs_of_copies(targets, denoising.objects)
        return {
            f"denoising.{index}/{term}": loss / (num_boxes * denoising.num_groups)
            for index, layer in enumerate(denoising.layers)
            for term, loss in self._terms(layer, *pairs, "focal").items()
        }

    def _terms(
        self, predictions: Predictions, assigned: Tensor, labels: Tensor, wanted: Tensor, name: ClassLossName
    ) -> dict[str, Tensor]:
        """Loss terms summed over the batch, before the division by the number of boxes.

        The box terms are 0, and still part of the graph of gradients, where nothing is matched.

        Args:
            predictions: predictions of one stage.
            assigned: image and prediction of each pair, (2, pairs).
            labels: class id of each pair, (pairs,).
            wanted: box cxcywh of each pair, (pairs, 4).
            name: loss of the class scores.
        """
        logits, boxes = predictions.logits.float(), predictions.boxes.float()
        matched = boxes[assigned[0], assigned[1]]
        overlaps = overlap_ratio(cxcywh_to_xyxy(matched.detach()), cxcywh_to_xyxy(wanted))
        config = self.config
        by_class = class_loss(
            name,
            logits,
            assigned,
            labels,
            overlaps,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
        )
        return {
            "class": by_class.sum(),
            "l1": l1_loss(matched, wanted).sum(),
            "giou": giou_loss(matched, wanted).sum(),
        }


def _groups_of(output: DetectorOutput) -> list[tuple[str, list[Predictions], Predictions | None]]:
    """Suffix of the stages, layers and proposals of each group of queries, that which answers first."""
    further = [(f"/group {number}", *group) for number, group in enumerate(output.groups, start=1)]
    return [("", output.layers, output.proposals), *further]


def published_weights(config: CriterionConfig, *, class_weight: float, class_cost: float) -> tuple[float, float]:
    """Weight of the class loss and of the class cost, with a model's published ones where they are "auto".

    Args:
        config: settings of the criterion.
        class_weight: the model's published weight of the class loss.
        class_cost: the model's published weight of the class term in the matching cost.
    """
    return (
        class_weight if config.class_weight == "auto" else config.class_weight,
        class_cost if config.class_cost == "auto" else config.class_cost,
    )


def weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Float[Tensor, ""]:
    """Weighted sum of loss terms named "stage/term"; a term without a weight is an error.

    Args:
        terms: losses by "stage/term".
        weights: weights by term.

    Raises:
        ValueError: there is no weight for one of the terms.
    """
    unknown = {name.rsplit("/", 1)[-1] for name in terms} - weights.keys()
    if unknown:
        raise ValueError(f"no weight for the loss terms {sorted(unknown)}; there are {sorted(weights)}")
    return torch.stack([weights[name.rsplit("/", 1)[-1]] * term for name, term in terms.items()]).sum()


def matched_pairs(targets: list[Target], assignments: list[Assignment]) -> tuple[Tensor, Tensor, Tensor]:
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
    """Pairs of noisy copies and their objects, as from `matched_pairs`; `objects` is that of `Denoised`."""
    device = targets[0].boxes.device
    assigned = (objects >= 0).nonzero().T.to(device)
    behind = [one[one >= 0].to(device) for one in objects]
    labels = torch.cat([target.labels[index] for target, index in zip(targets, behind, strict=True)])
    wanted = torch.cat([target.boxes[index] for target, index in zip(targets, behind, strict=True)]).float()
    return assigned, labels, wanted


@torch.no_grad()
def class_error_of(predictions: Predictions, targets: list[Target], assignments: list[Assignment]) -> Float[Tensor, ""]:
    """Share of the matched predictions whose best class is wrong, in percent; 0 without objects."""
    assigned, labels, _ = matched_pairs(targets, assignments)
    if len(labels) == 0:
        return predictions.logits.new_zeros((), dtype=torch.float32)
    best = predictions.logits[assigned[0], assigned[1]].argmax(-1)
    return 100.0 * (best != labels).float().mean()


def check_targets(targets: list[Target], batch: int, num_classes: int) -> None:
    """Check that there is a target for each image, and that its labels are classes.

    Args:
        targets: ground truth. On a GPU only their number is checked: reading the labels would wait for it, and the data
            set has checked them already.
        batch: number of images.
        num_classes: number of classes.

    Raises:
        ValueError: the number of targets is another, or a label is no class.
    """
    if len(targets) != batch:
        raise ValueError(f"{len(targets)} targets for {batch} images")
    for image, target in enumerate(targets):
        if target.labels.is_cuda:
            return
        if len(target.labels) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < num_classes:
            raise ValueError(
                f"image {image} has labels {int(target.labels.min())}..{int(target.labels.max())}, "
                f"the class heads have 0..{num_classes - 1}"
            )
