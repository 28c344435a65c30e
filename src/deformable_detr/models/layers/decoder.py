"""Decoder: queries to predictions, with a class head and a box head after every layer (section 4.1)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.boxes import inverse_sigmoid
from deformable_detr.core.types import Memory, Predictions, Queries
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.feedforward import MLP, FeedForward, in_float32


class DecoderLayer(nn.Module):
    """Decoder layer: self-attention among queries, deformable cross-attention to the memory, feed-forward block.

    Dropout, the residual connection and layer norm follow each of the three.

    Args:
        dim: channels of the queries and of the memory.
        num_heads: attention heads of both attentions.
        num_levels: levels of the memory.
        num_points: sampling points per head and level.
        ffn_dim: channels between the two linear layers of the feed-forward block.
        dropout: probability of dropout, in 0..1.
    """

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
        attention_mask: Bool[Tensor, "queries queries"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Content of the queries after this layer.

        Args:
            content: content of the queries.
            position: position of the queries, added wherever they attend, never to values.
            reference: for each level, a point (x, y) or a box cxcywh in 0..1 of the padded map.
            memory: encoded tokens of the image.
            attention_mask: True where a query (row) cannot see another (column) in self-attention; None if all can.
        """
        query = content + position
        attended, _ = self.self_attention(query, query, content, need_weights=False, attn_mask=attention_mask)
        content = self.norm_self(content + self.dropout(attended))
        sampled = self.cross_attention(
            content + position, reference, memory.tokens, memory.padding_mask, memory.spatial_shapes
        )
        content = self.norm_cross(content + self.dropout(sampled))
        return self.norm_ffn(content + self.dropout(self.ffn(content)))


class Decoder(nn.Module):
    """Decoder layers and their heads.

    Without refinement all layers share one class head and one box head; with it each layer has its own.

    Args:
        layers: decoder layers, applied in order; predictions are made after each.
        class_heads: one per layer with refinement, else a single one.
        box_heads: one per layer with refinement, else a single one; they predict the shift of the reference in logits.
        refine: the boxes of each layer become the references of the next layer (section 4.2).
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
        """Predictions of every layer, in order; the last are the final ones."""
        content, reference, mask = queries.content, queries.reference, queries.attention_mask
        predictions = []
        for index, layer in enumerate(self.layers):
            content = layer(content, queries.position, in_each_level(reference, memory.valid_ratios), memory, mask)
            boxes = shifted(reference, in_float32(self.box_heads[index if self.refine else 0], content))
            predictions.append(Predictions(self.class_logits(index, content), boxes))
            if self.refine:
                # Detached: each head learns from the loss of its own layer alone (A.4).
                reference = boxes.detach()
        return predictions

    def class_logits(
        self, index: int, content: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries classes"]:
        """Class logits from the content of the queries after the layer of this index."""
        logits: Tensor = in_float32(self.class_heads[index if self.refine else 0], content)
        return logits


def in_each_level(
    reference: Float[Tensor, "batch queries coordinates"], valid_ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch queries levels coordinates"]:
    """References for each level: from 0..1 of the image without padding to 0..1 of each padded map."""
    repeat = reference.shape[-1] // 2  # (w, h) scales a point once, and both centre and size of a box
    return reference[:, :, None] * valid_ratios.repeat(1, 1, repeat)[:, None]


def shifted(
    reference: Float[Tensor, "batch queries coordinates"],
    delta: Float[Tensor, "batch queries 4"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "batch queries 4"]:
    """Boxes cxcywh in 0..1: the reference shifted by `delta` in logits (A.3).

    A reference point shifts the centre alone; `delta` is then the size itself, in logits. Coordinates nearer than `eps`
    to 0 or 1 are shifted from there.
    """
    known = reference.shape[-1]
    moved = delta[..., :known] + inverse_sigmoid(reference, eps)
    return torch.cat([moved, delta[..., known:]], dim=-1).sigmoid()
