"""Feature pyramid: feature maps of the backbone to levels with equal channels, flattened to tokens (A.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.layers.position import OFFSET, TEMPERATURE, embed_pixels

_NORM_GROUPS = 32


class Pyramid(nn.Module):
    """Pyramid of levels: the backbone's maps projected to `dim` channels, and coarser levels from convolutions (A.2).

    Args:
        backbone: network that gives the maps. The first level beyond them is a strided convolution of the coarsest
            map, each further one of the level before.
        num_levels: number of levels, at least that of the maps.
        dim: channels of every level.
        per_image: run backbone and projections on each image without its padding. The paper runs them on the padded
            batch, where group norms and the borders of convolutions see the padding; the detections in an image then
            depend a little on the other images.
        temperature: temperature of the sine embedding of positions, see `embed_pixels`.
        offset: shift of the pixels in it, see `embed_pixels`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_levels: int,
        dim: int,
        per_image: bool,
        temperature: float = TEMPERATURE,
        offset: float = OFFSET,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.per_image = per_image
        self.temperature, self.offset = temperature, offset
        num_maps = len(backbone.num_channels)
        assert num_maps <= num_levels
        projections = [_projection(channels, dim, kernel=1) for channels in backbone.num_channels]
        for extra in range(num_levels - num_maps):
            channels = backbone.num_channels[-1] if extra == 0 else dim
            projections.append(_projection(channels, dim, kernel=3))
        self.projections = nn.ModuleList(projections)
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], padding_mask: Bool[Tensor, "batch height width"]
    ) -> Memory:
        """Tokens of all levels with their positions, padding and shapes: the input of the encoder.

        Args:
            images: normalised images, padded at the right and at the bottom.
            padding_mask: True = padding; False in a rectangle at the top left of each image, which is not checked.
        """
        # Maps and masks of each level, finest first.
        if self.per_image and bool(padding_mask.any()):
            levels, masks = self._project_each(images, padding_mask)
        else:
            levels = self._project(images)
            masks = [resize_mask(padding_mask, level) for level in levels]
        # Each level has a sine embedding of its own size and a learned vector that tells it from the other levels.
        position = self.positions(masks)
        return Memory(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
            position=torch.cat([level.flatten(1, 2) for level in position], dim=1),
            padding_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_ratios=torch.stack([valid_ratio(mask) for mask in masks], dim=1),
            spatial_shapes=tuple((level.shape[2], level.shape[3]) for level in levels),
        )

    def positions(self, masks: list[Bool[Tensor, "batch _ _"]]) -> list[Float[Tensor, "batch _ _ dim"]]:
        """Position embedding of each level, from its padding mask."""
        return [
            embed_pixels(mask, len(embedding), temperature=self.temperature, offset=self.offset) + embedding
            for mask, embedding in zip(masks, self.level_embed, strict=True)
        ]

    def gathered_together(self) -> list[nn.Module]:
        """Modules that sharded training gathers as units: the stages of the backbone, then the pyramid itself.

        Every unit must be called once per forward pass on every process, because the processes wait for each other.
        With `per_image` the stages are called once per image, so the pyramid is one unit then.
        """
        return [*([] if self.per_image else self.backbone.stages()), self]

    def _project(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)
        levels = [project(one) for project, one in zip(self.projections, maps, strict=False)]
        source = maps[-1]
        for project in self.projections[len(maps) :]:
            source = project(source)
            levels.append(source)
        return levels

    def _project_each(self, images: Tensor, padding_mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        heights = (~padding_mask[:, :, 0]).sum(1).tolist()
        widths = (~padding_mask[:, 0, :]).sum(1).tolist()
        each = [
            self._project(image[None, :, :height, :width])
            for image, height, width in zip(images, heights, widths, strict=True)
        ]
        levels, masks = [], []
        for maps in zip(*each, strict=True):
            height, width = max(one.shape[2] for one in maps), max(one.shape[3] for one in maps)
            levels.append(torch.cat([_pad(one, height, width, 0.0) for one in maps]))
            masks.append(torch.cat([_pad(_no_padding(one), height, width, True) for one in maps]))
        return levels, masks


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes a level of one pixel, where a group may hold a single value; PyTorch's refuses it."""

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels _ _"]:
        """Normalised features."""
        return torch.group_norm(features, self.num_groups, self.weight, self.bias, self.eps)


def _projection(channels: int, dim: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, dim, kernel, stride=2, padding=1) if kernel == 3 else nn.Conv2d(channels, dim, 1)
    return nn.Sequential(convolution, GroupNorm(_NORM_GROUPS, dim))


def _pad(one: Tensor, height: int, width: int, fill: float | bool) -> Tensor:
    return F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2]), value=fill)


def _no_padding(level: Tensor) -> Tensor:
    return level.new_zeros((1, *level.shape[2:]), dtype=torch.bool)


def resize_mask(
    padding_mask: Bool[Tensor, "batch height width"], level: Float[Tensor, "batch dim _ _"]
) -> Bool[Tensor, "batch _ _"]:
    """Padding mask of a map: that of the images at the nearest pixel; True = padding."""
    return F.interpolate(padding_mask[:, None].float(), size=level.shape[2:])[:, 0].bool()


def valid_ratio(mask: Bool[Tensor, "batch height width"]) -> Float[Tensor, "batch 2"]:
    """Share of the map that is image, (w, h) in 0..1, read along its first row and column."""
    width = (~mask[:, 0, :]).float().mean(1)
    height = (~mask[:, :, 0]).float().mean(1)
    return torch.stack([width, height], dim=-1)
