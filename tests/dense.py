"""A second model: one prediction for each cell of a small convolutional network. Nothing in the package knows it."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from deformable_detr.core.types import DetectorOutput, Predictions
from deformable_detr.models import ModelKind
from deformable_detr.models.interface import ClassRows
from deformable_detr.models.losses import Criterion

STRIDE = 8


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    num_classes: int = 3
    dim: int = 12
    dropout: float = 0.0

    pretrained_parts = ()
    free_settings = frozenset({"dropout"})
    downloads = ""

    def describe(self):
        return f"dense, {self.dim} channels"

    def with_classes(self, num_classes):
        return replace(self, num_classes=num_classes)

    def portable(self):
        return self


class Dense(nn.Module):
    parts = {"heads": ("class_head.", "box_head."), "backbone": ("backbone.",)}  # noqa: RUF012
    offsets = ()
    class_rows = ClassRows(by_class=("class_head.",))

    def __init__(self, config):
        super().__init__()
        channels = (3, config.dim, config.dim, config.dim)
        convolutions = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels)]
        self.backbone = nn.Sequential(
            *(layer for one in convolutions for layer in (one, nn.BatchNorm2d(one.out_channels), nn.ReLU()))
        )
        self.dropout = nn.Dropout(config.dropout)
        self.class_head = nn.Linear(config.dim, config.num_classes)
        self.box_head = nn.Linear(config.dim, 4)
        nn.init.constant_(self.class_head.bias, -4.0)

    @property
    def num_classes(self):
        return self.class_head.out_features

    def forward(self, images, padding_mask, targets=None):
        maps = self.backbone(images)
        height, width = maps.shape[2:]
        cells = self.dropout(maps.flatten(2).transpose(1, 2))
        x = (torch.arange(width).repeat(height) + 0.5) * STRIDE
        y = (torch.arange(height).repeat_interleave(width) + 0.5) * STRIDE
        image_wh = torch.stack([(~padding_mask[:, 0]).sum(1), (~padding_mask[:, :, 0]).sum(1)], dim=-1)
        centres = torch.stack([x, y], dim=-1)[None] / image_wh[:, None]
        start = torch.cat([centres, torch.full_like(centres, 0.2)], dim=-1).clamp(1e-3, 1 - 1e-3).logit()
        return DetectorOutput([Predictions(self.class_head(cells), (self.box_head(cells) + start).sigmoid())], None)

    def layers(self):
        return [self.class_head, self.box_head]

    def gathered_together(self):
        return [self.backbone]

    def make_criterion(self, settings):
        return Criterion(settings)


def build(config, *, load_backbone_weights=True):
    return Dense(config)


KIND = ModelKind(DenseConfig, Dense, build)
