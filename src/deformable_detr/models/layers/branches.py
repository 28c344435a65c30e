"""Branches of decoder queries that only training has: their mask, and their predictions.

H-DETR (Jia et al., arXiv 2207.13080) adds queries that are matched to every object several times; Group DETR (Chen et
al., arXiv 2207.13085) adds groups of queries that are matched as the answering ones are. All branches go through the
same decoder, and none sees another.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from deformable_detr.core.types import (
    Branches,
    DetectorOutput,
    GroupPredictions,
    OneToManyPredictions,
    Predictions,
)


def mask_of(branches: Branches | None, device: torch.device) -> Bool[Tensor, "queries queries"] | None:
    """Mask of the self-attention in which no branch sees another; None if there are no branches.

    Args:
        branches: sizes of the branches.
        device: device of the mask.
    """
    return None if branches is None else isolation_mask(branches.sizes, device)


def isolation_mask(sizes: tuple[int, ...], device: torch.device) -> Bool[Tensor, "queries queries"]:
    """Mask for the self-attention of branches that stand one after another; True = blocked.

    Args:
        sizes: number of queries in each branch.
        device: device of the mask.
    """
    branch = torch.arange(len(sizes), device=device).repeat_interleave(
        torch.tensor(sizes, device=device), output_size=sum(sizes)
    )
    return branch[:, None] != branch[None, :]


def output_of_branches(
    layers: list[Predictions], proposals: Predictions | None, branches: Branches | None
) -> DetectorOutput:
    """Output in which the first branch answers and the others are apart.

    Args:
        layers: predictions of each decoder layer for the queries of all branches, one branch after another.
        proposals: predictions of the first stage; with groups those of each group, one group after another.
        branches: sizes and kind of the branches; None if all queries answer.
    """
    if branches is None:
        return DetectorOutput(layers, proposals)
    by_branch: list[list[Predictions]] = [[] for _ in branches.sizes]
    for layer in layers:
        parts = zip(layer.logits.split(branches.sizes, dim=1), layer.boxes.split(branches.sizes, dim=1), strict=True)
        for own, part in zip(by_branch, parts, strict=True):
            own.append(Predictions(*part))
    answer, *others = by_branch
    if branches.repeats > 1:
        (extra,) = others
        return DetectorOutput(answer, proposals, one_to_many=OneToManyPredictions(extra, branches.repeats))
    count = len(by_branch)
    own_proposals: list[Predictions | None] = [None] * count
    if proposals is not None:
        pairs = zip(proposals.logits.chunk(count, dim=1), proposals.boxes.chunk(count, dim=1), strict=True)
        own_proposals = [Predictions(*pair) for pair in pairs]
    groups = tuple(GroupPredictions(*one) for one in zip(others, own_proposals[1:], strict=True))
    return DetectorOutput(answer, own_proposals[0], groups)
