"""Tokens of one map: the coarsest of the backbone, projected, with an embedding of the positions (arXiv 2005.12872)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Memory
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.position import embed_pixels
from deformable_detr.models.layers.pyramid import resize_mask, valid_ratio

LARGEST_LEARNED = 50
"""Number of rows and of columns that have a learned embedding, as in the official code."""


class SinePosition(nn.Module):
    """Sine embedding of the pixels of a padded map, without parameters; the first row and column are at 1 (A.4).

    Args:
        dim: number of features, a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, padding_mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch height width dim"]:
        """Embedding of every pixel; padding_mask: True = padding."""
        return embed_pixels(padding_mask, self.dim, offset=0.0)


class LearnedPosition(nn.Module):
    """Learned embedding of the pixels of a map: of the column in the first half of the features, then of the row.

    Args:
        dim: number of features, even.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.columns = nn.Embedding(LARGEST_LEARNED, dim // 2)
        self.rows = nn.Embedding(LARGEST_LEARNED, dim // 2)
        nn.init.uniform_(self.columns.weight)
        nn.init.uniform_(self.rows.weight)

    def forward(self, padding_mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch height width dim"]:
        """Embedding of every pixel; of the padding mask, only the size counts.

        Raises:
            ConfigError: the map is larger than the learned embedding.
        """
        batch, height, width = padding_mask.shape
        if max(height, width) > LARGEST_LEARNED:
            raise ConfigError(
                f"learned positions are for maps of at most {LARGEST_LEARNED} x {LARGEST_LEARNED}, and this one has "
                f"{width} x {height}; use smaller images, or position=sine"
            )
        columns = self.columns.weight[:width].expand(height, width, -1)
        rows = self.rows.weight[:height, None].expand(height, width, -1)
        return torch.cat([columns, rows], dim=-1).expand(batch, -1, -1, -1)


class CoarsestMap(nn.Module):
    """Coarsest map of the backbone as tokens: projected to `dim` channels by one convolution, without a norm.

    Args:
        backbone: network whose last map is used.
        dim: channels of the tokens.
        position: embedding of the positions of a padded map.
    """

    def __init__(self, backbone: Backbone, dim: int, position: SinePosition | LearnedPosition) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Conv2d(backbone.num_channels[-1], dim, kernel_size=1)
        self.position = position

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], padding_mask: Bool[Tensor, "batch height width"]
    ) -> Memory:
        """Tokens of the map with their positions, padding and shape: the input of the encoder.

        Args:
            images: normalised images, padded at the right and at the bottom.
            padding_mask: True = padding; False in a rectangle at the top left of each image, which is not checked.
        """
        projected = self.projection(self.backbone(images)[-1])
        mask = resize_mask(padding_mask, projected)
        return Memory(
            tokens=projected.flatten(2).transpose(1, 2),
            position=self.position(mask).flatten(1, 2),
            padding_mask=mask.flatten(1),
            valid_ratios=valid_ratio(mask)[:, None],
            spatial_shapes=((projected.shape[2], projected.shape[3]),),
        )

    def gathered_together(self) -> list[nn.Module]:
        """Modules that sharded training gathers as units: the stages of the backbone, then the rest."""
        return [*self.backbone.stages(), self]
