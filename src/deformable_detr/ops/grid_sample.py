"""Backend of one `grid_sample` per level: for any device, differentiable, with nothing to compile."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.core.types import SpatialShapes
from deformable_detr.ops.reference import accumulation_dtype, locations_and_weights

# In grid units a map spans -1..1. A pixel counts up to one pixel from its centre, which is 2 on a map of one pixel.
_FAR_OUTSIDE = 3.0


def why_not(value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int) -> str | None:
    """Reason why `grid_sample` cannot run on such tensors, or None: it refuses empty axes."""
    if 0 in (value.numel(), num_queries, *num_points):
        return "grid_sample refuses empty tensors"
    return None


def sample(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
    """Weighted sums of bilinear samples at given locations; the arguments are those of `reference.sample`."""
    accumulate = accumulation_dtype(value.dtype)
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    # Locations become grid units; NaN and infinity go to a place outside, where they count as zero.
    grid = (2 * locations.to(accumulate) - 1).nan_to_num(nan=_FAR_OUTSIDE).clamp(-_FAR_OUTSIDE, _FAR_OUTSIDE)
    # `grid_sample` knows no heads, so that each head becomes an image of the batch.
    grid = grid.transpose(1, 2).flatten(0, 1)  # (batch * heads, queries, samples, 2)
    weight = weights.to(accumulate).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    maps = value.to(accumulate).permute(0, 2, 3, 1).flatten(0, 1)  # (batch * heads, head_dim, positions)
    result = torch.zeros((), dtype=accumulate, device=value.device)
    start = first = 0
    for height, width, count in zip(shapes[::2], shapes[1::2], points, strict=True):
        level_map = maps[..., start : start + height * width].unflatten(-1, (height, width))
        level = slice(first, first + count)
        start, first = start + height * width, first + count
        sampled = F.grid_sample(level_map, grid[:, :, level], "bilinear", "zeros", align_corners=False)
        result = result + (sampled * weight[..., level]).sum(-1)  # (batch * heads, head_dim, queries)
    return result.view(batch, heads, head_dim, queries).permute(0, 3, 1, 2).to(value.dtype)


def attend(
    value: Tensor, reference: Tensor, projection: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> Tensor:
    """Weighted sums of bilinear samples for references and a projection; see `reference.locations_and_weights`."""
    locations, weights = locations_and_weights(value, reference, projection, shapes, points)
    return sample(value, locations, weights, shapes, points)
