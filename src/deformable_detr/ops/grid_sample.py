"""One `grid_sample` per level: any device, differentiable, nothing to compile."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.types import SpatialShapes

# In grid units a map spans -1..1, and no pixel of any map reaches further than 2 from its middle.
_FAR_OUTSIDE = 3.0


def why_not(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> str | None:
    """Needs at least one query, position and channel, because `grid_sample` refuses empty axes."""
    if 0 in (value.numel(), locations.numel()):
        return "grid_sample refuses empty tensors"
    return None


def run(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """See `multi_scale_deformable_attention`; shapes are checked there."""
    accumulate = torch.promote_types(locations.dtype, torch.promote_types(value.dtype, torch.float32))
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    grid = (2 * locations.to(accumulate) - 1).nan_to_num(nan=_FAR_OUTSIDE).clamp(-_FAR_OUTSIDE, _FAR_OUTSIDE)
    grid = grid.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (levels, batch * heads, queries, points, 2)
    weight = weights.to(accumulate).permute(3, 0, 2, 1, 4).flatten(1, 2).unsqueeze(2)
    maps = value.to(accumulate).permute(0, 2, 3, 1).flatten(0, 1)  # (batch * heads, head_dim, positions)
    result = torch.zeros((), dtype=accumulate, device=value.device)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        level_map = maps[..., start : start + height * width].unflatten(-1, (height, width))
        start += height * width
        sampled = F.grid_sample(level_map, grid[level], "bilinear", "zeros", align_corners=False)
        result = result + (sampled * weight[level]).sum(-1)  # (batch * heads, head_dim, queries)
    return result.view(batch, heads, head_dim, queries).permute(0, 3, 1, 2).to(value.dtype)
