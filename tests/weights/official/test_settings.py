"""Settings from tensors without memory: only names and shapes matter."""

import functools
from dataclasses import replace

import pytest
import torch
import torchvision

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights.official.keys import to_official_keys
from deformable_detr.weights.official.settings import has_size_tensors, settings_of, to_args

# No two counts alike, none as published.
ODD = DeformableDETRConfig(
    num_classes=5,
    num_levels=3,
    hidden_dim=96,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=7,
    encoder_points=6,
    decoder_points=9,
    ffn_dim=40,
    num_queries=11,
    dropout=0.25,
    backbone="resnet101.tv_in1k",
)
CONFIGS = {
    "published": DeformableDETRConfig(),
    "odd": ODD,
    "refine": replace(ODD, variant="refine"),
    "two stage": replace(ODD, variant="two_stage", hidden_dim=256, num_queries=70),
    "single scale": replace(ODD, num_levels=1),
    "dc5": replace(ODD, num_levels=1, dilation=True),
    "no encoder": replace(ODD, encoder_layers=0, encoder_points=4),
}
TORCHVISION = [
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
]


@functools.cache
def official(config):
    """Not to be changed: the tests share it."""
    with torch.device("meta"):
        return to_official_keys(build(config, load_backbone_weights=False).state_dict(), config)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_come_back(name):
    config = CONFIGS[name]
    tensors = official(config)
    assert has_size_tensors(tensors)
    assert settings_of(tensors, to_args(config)) == (config, ())


def test_tensors_alone_tell_all_but_three_settings():
    config = replace(CONFIGS["two stage"], dilation=True, decoder_points=10)
    found, assumed = settings_of(official(config), None)
    assert assumed == ("num_heads", "num_queries", "dilation")
    # Eight heads of half the points have the shapes of four.
    expected = replace(config, num_heads=8, encoder_points=3, decoder_points=5)
    assert found == replace(expected, num_queries=300, dilation=False, dropout=0.1)
    # In one stage the queries are there to be counted.
    found, assumed = settings_of(official(DeformableDETRConfig(num_queries=70)), {})
    assert (found.num_queries, assumed) == (70, ("num_heads", "dilation"))


def test_heads_that_cannot_be():
    with pytest.raises(CheckpointError, match="its 108 attention weights cannot be those of 8 heads and 3 levels"):
        settings_of(official(replace(ODD, encoder_points=6, decoder_points=9, hidden_dim=64)), None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_queries": 100}, "its settings and its tensors disagree: num_queries is 100 and 300$"),
        (
            {"dim_feedforward": 2048, "dec_layers": 3},
            "disagree: decoder_layers is 3 and 6; ffn_dim is 2048 and 1024$",
        ),
        ({"enc_n_points": 8}, "disagree: encoder_points is 8 and 4$"),
        ({"nheads": 4}, "disagree: encoder_points is 4 and 8; decoder_points is 4 and 8$"),
        ({"two_stage": True}, "disagree: variant is 'two_stage' and 'base'$"),
        ({"with_box_refine": True}, "disagree: variant is 'refine' and 'base'$"),
        ({"backbone": "resnet101"}, "disagree: backbone is 'resnet101.tv_in1k' and 'resnet50.tv_in1k'$"),
        ({"hidden_dim": torch.ones(3)}, "no such model can be: setting hidden_dim is"),
        ({"nheads": 0}, "no such model can be: num_heads is 0"),
        ({"nheads": "8"}, "no such model can be: setting num_heads is '8'; it must be an integer"),
        ({"dilation": "no"}, "no such model can be: setting dilation is 'no'"),
        ({"dropout": 3}, "no such model can be: dropout is 3"),
    ],
)
def test_settings_that_cannot_be_of_these_tensors(args, message):
    config = DeformableDETRConfig()
    with pytest.raises(CheckpointError, match=message):
        settings_of(official(config), to_args(config) | args)


def test_tensors_that_cannot_be():
    tensors = official(DeformableDETRConfig())
    nothing = tensors | {"transformer.level_embed": torch.empty(0, 256, device="meta")}
    with pytest.raises(CheckpointError, match="no such model can be: num_levels is 0"):
        settings_of(nothing, None)
    shallow = {name: tensor for name, tensor in tensors.items() if "body.layer3.5" not in name}
    with pytest.raises(CheckpointError, match=r"has \(3, 4, 5, 3\) blocks, 64 channels wide; known are resnet50, "):
        settings_of(shallow, None)


def test_a_layer_number_beyond_counting_costs_nothing():
    """Layers are counted; a file that names layer 999999999 does not make us build so many."""
    tensors = dict(official(DeformableDETRConfig()))
    tensors["transformer.encoder.layers.999999999.norm1.bias"] = torch.empty(256, device="meta")
    assert settings_of(tensors, None).config.encoder_layers == 7


@pytest.mark.parametrize(
    "name",
    ["transformer.level_embed", "class_embed.0.bias", "query_embed.weight", "backbone.0.body.layer1.0.conv2.weight"],
)
def test_some_tensors_must_be_there(name):
    tensors = dict(official(DeformableDETRConfig()))
    with pytest.raises(CheckpointError, match=rf"no such model can be: {name} is \[\], not of \d axes"):
        settings_of(tensors | {name: torch.empty((), device="meta")}, None)
    del tensors[name]
    assert not has_size_tensors(tensors)


@pytest.mark.parametrize("name", TORCHVISION)
def test_backbones_are_torchvisions(name):
    config = DeformableDETRConfig(backbone=f"{name}.tv_in1k", encoder_layers=1, decoder_layers=1)
    tensors = official(config)
    assert settings_of(tensors, None).config.backbone == config.backbone
    start = "backbone.0.body."
    ours = {key.removeprefix(start): tensor.shape for key, tensor in tensors.items() if key.startswith(start)}
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    expected = {
        key: tensor.shape
        for key, tensor in theirs.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    assert ours == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet34.tv_in1k"}, "the official code has no backbone resnet34.tv_in1k; it has resnet50, "),
        ({"backbone": "convnext_tiny.fb_in1k"}, "has no backbone convnext_tiny"),
        ({"features": "per_image"}, "has no features='per_image', and would find something else"),
        ({"variant": "two_stage", "proposals": "valid"}, "has no proposals='valid'"),
        ({"num_levels": 2}, "has no num_levels=2"),
        ({"deformable_stages": 3}, "has no deformable convolutions, and deformable_stages is 3"),
        ({"variant": "two_stage", "hidden_dim": 288}, "no two-stage model of hidden_dim=288; it has 256 only"),
    ],
)
def test_models_without_official_form_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        to_args(replace(DeformableDETRConfig(), **changes))


def test_settings_of_training_alone_have_no_argument():
    """Whether tensors belong to them is looked up in the weights, see `deformable_config`."""
    plain = DeformableDETRConfig(variant="two_stage")
    for setting in ({"hybrid_queries": 9}, {"query_groups": 2}, {"denoising_queries": 10}):
        assert to_args(replace(plain, **setting)) == to_args(plain)


def test_any_weights_of_a_backbone_will_do():
    assert to_args(DeformableDETRConfig(backbone="resnet50.a1_in1k"))["backbone"] == "resnet50"
