"""Self-attention over all positions of all levels, linear in image size (section 4.2)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory, SpatialShapes
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dropout import Dropout
from deformable_detr.models.layers.feedforward import FeedForward


class EncoderLayer(nn.Module):
    """Deformable self-attention, then feed-forward; residual, dropout and norm after each."""

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
        """The embedding of positions is added to queries, not to values."""
        attended = self.self_attention(tokens + position, reference, tokens, padding_mask, spatial_shapes)
        tokens = self.norm_attention(tokens + self.dropout(attended))
        return self.norm_ffn(tokens + self.dropout(self.ffn(tokens)))


class Encoder(nn.Module):
    """Layers one after another; no norm after the last, as in the official code."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, memory: Memory) -> Memory:
        """The same memory with its tokens encoded."""
        reference = position_references(memory.spatial_shapes, memory.valid_ratios)
        tokens = memory.tokens
        for layer in self.layers:
            tokens = layer(tokens, memory.position, reference, memory.padding_mask, memory.spatial_shapes)
        return memory._replace(tokens=tokens)


def position_references(
    spatial_shapes: SpatialShapes, valid_ratios: Float[Tensor, "batch levels 2"]
) -> Float[Tensor, "batch positions levels 2"]:
    """Centre (x, y) of every position, in 0..1 of the padded map of every level it may look at."""
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
    """(x, y) of each pixel's centre, in pixels."""
    y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
