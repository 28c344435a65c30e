"""Deformable attention module: projections around the multi-scale deformable attention operator (section 4.1)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.types import SpatialShapes
from deformable_detr.ops import multi_scale_deformable_attention_from_projection, sampling_points_from_projection
from deformable_detr.ops.msda import SamplingPoints


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections (section 4.1, equation 3).

    Each query samples `num_points` points per head and level around its reference. Linear layers predict the sampling
    offsets and the attention weights from the query.

    Args:
        dim: channels of queries and tokens.
        num_heads: attention heads, a divisor of `dim`.
        num_levels: levels that every query samples.
        num_points: sampling points per head and level.
    """

    def __init__(self, dim: int, *, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self,
        query: Float[Tensor, "batch queries dim"],
        reference: Float[Tensor, "batch queries levels _"],
        tokens: Float[Tensor, "batch positions dim"],
        padding_mask: Bool[Tensor, "batch positions"],
        spatial_shapes: SpatialShapes,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attended features of each query.

        Args:
            query: content plus position of each query.
            reference: for each level, a point (x, y) or a box cxcywh in 0..1 of the padded map.
            tokens: features per position, levels concatenated, finest first.
            padding_mask: True = padding; the value there is 0.
            spatial_shapes: (height, width) of each level, finest first.
        """
        value = self.value_proj(tokens).masked_fill_(padding_mask[..., None], 0.0)
        sampled = multi_scale_deformable_attention_from_projection(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference,
            self.project(query),
            num_points=self.num_points,
        )
        return self.output_proj(sampled.flatten(2))

    def project(self, query: Float[Tensor, "batch queries dim"]) -> Float[Tensor, "batch queries channels"]:
        """Sampling offsets of each query as (x, y) for every head, level and point, then the logits of the weights."""
        # One matrix product for both layers: joining the weights costs less than reading the queries twice.
        return F.linear(
            query,
            torch.cat([self.sampling_offsets.weight, self.attention_weights.weight]),
            torch.cat([self.sampling_offsets.bias, self.attention_weights.bias]),
        )

    def sampling_points(
        self,
        query: Float[Tensor, "batch queries dim"],
        reference: Float[Tensor, "batch queries levels _"],
        spatial_shapes: SpatialShapes,
    ) -> SamplingPoints:
        """Sampling points of each query: the very ones that `forward` uses, which never stores them.

        Args:
            query: content plus position of each query.
            reference: for each level, a point (x, y) or a box cxcywh in 0..1 of the padded map.
            spatial_shapes: (height, width) of each level, finest first.
        """
        return sampling_points_from_projection(
            spatial_shapes,
            reference,
            self.project(query),
            num_heads=self.num_heads,
            num_points=self.num_points,
        )
