"""The module around the operator: where to sample, and how much each sample counts (section 4.1)."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.ops import multi_scale_deformable_attention
from deformable_detr.types import SpatialShapes


class DeformableAttention(nn.Module):
    """Each query samples `num_points` points per level and head around its reference, at offsets it predicts itself."""

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
        """`reference` is a point (x, y) or a box cxcywh in 0..1 of each padded map. Padding has value zero."""
        value = self.value_proj(tokens).masked_fill(padding_mask[..., None], 0.0)
        per_head = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*per_head, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        sampled = multi_scale_deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            sampling_locations(reference, offsets, spatial_shapes),
            weights.unflatten(-1, per_head[1:]),
        )
        return self.output_proj(sampled.flatten(2))


def sampling_locations(
    reference: Float[Tensor, "batch queries levels _"],
    offsets: Float[Tensor, "batch queries heads levels points 2"],
    spatial_shapes: SpatialShapes,
) -> Float[Tensor, "batch queries heads levels points 2"]:
    """Offsets count pixels of their level around a reference point, or half-boxes / points around a reference box."""
    around = reference[:, :, None, :, None]  # (batch, queries, 1, levels, 1, 2 or 4)
    if reference.shape[-1] == 2:
        sizes_wh = offsets.new_tensor([(width, height) for height, width in spatial_shapes])
        return around + offsets / sizes_wh[:, None]
    num_points = offsets.shape[4]
    return around[..., :2] + offsets / num_points * around[..., 2:] * 0.5
