"""Where decoder queries come from: learned (one stage), or the best proposals of the encoder (two-stage, A.4)."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.nn.encoder import pixel_centres
from deformable_detr.nn.ffn import MLP
from deformable_detr.nn.full_precision import in_float32
from deformable_detr.nn.position import embed_boxes
from deformable_detr.types import Memory, Predictions, Queries, SpatialShapes

_FINEST_PROPOSAL_SIZE = 0.05
_PROPOSAL_MARGIN = 0.01


@runtime_checkable
class QuerySource(Protocol):
    """Turns encoder memory into decoder queries, and proposals to supervise if it made any."""

    def __call__(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Queries, and every proposal they were chosen from."""
        ...


class LearnedQueries(nn.Module):
    """The same learned queries for every image, each with a reference point it learns with them (section 4.2)."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * dim)  # position, then content
        self.reference_points = nn.Linear(dim, 2)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Queries with 2-d references; no proposals."""
        batch = memory.tokens.shape[0]
        position, content = self.embedding.weight.expand(batch, -1, -1).chunk(2, dim=-1)
        return Queries(content, position, in_float32(self.reference_points, position).sigmoid()), None


class ProposalQueries(nn.Module):
    """One proposal per encoder position; the best by class channel 0 become queries.

    Content and position of a query are both read from its box alone, as in the official code.

    Args:
        num_queries: how many proposals are kept; all of them where the image has fewer positions.
        dim: width of the memory.
        num_classes: channels of the class head; only channel 0 is ever trained, as "there is an object".
        valid_only: never pick proposals in the padding or at the very border. The official code scores them like
            any other, with the box (1, 1, 1, 1).
    """

    def __init__(self, num_queries: int, dim: int, num_classes: int, *, valid_only: bool) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.valid_only = valid_only
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = MLP(dim, dim, 4, num_layers=3)
        self.position_proj = nn.Linear(2 * dim, 2 * dim)
        self.position_norm = nn.LayerNorm(2 * dim)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """Queries with 4-d references, and the predictions of all positions."""
        anchors = proposal_boxes(memory.spatial_shapes, memory.valid_ratios)
        inside = ((anchors > _PROPOSAL_MARGIN) & (anchors < 1 - _PROPOSAL_MARGIN)).all(-1)
        valid = inside & ~memory.padding_mask
        tokens = self.memory_norm(self.memory_proj(memory.tokens.masked_fill(~valid[..., None], 0.0)))
        logits = in_float32(self.class_head, tokens)
        anchor_logits = torch.log(anchors / (1 - anchors)).masked_fill(~valid[..., None], float("inf"))
        boxes = (in_float32(self.box_head, tokens) + anchor_logits).sigmoid()
        reference = _pick(boxes, self._best(logits, valid)).detach()
        embedded = embed_boxes(reference, self.position_proj.in_features)
        position, content = self.position_norm(self.position_proj(embedded)).chunk(2, dim=-1)
        return Queries(content, position, reference), Predictions(logits, boxes)

    def _best(self, logits: Tensor, valid: Bool[Tensor, "batch positions"]) -> Tensor:
        scores = logits[..., 0].detach()
        if self.valid_only:
            scores = scores.masked_fill(~valid, -torch.inf)
        return scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices


def proposal_boxes(
    spatial_shapes: SpatialShapes, valid_ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch positions 4"]:
    """A box cxcywh on every position, in 0..1 of the image without padding; its side doubles from level to level."""
    levels = []
    for level, ((height, width), ratio) in enumerate(zip(spatial_shapes, valid_ratios.unbind(1), strict=True)):
        valid_wh = ratio * ratio.new_tensor([width, height])
        centres = pixel_centres(height, width, ratio.device).flatten(0, 1) / valid_wh[:, None]
        levels.append(torch.cat([centres, torch.full_like(centres, _FINEST_PROPOSAL_SIZE * 2**level)], dim=-1))
    return torch.cat(levels, dim=1)


def _pick(values: Float[Tensor, "batch positions 4"], index: Tensor) -> Float[Tensor, "batch queries 4"]:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
