"""Classification losses of the detection transformers, as one family: targets and weights of binary cross-entropy.

p is the probability of a class, u the IoU of a matched pair of predicted box and object, both without gradient where
they are a target t. Each matched score adds w_plus * BCE(p, t), every other score w_minus * BCE(p, 0):

| name      | t                     | w_plus                    | w_minus               | source                     |
|-----------|-----------------------|---------------------------|-----------------------|----------------------------|
| focal     | 1                     | alpha * (1 - p)^gamma     | (1 - alpha) * p^gamma | Lin et al. 2017            |
| ia_bce    | p^0.25 * u^0.75 >= .01 | 1                        | p^2                   | Align-DETR, RF-DETR        |
| varifocal | u                     | u, constant               | 0.75 * p^2, constant  | Zhang et al. 2021, RT-DETR |
| mal       | u^1.5                 | 1                         | p^1.5, constant       | DEIM (arXiv 2412.04234)    |
| position  | u^2 / largest u^2     | alpha * abs(t - p)^gamma  | (1 - alpha) * p^gamma | Stable-DINO (2304.04742)   |

Gradients flow through the weights that are not called constant. The largest u^2 is that of the image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deformable_detr.models.losses.losses import focal_loss, one_hot

ClassLossName = Literal["focal", "ia_bce", "varifocal", "mal", "position"]
_QUALITY_SHARE = 0.75  # of the IoU in the target of "ia_bce"; the rest is the probability's
_LEAST_QUALITY = 0.01
_VARIFOCAL_ALPHA = 0.75
_MAL_GAMMA = 1.5


def class_loss(
    name: ClassLossName,
    logits: Float[Tensor, "batch predictions classes"],
    assigned: Int[Tensor, "2 pairs"],
    labels: Int[Tensor, "pairs"],
    overlaps: Float[Tensor, "pairs"],
    *,
    alpha: float,
    gamma: float,
) -> Float[Tensor, "batch predictions classes"]:
    """Classification loss of each class score, without a sum or mean; of half precision, computed in float32.

    Args:
        name: the loss, as in the table of this module.
        logits: class scores before the sigmoid.
        assigned: image and prediction of each matched pair; no prediction twice.
        labels: class id of each matched pair.
        overlaps: IoU of each matched pair's boxes, in 0..1; no gradient flows into it.
        alpha: weight of the objects in "focal" and "position", in 0..1; the background weighs 1 - alpha.
        gamma: exponent of "focal" and "position", at least 0.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if name == "focal":
        targets = one_hot(labels, assigned, logits.shape).to(logits.dtype)
        return focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    matched = (assigned[0], assigned[1], labels)
    own = logits[matched]
    probability, everywhere = own.sigmoid(), logits.sigmoid()
    overlap = overlaps.detach().to(logits.dtype)
    if name == "ia_bce":
        quality = probability.detach() ** (1 - _QUALITY_SHARE) * overlap**_QUALITY_SHARE
        target, positive = quality.clamp(min=_LEAST_QUALITY), torch.ones_like(own)
        negative = everywhere**2
    elif name == "varifocal":
        target = positive = overlap
        negative = _VARIFOCAL_ALPHA * everywhere.detach() ** 2
    elif name == "mal":
        target, positive = overlap**_MAL_GAMMA, torch.ones_like(own)
        negative = everywhere.detach() ** _MAL_GAMMA
    else:
        assert name == "position", name
        target = relative_quality(overlap, assigned[0], len(logits))
        positive = alpha * _power((target - probability).abs(), gamma)
        negative = (1 - alpha) * _power(everywhere, gamma)
    # The background everywhere, and then the matched scores in its place. -log(1 - p) is -logsigmoid(-z).
    background = negative * -F.logsigmoid(-logits)
    surprise = F.binary_cross_entropy_with_logits(own, target, reduction="none")
    return background.index_put(matched, positive * surprise)


def relative_quality(
    overlaps: Float[Tensor, "pairs"], images: Int[Tensor, "pairs"], num_images: int
) -> Float[Tensor, "pairs"]:
    """Quality of each pair: its squared IoU divided by the largest of its image; 0 in images where nothing overlaps."""
    squared = overlaps**2
    largest = squared.new_zeros(num_images).scatter_reduce(0, images, squared, "amax")
    return squared / largest[images].clamp(min=torch.finfo(squared.dtype).tiny)


def _power(base: Tensor, exponent: float) -> Tensor:
    # The derivative at 0 is infinite for exponents below 1.
    return base.clamp(min=torch.finfo(base.dtype).tiny ** 0.5) ** exponent
