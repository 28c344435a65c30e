"""Every setting of theirs that shapes the network is read or refused by name."""

from dataclasses import replace

import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.huggingface.config_file import category_ids_from, classes_from
from deformable_detr.weights.huggingface.model_config import model_from, model_settings

KIND = {"model_type": "deformable_detr"}
LABELS = {str(number): f"LABEL_{number}" for number in range(91)}
# What version 4 wrote for the published base model, without what is at its default.
PUBLISHED = KIND | {
    "architectures": ["DeformableDetrForObjectDetection"],
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "attention_dropout": 0.0,
    "auxiliary_loss": False,
    "backbone": "resnet50",
    "bbox_cost": 5,
    "bbox_loss_coefficient": 5,
    "class_cost": 1,
    "d_model": 256,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 1024,
    "decoder_layers": 6,
    "decoder_n_points": 4,
    "dice_loss_coefficient": 1,
    "dilation": False,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 1024,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 6,
    "encoder_n_points": 4,
    "eos_coefficient": 0.1,
    "focal_alpha": 0.25,
    "giou_cost": 2,
    "giou_loss_coefficient": 2,
    "id2label": LABELS | {"0": "N/A", "12": "N/A"},
    "init_std": 0.02,
    "init_xavier_std": 1.0,
    "is_encoder_decoder": True,
    "label2id": {"N/A": 83},
    "mask_loss_coefficient": 1,
    "max_position_embeddings": 1024,
    "num_feature_levels": 4,
    "num_queries": 300,
    "position_embedding_type": "sine",
    "return_intermediate": True,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "two_stage": False,
    "two_stage_num_proposals": 300,
    "with_box_refine": False,
}
PAPER = DeformableDETRConfig(backbone="resnet50")
TIMM = {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [2, 3, 4]}
NATIVE = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PAPER),
        ({"num_feature_levels": 1}, replace(PAPER, num_levels=1)),
        ({"num_feature_levels": 1, "dilation": True}, replace(PAPER, num_levels=1, dilation=True)),
        ({"with_box_refine": True}, replace(PAPER, variant="refine")),
        (
            {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 77},
            replace(PAPER, variant="two_stage", num_queries=77),
        ),
        ({"num_queries": 99, "two_stage_num_proposals": 77}, replace(PAPER, num_queries=99)),
        ({"decoder_n_points": 3, "encoder_n_points": 2}, replace(PAPER, decoder_points=3, encoder_points=2)),
        ({"use_timm_backbone": True, "backbone": "resnet101"}, replace(PAPER, backbone="resnet101")),
        (
            {"backbone_kwargs": {"out_indices": [2, 3, 4], "in_chans": 3, "output_stride": 16}, "dilation": True},
            replace(PAPER, dilation=True),
        ),
        ({"backbone": None, "backbone_config": TIMM}, PAPER),
        ({"backbone_config": TIMM | {"out_indices": [-1]}, "num_feature_levels": 1}, replace(PAPER, num_levels=1)),
        ({"use_timm_backbone": False, "backbone_config": NATIVE}, PAPER),
        ({"use_timm_backbone": False, "num_feature_levels": 1}, replace(PAPER, num_levels=1)),
        (
            {"backbone_config": NATIVE | {"depths": [3, 4, 23, 3], "out_indices": [2, 3, 4]}},
            replace(PAPER, backbone="resnet101"),
        ),
    ],
)
def test_settings_of_all_versions(settings, expected):
    assert model_from(PUBLISHED | settings) == (expected, [])


def test_defaults_are_theirs():
    assert model_from(KIND) == (replace(PAPER, num_classes=2), [])
    assert classes_from(KIND) == ("LABEL_0", "LABEL_1")
    assert model_from(KIND | {"num_labels": 5, "hidden_size": 64, "num_attention_heads": 8})[0].hidden_dim == 64


