"""Sources of decoder queries: learned queries (one stage), the encoder's best proposals (two-stage, A.4), or both."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.types import Branches, Memory, Predictions, Queries, SpatialShapes
from deformable_detr.models.layers.branches import mask_of
from deformable_detr.models.layers.encoder import pixel_centres
from deformable_detr.models.layers.feedforward import MLP, in_float32
from deformable_detr.models.layers.position import embed_boxes

# Width and height of the finest level's anchors, in 0..1 of the image (A.4).
_FINEST_PROPOSAL_SIZE = 0.05
# Anchors with a coordinate this close to 0 or 1 are invalid: their logits would grow without limit.
_PROPOSAL_MARGIN = 0.01
_SAME_OBJECT_IOU = 0.8
CANDIDATES_PER_QUERY = 10
"""Number of proposals compared with each other for each query, for the choice "distinct"."""


@runtime_checkable
class QuerySource(Protocol):
    """Source of queries: encoder memory to decoder queries, and to the proposals that training supervises."""

    def __call__(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Decoder queries, and the proposals that training supervises; None without proposals.

        If there are branches of queries, those of all groups come one group after another.
        """
        ...


class TrainingBranches(NamedTuple):
    """Queries that a source adds in training."""

    hybrid_queries: int = 0
    """Number of additional queries that are matched several to one (H-DETR)."""
    hybrid_repeats: int = 6
    """Number of those queries that each object is matched to."""
    query_groups: int = 1
    """Number of groups of queries, with the one that answers (Group DETR)."""

    def branches(self, answering: int, hybrid: int) -> Branches | None:
        """Branches for these numbers of queries; None if there is only the answering one."""
        if self.hybrid_queries:
            return Branches((answering, hybrid), self.hybrid_repeats)
        return Branches((answering,) * self.query_groups, 1) if self.query_groups > 1 else None


NO_BRANCHES = TrainingBranches()
"""Queries in training as in prediction."""


