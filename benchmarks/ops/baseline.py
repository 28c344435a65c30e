"""Baseline of the operator: one `grid_sample` for each level, as projects without a kernel write it.

Nothing of the library is used here, so that its own grid_sample backend is a contender like the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Sizes


def sample(value: Tensor, spatial_shapes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Split, flatten, sample each level, stack, weigh, sum.

    Values of a shorter type are sampled in float32, as autocast does with `grid_sample`, and the result is rounded.
    """
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    levels = value.to(locations.dtype).split([height * width for height, width in spatial_shapes], dim=1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (batch * heads, queries, levels, points, 2)
    sampled = []
    for number, (level, (height, width)) in enumerate(zip(levels, spatial_shapes, strict=True)):
        picture = level.flatten(2).transpose(1, 2).reshape(batch * heads, head_dim, height, width)
        sampled.append(
            F.grid_sample(picture, grid[:, :, number], mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    summed = (torch.stack(sampled, dim=-2).flatten(-2) * share).sum(-1)  # (batch * heads, head_dim, queries)
    return summed.view(batch, heads, head_dim, queries).permute(0, 3, 1, 2).contiguous().to(value.dtype)


def attend(value: Tensor, spatial_shapes: Sizes, reference: Tensor, projection: Tensor) -> Tensor:
    """Softmax and location arithmetic written out, then `sample`."""
    batch, queries, levels, coordinates = reference.shape
    heads = value.shape[2]
    points = projection.shape[2] // (3 * heads * levels)
    offsets, logits = projection.split([2 * heads * levels * points, heads * levels * points], dim=-1)
    offsets = offsets.view(batch, queries, heads, levels, points, 2)
    weights = logits.view(batch, queries, heads, levels * points).softmax(-1)
    around = reference[:, :, None, :, None]
    if coordinates == 2:
        size_wh = torch.tensor(
            [[width, height] for height, width in spatial_shapes], dtype=reference.dtype, device=reference.device
        )
        locations = around + offsets / size_wh[:, None]
    else:
        locations = around[..., :2] + offsets / points * around[..., 2:] * 0.5
    return sample(value, spatial_shapes, locations, weights.view(batch, queries, heads, levels, points))
