"""Encoder: deformable self-attention over all positions of all levels; cost linear in image size (section 4.1)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory, SpatialShapes
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.feedforward import FeedForward


class EncoderLayer(nn.Module):
    """Encoder layer: deformable self-attention, then the feed-forward block.

    Dropout, the residual connection and layer norm follow each of the two.

    Args:
        dim: channels of the tokens.
        num_heads: attention heads.
        num_levels: levels that every position samples.
        num_points: sampling points per head and level.
        ffn_dim: channels between the two linear layers of the feed-forward block.
        dropout: probability of dropout, in 0..1.
    """

    def __init__(
        self, dim: int, *, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = DeformableAttention(
            dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.norm_attention = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm_ffn = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch positions dim"],
        position: Float[Tensor, "batch positions dim"],
        reference: Float[Tensor, "batch positions levels 2"],
        padding_mask: Bool[Tensor, "batch positions"],
        spatial_shapes: SpatialShapes,
    ) -> Float[Tensor, "batch positions dim"]:
        """Tokens after this layer.

        Args:
            tokens: features per position, levels concatenated.
            position: embedding of the positions, added to queries and never to values.
            reference: centre (x, y) of each position in 0..1 of the padded map of every level.
            padding_mask: True = padding.
            spatial_shapes: (height, width) of each level, finest first.
        """
        attended = self.self_attention(tokens + position, reference, tokens, padding_mask, spatial_shapes)
        tokens = self.norm_attention(tokens + self.dropout(attended))
        return self.norm_ffn(tokens + self.dropout(self.ffn(tokens)))


class Encoder(nn.Module):
    """Encoder layers in order; there is no norm after the last, as in the official code."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: Memory) -> Memory:
        """Memory with encoded tokens; everything else in it stays."""
        reference = position_references(memory.spatial_shapes, memory.valid_ratios)
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position, reference, memory.padding_mask, memory.spatial_shapes)
        return memory._replace(tokens=tokens)


def position_references(
    spatial_shapes: SpatialShapes, valid_ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch positions levels 2"]:
    """Reference points of the encoder: centre (x, y) of every position, in 0..1 of each level's padded map."""
    centres = torch.cat(
        [
            pixel_centres(height, width, valid_ratios.device).flatten(0, 1)
            / (ratio[:, None] * ratio.new_tensor([width, height]))
            for (height, width), ratio in zip(spatial_shapes, valid_ratios.unbind(1), strict=True)
        ],
        dim=1,
    )  # (batch, positions, 2), in 0..1 of the image without padding
    return centres[:, :, None] * valid_ratios[:, None]


def pixel_centres(height: int, width: int, device: torch.device) -> Float[Tensor, "height width 2"]:
    """Centres (x, y) of all pixels of a map, in pixels: 0.5, 1.5, and so on."""
    y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