class LearnedQueries(nn.Module):
    """Learned queries, equal for every image, each with a learned reference point (section 4.1).

    Args:
        num_queries: number of queries.
        dim: channels of content and position.
        added: queries that are added in training, with embeddings of their own.
    """

    def __init__(self, num_queries: int, dim: int, added: TrainingBranches = NO_BRANCHES) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.added = added
        self.embedding = nn.Embedding(num_queries, 2 * dim)  # position, then content
        self.reference_points = nn.Linear(dim, 2)
        more = added.hybrid_queries + (added.query_groups - 1) * num_queries
        self.training_embedding = nn.Embedding(more, 2 * dim) if more else None

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Learned queries with reference points (x, y) in 0..1; no proposals."""
        batch, weight, branches = memory.tokens.shape[0], self.embedding.weight, None
        if self.training and self.training_embedding is not None:
            weight = torch.cat([weight, self.training_embedding.weight])
            branches = self.added.branches(self.num_queries, self.added.hybrid_queries)
        position, content = weight.expand(batch, -1, -1).chunk(2, dim=-1)
        reference = in_float32(self.reference_points, position).sigmoid()
        return Queries(content, position, reference, branches, mask_of(branches, reference.device)), None


class ProposalQueries(nn.Module):
    """Queries from proposals: one proposal per encoder position, of which the best become queries (A.4).

    Content and position of a query are computed from the box of its proposal alone, as in the official code.

    Args:
        num_queries: number of proposals that are kept; all of them if the image has fewer positions.
        dim: channels of the memory.
        num_classes: channels of the class head; only channel 0 is trained, as "there is an object", and ranks.
        choice: ranking of the proposals. "paper" ranks proposals in the padding and at the very border like all others,
            with the box (1, 1, 1, 1), as the official code does. "valid" takes those last. "distinct" does so, too, and
            puts just before them the proposals that overlap a better one with an IoU above 0.8 (after Zhang et al.,
            "Dense Distinct Query for End-to-End Object Detection", CVPR 2023): nearly equal boxes give nearly equal
            queries, and the decoder takes long to learn which of them to drop.
        added: queries that are added in training: the next best proposals, or groups that make proposals of their own.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int,
        num_classes: int,
        *,
        choice: Literal["paper", "valid", "distinct"],
        added: TrainingBranches = NO_BRANCHES,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.choice = choice
        self.added = added
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = MLP(dim, dim, 4, num_layers=3)
        self.position_proj = nn.Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)
        others = range(added.query_groups - 1)
        self.group_projs = nn.ModuleList(nn.Linear(dim, dim) for _ in others)
        self.group_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in others)
        self.group_class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in others)
        self.group_box_heads = nn.ModuleList(MLP(dim, dim, 4, num_layers=3) for _ in others)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Queries with reference boxes cxcywh in 0..1, and the proposals of all positions."""
        valid, anchor_logits = anchors_of(memory.spatial_shapes, memory.valid_ratios, memory.padding_mask)
        masked = memory.tokens.masked_fill(~valid[..., None], 0.0)

        def propose(proj: nn.Module, norm: nn.Module, class_head: nn.Module, box_head: nn.Module) -> Predictions:
            # Scores and boxes of all positions. An invalid one gets the box (1, 1, 1, 1), the sigmoid of infinity.
            tokens = norm(proj(masked))
            boxes = (in_float32(box_head, tokens) + anchor_logits).sigmoid()
            return Predictions(in_float32(class_head, tokens), boxes)

        proposals = [propose(self.memory_proj, self.memory_norm, self.class_head, self.box_head)]
        chosen = [self._best(*proposals[0], valid)]
        references, branches = [pick(proposals[0].boxes, chosen[0])], None
        if self.training:
            if self.added.hybrid_queries:
                scores, count = proposals[0].logits[..., 0], self.added.hybrid_queries
                chosen.append(next_positions(scores, valid, chosen[0], count=count, choice=self.choice))
                references.append(pick(proposals[0].boxes, chosen[1]))
            heads = (self.group_projs, self.group_norms, self.group_class_heads, self.group_box_heads)
            for own in zip(*heads, strict=True):
                proposals.append(propose(*own))
                chosen.append(self._best(*proposals[-1], valid))
                references.append(pick(proposals[-1].boxes, chosen[-1]))
            branches = self.added.branches(chosen[0].shape[1], chosen[-1].shape[1])
        # The chosen boxes become queries. They are detached: the proposals learn from their own loss alone.
        reference = torch.cat(references, dim=1).detach()
        position, content = self._embedded(reference)
        every = proposals[0]
        if len(proposals) > 1:
            every = Predictions(*(torch.cat(parts, dim=1) for parts in zip(*proposals, strict=True)))
        mask = mask_of(branches, reference.device)
        return Queries(content, position, reference, branches, mask, torch.cat(chosen, dim=1)), every

    def at_boxes(
        self, content: Float[Tensor, "batch queries dim"], reference: Float[Tensor, "batch queries 4"]
    ) -> Queries:
        """Queries of this content at these boxes, cxcywh in 0..1."""
        position, _ = self._embedded(reference)
        return Queries(content, position, reference)

    def _embedded(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Position and content from boxes alone."""
        embedded = embed_boxes(reference, self.position_proj.in_features)
        position, content = self.position_norm(self.position_proj(embedded)).chunk(2, dim=-1)
        return position, content

    def _best(self, logits: Tensor, boxes: Tensor, valid: Bool[Tensor, "batch positions"]) -> Tensor:
        return best_positions(logits[..., 0], valid, lambda: boxes, count=self.num_queries, choice=self.choice)


