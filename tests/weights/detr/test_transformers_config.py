"""Every setting of theirs that shapes the network is read or refused by name."""

from dataclasses import fields, replace

import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DETRConfig
from deformable_detr.weights.detr.transformers_config import detr_from, detr_settings

KIND = {"model_type": "detr"}
LABELS = {str(number): f"LABEL_{number}" for number in range(91)}
# What version 4 wrote for the published model, without what is at its default.
PUBLISHED = KIND | {
    "architectures": ["DetrForObjectDetection"],
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "attention_dropout": 0.0,
    "auxiliary_loss": False,
    "backbone": "resnet50",
    "bbox_cost": 5,
    "class_cost": 1,
    "classifier_dropout": 0.0,
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 6,
    "dilation": False,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layers": 6,
    "eos_coefficient": 0.1,
    "id2label": LABELS,
    "is_encoder_decoder": True,
    "max_position_embeddings": 1024,
    "num_hidden_layers": 6,
    "num_queries": 100,
    "position_embedding_type": "sine",
    "scale_embedding": False,
    "transformers_version": "4.26.0",
}
PAPER = DETRConfig(backbone="resnet50")
NATIVE = {"model_type": "resnet", "out_features": ["stage4"]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PAPER),
        ({"dilation": True}, replace(PAPER, dilation=True)),
        ({"backbone": "resnet101"}, replace(PAPER, backbone="resnet101")),
        # The revisions without timm, and what version 5 writes.
        ({"backbone": None, "use_timm_backbone": False, "backbone_config": NATIVE}, PAPER),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [1, 2, 3, 4]}},
            PAPER,
        ),
        (
            {
                "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "output_stride": 16},
                "dilation": True,
            },
            replace(PAPER, dilation=True),
        ),
        ({"position_embedding_type": "learned"}, replace(PAPER, position="learned")),
        ({"encoder_layers": 3, "num_queries": 17}, replace(PAPER, encoder_layers=3, num_queries=17)),
    ],
)
def test_settings_of_all_versions(settings, expected):
    assert detr_from(PUBLISHED | settings) == (expected, [])


def test_defaults_are_theirs():
    assert detr_from(KIND) == (replace(PAPER, num_classes=2), [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "deformable_detr"}, "of type 'deformable_detr', not 'detr'"),
        ({"architectures": ["DetrForSegmentation"]}, "it holds DetrForSegmentation, .*; not DetrForObjectDetection"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only 'relu'"),
        ({"position_embedding_type": "sine3d"}, "position is 'sine3d'"),
        ({"decoder_attention_heads": 4}, "encoder_attention_heads is 8 and decoder_attention_heads is 4"),
        ({"d_model": 100}, "hidden_dim 100 cannot be split over num_heads 8"),
        (
            {"backbone_config": NATIVE | {"out_features": ["stage3"]}},
            r"gives maps \[3\]; DETR takes its last map, which",
        ),
        ({"backbone": "test_efficientnet"}, "transformers puts its own batch norm"),
        ({"backbone": "resnet5000"}, "timm knows no backbone 'resnet5000'"),
        ({"backbone_config": NATIVE, "dilation": True}, "dilation is True, but"),
        ({"num_queries": "many"}, "num_queries is 'many'"),
    ],
)
def test_what_cannot_be_built_is_named(settings, message):
    with pytest.raises(CheckpointError, match=message):
        detr_from(PUBLISHED | settings)


def test_unknown_settings_are_listed():
    assert detr_from(PUBLISHED | {"zoom": 1, "norm_type": "rms"})[1] == ["norm_type", "zoom"]


def test_auxiliary_losses_of_theirs_are_left_aside_and_named():
    """Their decoder computes another network with them."""
    assert detr_from(PUBLISHED | {"auxiliary_loss": True, "zoom": 1}) == (PAPER, ["auxiliary_loss", "zoom"])
    assert detr_from(PUBLISHED | {"auxiliary_loss": False})[1] == []


def test_every_setting_of_ours_comes_back():
    ours = DETRConfig(
        num_classes=2, backbone="resnet18", backbone_weights="mine.pth", frozen_stages=1, frozen_batch_norm=False,
        dilation=True, position="learned", hidden_dim=96, num_heads=3, encoder_layers=1, decoder_layers=2, ffn_dim=77,
        dropout=0.25, num_queries=13, auxiliary_losses=False,
    )  # fmt: skip
    standard = DETRConfig()
    same = {field.name for field in fields(ours) if getattr(ours, field.name) == getattr(standard, field.name)}
    assert same == {"pre_norm"}  # which transformers has not, see below
    theirs = detr_settings(ours, ("cat", "dog"), (17, 18))
    assert detr_from(theirs) == (ours, [])
    assert detr_from({**theirs, "deformable_detr": {}})[0] == replace(
        ours,
        backbone_weights=standard.backbone_weights,
        frozen_stages=standard.frozen_stages,
        frozen_batch_norm=standard.frozen_batch_norm,
        auxiliary_losses=standard.auxiliary_losses,
    )  # as files without an entry of ours
    assert theirs["auxiliary_loss"] is False
    with pytest.raises(CheckpointError, match="pre_norm is true; the models of transformers have their norms after"):
        detr_settings(replace(ours, pre_norm=True), ("cat", "dog"), (17, 18))
