"""Tensors of a case, in both forms of the operator: locations and weights, or a reference and a projection."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import OperatorCase, Sizes

Locations = Literal["realistic", "uniform"]
Form = Literal["sample", "attend"]
LOCATIONS: tuple[Locations, ...] = ("realistic", "uniform")
FORMS: tuple[Form, ...] = ("sample", "attend")

_ENCODER_SPREAD_PX = 3.0
_DECODER_SPREAD_PX = 2.0
_BOX_SIDES = (0.05, 0.5)


class Problem(NamedTuple):
    """Both forms ask for the same samples: locations and weights are made of reference and projection in float64."""

    value: Tensor
    """(batch, positions, heads, head_dim), in the type under test."""
    reference: Tensor
    """(batch, queries, levels, 2 or 4)."""
    projection: Tensor
    """(batch, queries, heads * levels * points * 3): offsets, then logits."""
    locations: Tensor
    """(batch, queries, heads, levels, points, 2)."""
    weights: Tensor
    """(batch, queries, heads, levels, points)."""
    towards: Tensor
    """Gradient of the result, in the type of the values."""
    spatial_shapes: Sizes

    def inputs(self, form: Form) -> tuple[Tensor, Tensor, Tensor]:
        """What the operator takes in that form."""
        if form == "sample":
            return self.value, self.locations, self.weights
        return self.value, self.reference, self.projection


def make(case: OperatorCase, locations: Locations, batch: int, dtype: torch.dtype, device: str) -> Problem:
    """Always the same tensors for the same arguments, up to rounding to `dtype`.

    Realistic locations are, in an encoder, the pixel centres plus offsets of 3 pixels' deviation in every level; in a
    decoder, points spread from the middle of random boxes to their edges, plus 2 pixels' deviation. Uniform ones lie
    anywhere in the image.
    """
    generator = torch.Generator().manual_seed(0)
    levels, heads, points = len(case.spatial_shapes), case.heads, case.points
    value = torch.randn(batch, case.num_positions, heads, case.head_dim, generator=generator)
    size_wh = torch.tensor([[width, height] for height, width in case.spatial_shapes], dtype=torch.float32)
    noise = torch.randn(batch, case.num_queries, heads, levels, points, 2, generator=generator)
    if locations == "uniform":
        reference = torch.full((batch, case.num_queries, levels, 2), 0.5)
        anywhere = torch.rand(noise.shape, generator=generator) - 0.5
        offsets = anywhere * size_wh[:, None]
    elif case.queries is None:
        reference = _pixel_centres(case.spatial_shapes).expand(batch, levels, -1, 2).transpose(1, 2).contiguous()
        offsets = _ENCODER_SPREAD_PX * noise
    else:
        reference = _boxes(batch, case.num_queries, generator)[:, :, None].expand(-1, -1, levels, -1).contiguous()
        # Around a box, an offset of `points` reaches its edge.
        px_in_offsets = 2 * points / (size_wh * reference[..., 2:])
        offsets = _ring(heads, points) + _DECODER_SPREAD_PX * noise * px_in_offsets[:, :, None, :, None]
    logits = torch.randn(batch, case.num_queries, heads, levels, points, generator=generator)
    projection = torch.cat([offsets.flatten(2), logits.flatten(2)], dim=-1)
    towards = torch.randn(batch, case.num_queries, heads, case.head_dim, generator=generator)
    return Problem(
        value.to(dtype).to(device),
        reference.to(device),
        projection.to(device),
        _located(reference.double(), offsets.double(), size_wh.double()).float().to(device),
        logits.double().flatten(3).softmax(-1).view(logits.shape).float().to(device),
        towards.to(dtype).to(device),
        case.spatial_shapes,
    )


def pixel_coordinates(locations: Tensor, spatial_shapes: Sizes) -> Tensor:
    """(x, y) in pixels of each level, in float64; whole numbers are pixel centres."""
    size_wh = locations.new_tensor([[width, height] for height, width in spatial_shapes], dtype=torch.float64)
    return locations.double() * size_wh[:, None] - 0.5


def _located(reference: Tensor, offsets: Tensor, size_wh: Tensor) -> Tensor:
    around = reference[:, :, None, :, None]
    if reference.shape[-1] == 2:
        return around + offsets / size_wh[:, None]
    return around[..., :2] + offsets * around[..., 2:] * (0.5 / offsets.shape[4])


def _pixel_centres(spatial_shapes: Sizes) -> Tensor:
    levels = []
    for height, width in spatial_shapes:
        y, x = (torch.arange(size, dtype=torch.float32).add(0.5).div(size) for size in (height, width))
        levels.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1))
    return torch.cat(levels)


def _boxes(batch: int, queries: int, generator: torch.Generator) -> Tensor:
    low, high = _BOX_SIDES
    centre = torch.rand(batch, queries, 2, generator=generator)
    side = low + (high - low) * torch.rand(batch, queries, 2, generator=generator)
    return torch.cat([centre, side], dim=-1)


def _ring(heads: int, points: int) -> Tensor:
    """(heads, 1, points, 2): each head looks in a direction of its own, each point a step further."""
    angles = torch.arange(heads, dtype=torch.float32) * (2 * torch.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    steps = torch.arange(1, points + 1, dtype=torch.float32)
    return directions[:, None, None] * steps[:, None]