class MixedQueries(nn.Module):
    """Mixed queries of DINO: boxes of the best proposals, and learned content by rank (arXiv 2203.03605, section 3.3).

    The features of a proposal are not used. Classification of the proposals is by class, and only those that become
    queries are given out for training.

    Args:
        num_queries: number of proposals that are kept; all of them if the image has fewer positions.
        dim: channels of the memory.
        num_classes: channels of the class head; a position is ranked by its best class.
        choice: ranking of the proposals, as in `ProposalQueries`.
        added: queries that are added in training, with content of their own: the next best proposals, or groups that
            make proposals of their own.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int,
        num_classes: int,
        *,
        choice: Literal["paper", "valid", "distinct"],
        added: TrainingBranches = NO_BRANCHES,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.choice = choice
        self.added = added
        self.content = nn.Embedding(num_queries, dim)
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = MLP(dim, dim, 4, num_layers=3)
        more, others = added.hybrid_queries + (added.query_groups - 1) * num_queries, range(added.query_groups - 1)
        self.training_embedding = nn.Embedding(more, dim) if more else None
        self.group_projs = nn.ModuleList(nn.Linear(dim, dim) for _ in others)
        self.group_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in others)
        self.group_class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in others)
        self.group_box_heads = nn.ModuleList(MLP(dim, dim, 4, num_layers=3) for _ in others)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Queries with reference boxes cxcywh in 0..1, and the proposals that they come from, by falling score.

        Of groups of queries, the proposals of each come one after another. Those that become hybrid queries are not
        given out: they are matched in the decoder alone.
        """
        anchors = anchors_of(memory.spatial_shapes, memory.valid_ratios, memory.padding_mask)
        masked = memory.tokens.masked_fill(~anchors.valid[..., None], 0.0)
        own = (self.memory_proj, self.memory_norm, self.class_head, self.box_head)
        if not self.training or self.training_embedding is None:
            proposals, _, best = self._propose(masked, anchors, *own)
            content = self.content.weight[: proposals.boxes.shape[1]].expand(len(proposals.boxes), -1, -1)
            # Detached: the proposals learn from their own loss alone.
            return self.at_boxes(content, proposals.boxes.detach())._replace(positions=best), proposals
        # With branches: first the queries that answer, then all others, each with content by its rank.
        number = self.added.hybrid_queries
        proposals, following, chosen = self._propose(masked, anchors, *own, num_following=number)
        every, references, positions = [proposals], [proposals.boxes, following], [chosen]
        more = self.training_embedding.weight
        contents = [self.content.weight[: proposals.boxes.shape[1]], more[: following.shape[1]]]
        heads = (self.group_projs, self.group_norms, self.group_class_heads, self.group_box_heads)
        for of_group, own_content in zip(zip(*heads, strict=True), more.split(self.num_queries), strict=False):
            proposals, _, chosen = self._propose(masked, anchors, *of_group)
            positions.append(chosen)
            every.append(proposals)
            references.append(proposals.boxes)
            contents.append(own_content[: proposals.boxes.shape[1]])
        boxes = torch.cat(references, dim=1).detach()
        branches = self.added.branches(every[0].boxes.shape[1], following.shape[1])
        queries = self.at_boxes(torch.cat(contents).expand(len(boxes), -1, -1), boxes)
        queries = queries._replace(
            branches=branches, attention_mask=mask_of(branches, boxes.device), positions=torch.cat(positions, dim=1)
        )
        return queries, Predictions(*(torch.cat(parts, dim=1) for parts in zip(*every, strict=True)))

    def _propose(
        self,
        masked: Float[Tensor, "batch positions dim"],
        anchors: "Anchors",
        proj: nn.Module,
        norm: nn.Module,
        class_head: nn.Module,
        box_head: nn.Module,
        num_following: int = 0,
    ) -> tuple[Predictions, Float[Tensor, "batch following 4"], Int[Tensor, "batch chosen"]]:
        """Best proposals, the boxes of those that are next best, and the positions of both."""
        tokens = norm(proj(masked))
        logits = in_float32(class_head, tokens)
        scores = logits.amax(-1)

        def all_boxes() -> Tensor:
            return (in_float32(box_head, tokens) + anchors.logits).sigmoid()

        def boxes_at(index: Tensor) -> Tensor:
            # Boxes are needed of the chosen positions alone. An invalid one gets the box (1, 1, 1, 1).
            return (in_float32(box_head, pick(tokens, index)) + pick(anchors.logits, index)).sigmoid()

        best = best_positions(scores, anchors.valid, all_boxes, count=self.num_queries, choice=self.choice)
        proposals = Predictions(pick(logits, best), boxes_at(best))
        if not num_following:
            return proposals, proposals.boxes[:, :0], best
        following = next_positions(scores, anchors.valid, best, count=num_following, choice=self.choice)
        return proposals, boxes_at(following), torch.cat([best, following], dim=1)

    def at_boxes(
        self, content: Float[Tensor, "batch queries dim"], reference: Float[Tensor, "batch queries 4"]
    ) -> Queries:
        """Queries of this content at these boxes, cxcywh in 0..1; the decoder computes their position."""
        return Queries(content, None, reference)


