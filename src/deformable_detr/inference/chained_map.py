"""Chained map: along which paths attention could carry pixels to a detection, through decoder and encoder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformable_detr.core.types import SpatialShapes
from deformable_detr.models.layers.recording import DeformableCall, DenseCall, Recording
from deformable_detr.ops import multi_scale_deformable_attention

# Half of what a layer gives out is taken to come through its residual connection (Abnar and Zuidema, ACL 2020).
_KEPT = 0.5
# The kernels are made for head dimensions that are multiples of this.
_CHANNELS = 8


class ChainedMap(NamedTuple):
    """Shares of each detection that attention carries back to the tokens, chained through all layers.

    The three parts of a detection add up to 1.
    """

    mass: Float[Tensor, "objects positions"]
    """Share of each position of the encoder's input, levels one after another."""
    outside: Float[Tensor, "objects"]
    """Share that went to points outside the maps, which count as zero."""
    residue: Float[Tensor, "objects"]
    """Share that stays in the queries as they entered the decoder: learned ones, or the proposals."""
    spatial_shapes: tuple[tuple[int, int], ...]
    """(height, width) of each level, finest first."""

    def pixels(self, size_hw: tuple[int, int]) -> Float[Tensor, "objects height width"]:
        """Map of pixels for each detection; each position's share lies evenly on its cell, so that sums stay.

        Args:
            size_hw: height and width of the map.
        """
        maps = self.mass.new_zeros(len(self.mass), *size_hw)
        counts = [height * width for height, width in self.spatial_shapes]
        for level, (height, width) in zip(self.mass.split(counts, dim=1), self.spatial_shapes, strict=True):
            rows, columns = _cells(height, size_hw[0]).to(level), _cells(width, size_hw[1]).to(level)
            maps += rows @ level.unflatten(1, (height, width)) @ columns.T
        return maps


def chained_map(record: Recording, queries: Int[Tensor, "objects"], spatial_shapes: SpatialShapes) -> ChainedMap:
    """Chained map of some queries of one image: attention rollout, in the form of vectors.

    From the last decoder layer to the first, half of a query's share goes along its cross-attention to the memory, and
    of the rest half along the self-attention to other queries. From the last encoder layer to the first, half of every
    token's share goes along its attention. Heads are averaged. What layers do beside attention is left out: this says
    along which paths information could flow, not what mattered, and a token has seen more of the image than its cell.

    Args:
        record: recording of one image.
        queries: queries to explain.
        spatial_shapes: (height, width) of each level of the memory.
    """
    across: Sequence[DeformableCall | DenseCall] = record.decoder or record.dense_decoder
    among_tokens: Sequence[DeformableCall | DenseCall] = record.encoder or record.dense_encoder
    count = across[0].query.shape[1]
    share = torch.nn.functional.one_hot(queries, count).to(across[0].query.dtype)
    mass = share.new_zeros(len(queries), sum(height * width for height, width in spatial_shapes))
    for call, among in zip(reversed(across), reversed(record.self_attention), strict=True):
        mass = mass + (1 - _KEPT) * carried_back(call, share)
        share = _KEPT * share
        share = _KEPT * share + (1 - _KEPT) * carried_back(among, share)
    for call in reversed(among_tokens):
        mass = _KEPT * mass + (1 - _KEPT) * carried_back(call, mass)
    residue = share.sum(1)
    return ChainedMap(mass, 1 - residue - mass.sum(1), residue, spatial_shapes)


def carried_back(
    call: DeformableCall | DenseCall, share: Float[Tensor, "objects queries"]
) -> Float[Tensor, "objects keys"]:
    """Shares of what was attended to: each query's share, divided along its attention weights, heads averaged.

    Args:
        call: recorded call, of one image.
        share: share of each query, for several objects.
    """
    rows = share.any(0).nonzero().squeeze(1)  # of many tokens, few have a share
    if isinstance(call, DeformableCall):
        locations, weights = call.sampling_points(rows)
        return carried_to_points(call, share[:, rows], locations[0], weights[0])
    return share[:, rows] @ call.weights(rows)[0].mean(0)


def carried_to_points(
    call: DeformableCall,
    share: Float[Tensor, "objects queries"],
    locations: Float[Tensor, "queries heads levels points 2"],
    weights: Float[Tensor, "queries heads levels points"],
) -> Float[Tensor, "objects positions"]:
    """Shares of the positions that sampling points read; what falls outside the maps or into padding is lost.

    This is the gradient of the operator with respect to its values.

    Args:
        call: recorded call, of one image, for its maps and heads.
        share: share of each query, for several objects.
        locations: sampling locations of the queries.
        weights: weights of the points.
    """
    heads, objects = call.module.num_heads, len(share)
    channels = -(-objects // _CHANNELS) * _CHANNELS  # each channel carries one object
    with torch.enable_grad():
        value = share.new_zeros(1, call.tokens.shape[1], heads, channels, requires_grad=True)
        sums = multi_scale_deformable_attention(value, call.spatial_shapes, locations[None], weights[None])
        given = share.new_zeros(1, share.shape[1], heads, channels)
        given[0, :, :, :objects] = share.T[:, None] / heads
        (carried,) = torch.autograd.grad(sums, value, given)
    found: Tensor = carried[0].sum(1).T[:objects]
    return found.masked_fill(call.padding_mask, 0.0)


def _cells(count: int, pixels: int) -> Tensor:
    """Matrix from cells along an axis to pixels along it: the share of each cell that lies in each pixel."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) * (count / pixels)
    cells = torch.arange(count, dtype=torch.float64)
    upper = torch.minimum(edges[1:, None], cells + 1)
    lower = torch.maximum(edges[:-1, None], cells)
    return (upper - lower).clamp_(min=0)
