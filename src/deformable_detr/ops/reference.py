"""Reference backend: the definition in plain PyTorch, four gathers and a sum.

It is slow, and differentiable twice. Exporters that mishandle GridSample use it, too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of locations, weights and sums: float64 for values in float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_accumulation_dtype(value: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    """Locations and weights, or references and projections, in the type of sums over `value`."""
    exact = accumulation_dtype(value.dtype)
    if second.dtype == exact and third.dtype == exact:  # ten times faster than a conversion that changes nothing
        return second, third
    return second.to(exact), third.to(exact)


def sample(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
    """Weighted sums of bilinear samples at given locations (section 4.1, equation 3).

    Args:
        value: features `(batch, positions, heads, head_dim)`.
        locations: `(batch, queries, heads, samples, 2)`, (x, y) in 0..1 of each padded map.
        weights: `(batch, queries, heads, samples)`.
        shapes: height and width of each level, one after another.
        points: number of samples of each level.

    Returns:
        The sums `(batch, queries, heads, head_dim)`, in the type of `value`.
    """
    accumulate = accumulation_dtype(value.dtype)
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    result = torch.zeros(batch, queries, heads, head_dim, dtype=accumulate, device=value.device)
    start = first = 0
    for height, width, count in zip(shapes[::2], shapes[1::2], points, strict=True):
        level_value = value[:, start : start + height * width].to(accumulate)
        location = locations[:, :, :, first : first + count].to(accumulate)
        weight = weights[:, :, :, first : first + count].to(accumulate)
        start, first = start + height * width, first + count
        # From 0..1 of the map to pixels. Pixel centres lie at half-integers, so index 0 is at 0.5.
        x, y = location[..., 0] * width - 0.5, location[..., 1] * height - 0.5
        # A sample without any pixel of the map gets weight zero and a harmless place: NaN would spoil the gradients.
        touches_map = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN too
        x, y = x.where(touches_map, 0.0), y.where(touches_map, 0.0)
        weight = weight.where(touches_map, 0.0)
        left, top = x.detach().floor(), y.detach().floor()
        # At a pixel's centre the function has a kink; this form takes the slope towards the right and the bottom.
        beyond_x, beyond_y = x - left, y - top
        # The four pixels around each sample. Those off the map read position 0 and count as zero.
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            corner_x, corner_y = left + right, top + below
            inside = (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
            index = (corner_y * width + corner_x).where(inside, 0.0).long()  # (batch, queries, heads, points)
            share = (beyond_x if right else 1 - beyond_x) * (beyond_y if below else 1 - beyond_y)
            corner = _gather(level_value, index)  # (batch, queries, heads, points, head_dim)
            result = result + ((weight * share).where(inside, 0.0)[..., None] * corner).sum(dim=3)
    return result.to(value.dtype)


def attend(
    value: Tensor, reference: Tensor, projection: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> Tensor:
    """Weighted sums of bilinear samples for references and a projection; see `locations_and_weights`."""
    locations, weights = locations_and_weights(value, reference, projection, shapes, points)
    return sample(value, locations, weights, shapes, points)


def locations_and_weights(
    value: Tensor, reference: Tensor, projection: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Sampling locations and attention weights from one projection of each query (section 4.1).

    The projection holds the offsets of every head, level and point as (x, y), then the logits in the same order.
    Offsets count pixels of their level around a reference point, or half-boxes / points around a reference box.
    The softmax runs over all samples of a head.

    Returns:
        Locations `(batch, queries, heads, samples, 2)` and weights `(batch, queries, heads, samples)`, in the type
        of sums over `value`.
    """
    accumulate = accumulation_dtype(value.dtype)
    reference, projection = reference.to(accumulate), projection.to(accumulate)
    heads, samples = value.shape[2], sum(points)
    offsets, logits = projection.split([heads * samples * 2, heads * samples], dim=-1)
    offsets = offsets.unflatten(-1, (heads, samples, 2))
    locations = []
    for level, (offset, count) in enumerate(zip(offsets.split(list(points), dim=3), points, strict=True)):
        around = reference[:, :, None, level, None]  # (batch, queries, 1, 1, 2 or 4)
        if reference.shape[-1] == 2:
            size_wh = torch.stack([offset.new_full((), shapes[2 * level + 1]), offset.new_full((), shapes[2 * level])])
            locations.append(around + offset / size_wh)
        else:
            locations.append(around[..., :2] + offset * around[..., 2:] * (0.5 / max(count, 1)))
    weights = logits.unflatten(-1, (heads, samples)).softmax(-1)
    return torch.cat(locations, dim=3), weights


def _gather(level_value: Tensor, index: Tensor) -> Tensor:
    batch, queries, heads, points = index.shape
    rows = index.transpose(1, 2).reshape(batch, heads, queries * points, 1)
    rows = rows.expand(-1, -1, -1, level_value.shape[-1])
    picked = level_value.transpose(1, 2).gather(2, rows)  # (batch, heads, queries * points, head_dim)
    return picked.unflatten(2, (queries, points)).transpose(1, 2)
