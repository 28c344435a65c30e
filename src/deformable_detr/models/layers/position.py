"""Sine embeddings of the pixels of a padded map, and of boxes."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TEMPERATURE = 10_000.0
"""Ratio of the longest wavelength to the shortest, about, in the paper and for all boxes."""
OFFSET = -0.5
"""Shift of pixels in the paper: with it their centres are at half-integers."""


def _wave(
    angles: Float[Tensor, "*axes"], features: int, temperature: float = TEMPERATURE
) -> Float[Tensor, "*axes features"]:
    """Sine embedding of angles: sine at even features and cosine at odd ones; each pair shares a wavelength."""
    index = torch.arange(features, device=angles.device, dtype=torch.float32)
    wavelength = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)
    phase = angles[..., None] / wavelength
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def embed_pixels(
    padding_mask: Bool[Tensor, "batch height width"],
    dim: int,
    *,
    temperature: float = TEMPERATURE,
    offset: float = OFFSET,
) -> Float[Tensor, "batch height width dim"]:
    """Sine embedding of every pixel of a map: rows in the first half of the features, columns in the second.

    Angles run from 0 to 2 pi over the part that is image. In rows and columns that are all padding the angles are
    large, finite and without meaning.

    Args:
        padding_mask: True = padding.
        dim: number of features.
        temperature: ratio of the longest wavelength to the shortest, about.
        offset: shift of the pixels, which are counted from 1. With -0.5 their places are their centres, as in the
            official code of Deformable DETR; with 0 their far edges, as in DETR and DINO.
    """
    valid = (~padding_mask).float()
    rows, columns = valid.cumsum(1), valid.cumsum(2)
    rows = (rows + offset) / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
    columns = (columns + offset) / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    return torch.cat([_wave(rows, dim // 2, temperature), _wave(columns, dim // 2, temperature)], dim=-1)


def embed_boxes(boxes: Float[Tensor, "batch queries 4"], dim: int) -> Float[Tensor, "batch queries dim"]:
    """Sine embedding of boxes cxcywh in 0..1: a quarter of the `dim` features for each coordinate, in this order."""
    return _wave(boxes.float() * (2 * math.pi), dim // 4).flatten(-2)
