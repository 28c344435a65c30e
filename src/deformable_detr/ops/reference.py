"""The definition: four gathers and a sum. Slow and plain; also the path for exporters that mishandle GridSample."""

import torch
from torch import Tensor

from deformable_detr.types import SpatialShapes


def why_not(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> str | None:
    """Runs on everything."""
    return None


def run(value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """See `multi_scale_deformable_attention`; shapes are checked there."""
    accumulate = torch.promote_types(locations.dtype, torch.promote_types(value.dtype, torch.float32))
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    result = torch.zeros(batch, queries, heads, head_dim, dtype=accumulate, device=value.device)
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        level_value = value[:, start : start + height * width].to(accumulate)
        start += height * width
        # Pixel centres lie at half-integers of the unit square scaled to the map.
        x = locations[:, :, :, level, :, 0].to(accumulate) * width - 0.5
        y = locations[:, :, :, level, :, 1].to(accumulate) * height - 0.5
        touches_map = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN too
        x, y = x.where(touches_map, 0.0), y.where(touches_map, 0.0)
        weight = weights[:, :, :, level].to(accumulate).where(touches_map, 0.0)
        left, top = x.detach().floor(), y.detach().floor()
        for corner_x, corner_y in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            inside = (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
            index = (corner_y * width + corner_x).where(inside, 0.0).long()  # (batch, queries, heads, points)
            share = (1 - (x - corner_x).abs()) * (1 - (y - corner_y).abs())
            corner = _gather(level_value, index)  # (batch, queries, heads, points, head_dim)
            result = result + ((weight * share).where(inside, 0.0)[..., None] * corner).sum(dim=3)
    return result.to(value.dtype)


def _gather(level_value: Tensor, index: Tensor) -> Tensor:
    batch, queries, heads, points = index.shape
    rows = index.transpose(1, 2).reshape(batch, heads, queries * points, 1)
    rows = rows.expand(-1, -1, -1, level_value.shape[-1])
    picked = level_value.transpose(1, 2).gather(2, rows)  # (batch, heads, queries * points, head_dim)
    return picked.unflatten(2, (queries, points)).transpose(1, 2)
