"""Queries to predictions: self-attention among queries, deformable attention to the memory, heads after every layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.boxes import inverse_sigmoid
from deformable_detr.core.types import Memory, Predictions, Queries
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.feedforward import MLP, FeedForward, in_float32


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; residual, dropout and norm after each."""

    def __init__(
        self, dim: int, *, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm_self = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(
            dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm_cross = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm_ffn = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Float[Tensor, "batch queries dim"],
        position: Float[Tensor, "batch queries dim"],
        reference: Float[Tensor, "batch queries levels _"],
        memory: Memory,
    ) -> Float[Tensor, "batch queries dim"]:
        """`reference` is a point or a box in 0..1 of each padded map."""
        query = content + position
        attended, _ = self.self_attention(query, query, content, need_weights=False)
        content = self.norm_self(content + self.dropout(attended))
        sampled = self.cross_attention(
            content + position, reference, memory.tokens, memory.padding_mask, memory.spatial_shapes
        )
        content = self.norm_cross(content + self.dropout(sampled))
        return self.norm_ffn(content + self.dropout(self.ffn(content)))


class Decoder(nn.Module):
    """Layers and their heads. Without refinement every layer shares one head of each kind; with it each owns its own.

    Args:
        layers: applied in order; predictions are made after each.
        class_heads: one per layer, or a single one that all share.
        box_heads: likewise; they predict the shift from the reference, in logits.
        refine: each layer's boxes become the next layer's references (section 4.3).
    """

    def __init__(
        self, layers: list[DecoderLayer], class_heads: list[nn.Linear], box_heads: list[MLP], *, refine: bool
    ) -> None:
        super().__init__()
        assert len(class_heads) == len(box_heads) == (len(layers) if refine else 1)
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.refine = refine

    def forward(self, queries: Queries, memory: Memory) -> list[Predictions]:
        """Predictions of every layer, the last being the answer."""
        content, reference = queries.content, queries.reference
        predictions = []
        for index, layer in enumerate(self.layers):
            content = layer(content, queries.position, _in_each_level(reference, memory.valid_ratios), memory)
            head = index if self.refine else 0
            boxes = _shift(reference, in_float32(self.box_heads[head], content))
            predictions.append(Predictions(in_float32(self.class_heads[head], content), boxes))
            if self.refine:
                # Each head learns from its own layer's loss alone.
                reference = boxes.detach()
        return predictions


def _in_each_level(
    reference: Float[Tensor, "batch queries coordinates"], valid_ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch queries levels coordinates"]:
    """From 0..1 of the image to 0..1 of each padded map."""
    repeat = reference.shape[-1] // 2  # (w, h) scales a point once, a box in centre and size
    return reference[:, :, None] * valid_ratios.repeat(1, 1, repeat)[:, None]


def _shift(
    reference: Float[Tensor, "batch queries coordinates"], delta: Float[Tensor, "batch queries 4"]
) -> Float[Tensor, "batch queries 4"]:
    """Boxes cxcywh in 0..1. A reference point moves the centre only; the size is then predicted from nothing."""
    known = reference.shape[-1]
    moved = delta[..., :known] + inverse_sigmoid(reference)
    return torch.cat([moved, delta[..., known:]], dim=-1).sigmoid()