def test_channels_of_one_name_get_their_numbers():
    labels = {str(number): "thing" for number in range(3)} | {"3": "N/A", "4": "", "5": "thing (1)"}
    expected = ("thing", "thing (1) (1)", "thing (2)", "unused-3", "unused-4", "thing (1)")
    assert classes_from(KIND | {"id2label": labels}) == expected
    many = classes_from(KIND | {"id2label": {str(number): "thing" for number in range(20_000)}})
    assert len(set(many)) == 20_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": "detr"}, "of type 'detr'"),
        ({"architectures": ["DeformableDetrModel"]}, "DeformableDetrModel, which has no class and box heads"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only 'relu'"),
        ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
        ({"num_channels": 4}, "num_channels is 4"),
        ({"decoder_attention_heads": 4}, "encoder_attention_heads is 8 and decoder_attention_heads is 4"),
        ({"decoder_ffn_dim": 2048}, "encoder_ffn_dim is 1024 and decoder_ffn_dim is 2048"),
        ({"two_stage": True}, "two stages need refinement"),
        ({"d_model": 100}, "hidden_dim is 100"),
        ({"encoder_layers": "six"}, "encoder_layers is 'six'"),
        ({"num_feature_levels": 2}, r"gives maps \[2, 3, 4\] for num_feature_levels 2; here it would give \[3, 4\]"),
        ({"use_timm_backbone": False}, r"gives maps \[4\] for num_feature_levels 4"),
        ({"backbone": "resnet5000"}, "timm knows no backbone 'resnet5000'"),
        ({"backbone": "test_efficientnet"}, "transformers puts its own batch norm"),
        ({"backbone_kwargs": {"norm_layer": "x"}}, "backbone_kwargs has norm_layer"),
        ({"backbone_config": {"model_type": "swin"}}, "of type 'swin'"),
        ({"backbone_config": TIMM | {"output_stride": 8}}, "output_stride is 8"),
        ({"backbone_config": TIMM | {"num_channels": 1}}, "images of 1 channels"),
        ({"backbone_config": TIMM | {"output_stride": 16}}, "dilation is False, but the backbone's own .* say True"),
        ({"backbone_config": NATIVE, "dilation": True}, "dilation is True, but"),
        ({"backbone_config": NATIVE | {"depths": [1, 1, 1, 1]}}, "timm has no name for"),
        ({"backbone_config": NATIVE | {"layer_type": "basic", "depths": [2, 2, 2, 2]}}, "timm has no name for"),
        ({"backbone_config": NATIVE | {"downsample_in_bottleneck": True}}, "downsample_in_bottleneck is True"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "id2label has 2 names, but none for channel 1"),
        ({"id2label": {"0": 7}}, "must give each channel's number a name"),
        ({"deformable_detr": {"frozen_stages": "two"}}, "frozen_stages is 'two'"),
        ({"deformable_detr": ["frozen_stages"]}, r"deformable_detr is \['frozen_stages'\], which it cannot be"),
        ({"architectures": [3]}, r"architectures is \[3\], which it cannot be in a config\.json"),
        ({"architectures": "DeformableDetrForObjectDetection"}, "architectures is 'Deform.*', which it cannot be"),
        ({"id2label": ["cat"]}, r"id2label is \['cat'\], which it cannot be"),
        ({"id2label": None, "num_labels": "3"}, "num_labels is '3', which it cannot be"),
        ({"id2label": None, "num_labels": 10**9}, "num_classes is 1000000000; it can be at most 100000"),
        ({"id2label": None, "num_labels": 0}, "num_classes is 0; it must be at least 1"),
        ({"two_stage": "yes"}, "two_stage is 'yes', which it cannot be"),
        ({"backbone": ["resnet50"]}, "backbone is "),
        ({"backbone": "hf-hub:timm/resnet50"}, "backbone is 'hf-hub:timm/resnet50'; it must be a name that timm"),
        ({"backbone_config": "resnet"}, "backbone_config is 'resnet', which it cannot be"),
        ({"backbone_config": TIMM | {"out_indices": "all"}}, r"backbone_config\.out_indices is 'all', which it cannot"),
        ({"backbone_config": TIMM | {"backbone": "local-dir:."}}, "backbone is 'local-dir:.'; it must be a name"),
        ({"backbone_config": NATIVE | {"depths": [[3], 4]}}, r"backbone_config\.depths is \[\[3\], 4\], which it"),
        ({"backbone_config": NATIVE | {"layer_type": ["basic"]}}, r"backbone_config\.layer_type is"),
        ({"backbone_config": NATIVE | {"hidden_sizes": 7}}, r"backbone_config\.hidden_sizes is 7"),
        ({"backbone_kwargs": [1]}, r"backbone_kwargs is \[1\], which it cannot be"),
        ({"num_queries": 10**9}, "num_queries is 1000000000; it can be at most 20000"),
        ({"activation_function": ["relu"] * 10**5}, r"activation_function is \['relu', .*; only 'relu' can be built"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_named(settings, message):
    with pytest.raises(CheckpointError, match=message):
        model_from(PUBLISHED | settings)


def test_unknown_settings_are_listed():
    assert model_from(PUBLISHED | {"zoom": 1, "norm_type": "rms"})[1] == ["norm_type", "zoom"]


def test_names_are_made_distinct():
    names = ["N/A", "cat", "", "cat", "cat (3)", "unused-0"]
    classes = classes_from({"id2label": dict(enumerate(names))})
    assert len(set(classes)) == 6
    assert classes[1] == "cat"
    assert classes[2] == "unused-2"
    assert classes[5].startswith("unused-0")


def test_category_ids_are_believed_only_with_the_classes_they_came_with():
    own = {"deformable_detr": {"classes": ["cat", "dog"], "category_ids": [17, 18]}}
    assert category_ids_from(own, ("cat", "dog")) == (17, 18)
    assert category_ids_from(own, ("cat", "cow")) == (0, 1)
    assert category_ids_from({}, ("cat", "dog")) == (0, 1)


def test_every_setting_of_ours_comes_back():
    ours = DeformableDETRConfig(
        num_classes=2, variant="two_stage", backbone="resnet18", backbone_weights="mine.pth", frozen_stages=1,
        frozen_batch_norm=False, dilation=False, num_levels=3, hidden_dim=96, num_heads=3, encoder_layers=1,
        decoder_layers=2, encoder_points=3, decoder_points=5, ffn_dim=77, dropout=0.25, num_queries=13,
    )  # fmt: skip
    theirs = model_settings(ours, ("cat", "dog"), (17, 18))
    assert model_from(theirs) == (ours, [])
    assert theirs["tie_word_embeddings"]
    assert not model_settings(replace(ours, variant="refine"), ("cat", "dog"), (17, 18))["tie_word_embeddings"]


@pytest.mark.parametrize(
    "change",
    [
        {"features": "per_image"},
        {"proposals": "valid"},
        {"proposals": "distinct"},
        {"deformable_stages": 1},
    ],
)
def test_what_they_cannot_do_is_refused(change):
    with pytest.raises(CheckpointError, match=next(iter(change))):
        model_settings(replace(PAPER, variant="two_stage", **change), (), ())