@torch.no_grad()
def next_positions(
    scores: Float[Tensor, "batch positions"],
    valid: Bool[Tensor, "batch positions"],
    best: Tensor,
    *,
    count: int,
    choice: Literal["paper", "valid", "distinct"],
) -> Tensor:
    """Positions of the best proposals of each image that have not been chosen, best first; fewer if there are no more.

    Args:
        scores: score of each proposal.
        valid: whether each proposal is valid; others come last unless the choice is "paper".
        best: positions that have been chosen, (batch, chosen).
        count: number of proposals to choose.
        choice: ranking of the proposals, as in `ProposalQueries`.
    """
    scores = scores.float()
    if choice != "paper":
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    count = min(count, scores.shape[1] - best.shape[1])
    return scores.scatter(1, best, -torch.inf).topk(count, dim=1).indices


@torch.no_grad()
def best_positions(
    scores: Float[Tensor, "batch positions"],
    valid: Bool[Tensor, "batch positions"],
    boxes: Callable[[], Tensor],
    *,
    count: int,
    choice: Literal["paper", "valid", "distinct"],
) -> Tensor:
    """Positions of the best proposals of each image, best first.

    Args:
        scores: score of each proposal.
        valid: whether each proposal is valid.
        boxes: function that returns the boxes cxcywh of all proposals, (batch, positions, 4).
        count: number of proposals to choose; all of them if there are fewer.
        choice: ranking of the proposals, as in `ProposalQueries`.
    """
    kept = min(count, scores.shape[1])
    if choice == "paper":
        return scores.topk(kept, dim=1).indices
    scores = scores.masked_fill(~valid, -torch.inf)
    if choice == "valid":
        return scores.topk(kept, dim=1).indices
    # Comparing all positions of a large image takes long; a multiple of the queries has enough distinct ones.
    candidates = scores.topk(min(CANDIDATES_PER_QUERY * kept, scores.shape[1]), dim=1).indices
    pairs = zip(candidates, scores, cxcywh_to_xyxy(boxes()), strict=True)
    return torch.stack([own[distinct_first(box[own], score[own])[:kept]] for own, score, box in pairs])


class Anchors(NamedTuple):
    """Anchors of the proposals: whether each is valid, and its box in logits."""

    valid: Bool[Tensor, "batch positions"]
    """Mask of the anchors that may become proposals: not in the padding, not too close to the border."""
    logits: Float[Tensor, "batch positions 4"]
    """Box cxcywh of each anchor before the sigmoid; infinite for those that are not valid."""


def anchors_of(
    spatial_shapes: SpatialShapes,
    valid_ratios: Float[Tensor, "batch levels 2"],
    padding_mask: Bool[Tensor, "batch positions"],
) -> Anchors:
    """Anchors of all positions of all levels (A.4)."""
    anchors = proposal_boxes(spatial_shapes, valid_ratios)
    inside = ((anchors > _PROPOSAL_MARGIN) & (anchors < 1 - _PROPOSAL_MARGIN)).all(-1)
    valid = inside & ~padding_mask
    return Anchors(valid, torch.log(anchors / (1 - anchors)).masked_fill(~valid[..., None], float("inf")))


def proposal_boxes(
    spatial_shapes: SpatialShapes, valid_ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch positions 4"]:
    """Anchor box cxcywh of every position, in 0..1 of the image without padding (A.4); sides double per level."""
    levels = []
    for level, ((height, width), ratio) in enumerate(zip(spatial_shapes, valid_ratios.unbind(1), strict=True)):
        valid_wh = ratio * ratio.new_tensor([width, height])
        centres = pixel_centres(height, width, ratio.device).flatten(0, 1) / valid_wh[:, None]
        levels.append(torch.cat([centres, torch.full_like(centres, _FINEST_PROPOSAL_SIZE * 2**level)], dim=-1))
    return torch.cat(levels, dim=1)


def pick(values: Float[Tensor, "batch positions _"], index: Tensor) -> Float[Tensor, "batch queries _"]:
    """Values at the chosen positions of each image."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def distinct_first(boxes_xyxy: Float[Tensor, "boxes 4"], scores: Float[Tensor, "boxes"]) -> Tensor:
    """Order of boxes, given by falling score: those that overlap no better box, then the others, then the invalid.

    Returns:
        Positions in `boxes_xyxy`, the first to be taken first.
    """
    from torchvision.ops import nms  # takes seconds to import

    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[nms(boxes_xyxy, scores, _SAME_OBJECT_IOU)] = True
    # Invalid proposals all have the same box, so that NMS would choose one of them.
    return (chosen & scores.isfinite()).logical_not().int().argsort(stable=True)
