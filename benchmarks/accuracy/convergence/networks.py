"""Networks of the comparison that are no models of the package: each differs from one of them in a single part.

`SigmoidDETR` is DETR with the classes and the loss of Deformable DETR: no class "no object", focal loss. It tells the
loss from the attention, as the row DETR-DC5+ of Deformable DETR's Table 1 does.

`OwnLevelAttention` is the encoder's attention without multi-scale attention (rows 2 and 3 of Table 2): every position
samples its own level alone. The weights are the same for all levels. The decoder stays as it is: a query belongs to no
level, so it must look at all of them to use more than one.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from deformable_detr.core.types import ClassScores, SpatialShapes
from deformable_detr.models import DeformableDETR, DeformableDETRConfig, DETRConfig, build, detr
from deformable_detr.models.detr import DETR
from deformable_detr.models.interface import ModelConfig
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.encoder import EncoderLayer
from deformable_detr.models.layers.initialisation import PRIOR_PROBABILITY, initialise_attention
from deformable_detr.models.losses import Criterion, CriterionConfig


class SigmoidDETR(DETR):
    """DETR with sigmoid scores and the criterion of Deformable DETR."""

    class_scores: ClassScores = "sigmoid"

    @property
    def num_classes(self) -> int:
        return self.decoder.class_head.out_features

    def make_criterion(self, settings: CriterionConfig) -> Criterion:  # type: ignore[override]
        return Criterion(settings)


class OwnLevelAttention(DeformableAttention):
    """Deformable attention in which the queries are the positions, and each samples the level that it lies on."""

    def __init__(self, dim: int, *, num_heads: int, num_points: int) -> None:
        super().__init__(dim, num_heads=num_heads, num_levels=1, num_points=num_points)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        padding_mask: Tensor,
        spatial_shapes: SpatialShapes,
    ) -> Tensor:
        sizes = [height * width for height, width in spatial_shapes]
        parts = zip(*(one.split(sizes, dim=1) for one in (query, reference, tokens, padding_mask)), strict=True)
        return torch.cat(
            [
                super(OwnLevelAttention, self).forward(
                    queries, references[:, :, level : level + 1], own, padding, spatial_shapes[level : level + 1]
                )
                for level, (queries, references, own, padding) in enumerate(parts)
            ],
            dim=1,
        )


def sigmoid_detr(config: ModelConfig) -> SigmoidDETR:
    """DETR for these settings, but with sigmoid scores; every class starts at the usual small probability."""
    assert isinstance(config, DETRConfig)
    plain = detr.build(config)
    head = nn.Linear(config.hidden_dim, config.num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    plain.decoder.class_head = head
    return SigmoidDETR(plain.features, plain.encoder, plain.queries, plain.decoder)


def own_levels(config: ModelConfig) -> DeformableDETR:
    """Deformable DETR for these settings, without multi-scale attention in the encoder."""
    assert isinstance(config, DeformableDETRConfig)
    model = build(config)
    assert isinstance(model, DeformableDETR)
    for layer in model.encoder.layers:
        attention = OwnLevelAttention(config.hidden_dim, num_heads=config.num_heads, num_points=config.encoder_points)
        initialise_attention(attention)
        cast(EncoderLayer, layer).self_attention = attention
    return model
