"""Settings from tensors without memory: only names and shapes matter."""

import functools
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DETRConfig, build_detr
from deformable_detr.weights.detr.keys import to_official_detr_keys
from deformable_detr.weights.detr.settings import detr_settings_of, looks_like_detr, to_detr_args

# No two counts alike, none as published.
ODD = DETRConfig(
    num_classes=5,
    hidden_dim=96,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=7,
    ffn_dim=40,
    num_queries=11,
    dropout=0.25,
    backbone="resnet34.tv_in1k",
    auxiliary_losses=False,
)
CONFIGS = {
    "published": DETRConfig(),
    "odd": ODD,
    "dc5": DETRConfig(dilation=True, backbone="resnet101.tv_in1k"),
    "pre-norm": replace(ODD, pre_norm=True),
    "learned": replace(ODD, position="learned"),
    "no encoder": replace(ODD, encoder_layers=0),
    "no encoder, but its norm": replace(ODD, encoder_layers=0, pre_norm=True),
}


@functools.cache
def official(config):
    """Not to be changed: the tests share it."""
    with torch.device("meta"):
        return to_official_detr_keys(build_detr(config, load_backbone_weights=False).state_dict())


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_come_back(name):
    config = CONFIGS[name]
    found = detr_settings_of(official(config), to_detr_args(config), "x.pth")
    assert found == (config, ())
    assert looks_like_detr(official(config))


def test_without_arguments_two_are_as_published():
    found = detr_settings_of(official(ODD), None, "x.pth")
    expected = replace(ODD, num_heads=8, dropout=0.1, auxiliary_losses=True)
    assert found == (expected, ("num_heads", "dilation"))


@pytest.mark.parametrize(
    ("name", "dilation"),
    [
        ("detr-r50-e632da11.pth", False),
        ("detr-r50-dc5-f0fb7ef5.pth", True),
        ("detr-r101-dc5-a2e86def.pth", True),
        ("my-detr-dc5.pth", False),
        ("detr-r50-dc5-f0fb7ef5.pth.bak", False),
    ],
)
def test_the_published_dilated_models_are_known_by_their_names(name, dilation):
    tensors = official(DETRConfig())
    assert detr_settings_of(tensors, None, name).config.dilation == dilation
    # Whoever says what it is, is believed.
    assert not detr_settings_of(tensors, to_detr_args(DETRConfig()), name).config.dilation


def without(name):
    return {key: tensor for key, tensor in official(ODD).items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "args", "message"),
    [
        (official(ODD), {"enc_layers": 6}, "settings and its tensors disagree: encoder_layers is 6 and 2"),
        (official(ODD), {"pre_norm": True}, "pre_norm is True and False"),
        (official(ODD), {"backbone": "swin"}, "its backbone is 'swin'; known are resnet18, "),
        (official(ODD), {"position_embedding": "v4"}, "its position_embedding is 'v4'; known are sine, learned"),
        (official(ODD), {"nheads": 7}, "no such model can be: hidden_dim 96 cannot be split over num_heads 7"),
        (official(ODD), {"nheads": "8"}, "no such model can be: setting num_heads is '8'"),
        (without("query_embed.weight"), None, r"its tensor query_embed\.weight is missing"),
        (official(ODD) | {"class_embed.bias": torch.ones(2, 3)}, None, r"class_embed.bias is \[2, 3\], not of 1 axes"),
        (official(ODD) | {"class_embed.bias": torch.ones(1)}, None, "num_classes is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(tensors, args, message):
    with pytest.raises(CheckpointError, match=message):
        detr_settings_of(tensors, args, "x.pth")


def test_both_words_for_sines():
    for word, position in (("v2", "sine"), ("sine", "sine"), ("v3", "learned"), ("learned", "learned")):
        tensors = official(replace(ODD, position=position))
        assert detr_settings_of(tensors, {"position_embedding": word}, "x.pth").config.position == position


def test_what_the_official_code_does_not_have():
    with pytest.raises(CheckpointError, match="has no backbone mobilenetv2_100; it has resnet18, "):
        to_detr_args(replace(ODD, backbone="mobilenetv2_100"))
    with pytest.raises(CheckpointError, match="no dilation=true with the backbone resnet34; it has it with resnet50, "):
        to_detr_args(replace(ODD, dilation=True))
    assert to_detr_args(DETRConfig())["backbone"] == "resnet50"


def test_relatives_do_not_look_like_it():
    assert not looks_like_detr({"transformer.decoder.layers.0.cross_attn.value_proj.weight", "input_proj.0.0.weight"})
    assert not looks_like_detr({f"detr.{name}" for name in official(ODD)})
