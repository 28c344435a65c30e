"""Deformable DETR of the library transformers, built to equal a model of ours."""

from typing import Any

from torch import nn

from deformable_detr.models import DeformableDETRConfig


def peer(config: DeformableDETRConfig, **settings: Any) -> nn.Module:
    """Random weights; nothing is downloaded.

    Args:
        config: of the model of ours it shall equal.
        settings: more of `DeformableDetrConfig`, e.g. `auxiliary_loss`, or `backbone_config` for another backbone
            than timm's.
    """
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    if "backbone_config" not in settings:
        settings["backbone"] = config.backbone.split(".")[0]
    return DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            num_labels=config.num_classes,
            num_queries=config.num_queries,
            two_stage_num_proposals=config.num_queries,
            num_feature_levels=config.num_levels,
            dilation=config.dilation,
            d_model=config.hidden_dim,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_n_points=config.encoder_points,
            decoder_n_points=config.decoder_points,
            encoder_ffn_dim=config.ffn_dim,
            decoder_ffn_dim=config.ffn_dim,
            dropout=config.dropout,
            attention_dropout=config.dropout,
            with_box_refine=config.variant != "base",
            two_stage=config.variant == "two_stage",
            **settings,
        )
    )
