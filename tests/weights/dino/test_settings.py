"""Settings of a published DINO: what arguments and tensors tell, and where they cannot both be right."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DINOConfig
from deformable_detr.weights.dino.settings import (
    dino_settings,
    shares_told_by_authors,
    to_authors_args,
    told_by_authors,
    told_by_openmmlab,
)
from tests.weights.tensors import weights_of

MMDET = """
model = dict(
    positional_encoding=dict(num_feats=128, normalize=True, offset={offset}, temperature={temperature}),
    dn_cfg=dict(
        label_noise_scale=0.5,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=300)))
"""


def found(weights, told=None, source="authors", shared_heads=True):
    return dino_settings(weights, source, told or {}, shared_heads=shared_heads)


def test_arguments_and_tensors_together_tell_everything(small_dino):
    config = replace(
        small_dino, num_heads=4, position_temperature=33.0, denoising_queries=7, box_noise=0.4, dropout=0.2
    )
    told = told_by_authors(to_authors_args(config))
    assert found(weights_of(config), told) == (config, ())


def test_without_arguments_the_rest_is_as_published(small_dino):
    config = replace(small_dino, hidden_dim=64, num_heads=8, encoder_points=3)
    settings = found(weights_of(config))
    assert settings.config == config
    assert settings.assumed == ("num_heads", "dilation", "position_temperature")


@pytest.mark.parametrize(
    ("source", "temperature", "offset", "head_eps"),
    [("authors", 20, 0, 1e-3), ("detrex", 10_000, -0.5, 1e-3), ("openmmlab", 20, 0, 1e-5)],
)
def test_what_each_code_does_differently(small_dino, source, temperature, offset, head_eps):
    config, assumed = found(weights_of(small_dino), {"num_heads": 8}, source)
    offset_too = ("position_offset",) * (source != "authors")
    assert assumed == ("dilation", "position_temperature", *offset_too)
    assert (config.position_temperature, config.position_offset) == (temperature, offset)
    assert (config.head_eps, config.proposals) == (head_eps, "paper")


def test_the_text_of_openmmlabs_configuration_is_read():
    text = MMDET.format(offset=-0.5, temperature=10000)
    assert told_by_openmmlab({"cfg": text}) == {
        "position_temperature": 10_000.0,
        "position_offset": -0.5,
        "denoising_queries": 300,
    }
    assert told_by_openmmlab({"cfg": MMDET.format(offset="0.0", temperature=20)})["position_offset"] == 0.0
    assert (
        told_by_openmmlab({"cfg": MMDET.format(offset="-.5", temperature="1e+4")})["position_temperature"] == 10_000.0
    )
    for no_number in ("1.2.3", ".", "-", "half"):
        text = MMDET.format(offset=no_number, temperature=no_number)
        assert told_by_openmmlab({"cfg": text}) == {"denoising_queries": 300}
    assert told_by_openmmlab(None) == told_by_openmmlab({"cfg": 5}) == told_by_openmmlab({"cfg": "x"}) == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"two_stage_type": "no"}, "its two_stage_type is 'no'; here there is 'standard' alone"),
        ({"embed_init_tgt": False}, "its embed_init_tgt is False"),
        ({"num_patterns": 3}, "its num_patterns is 3"),
        ({"pe_temperatureH": 20, "pe_temperatureW": 10}, "pe_temperatureH and pe_temperatureW differ"),
        ({"num_queries": torch.tensor([1, 2])}, "its num_queries is a value of type Tensor; it must be a number"),
        ({"embed_init_tgt": torch.tensor([1, 2])}, "its embed_init_tgt is a value of type Tensor"),
        ({"dn_number": torch.tensor([0, 1])}, "its dn_number is a value of type Tensor"),
        ({"pe_temperatureH": [torch.ones(2)], "pe_temperatureW": [torch.ones(2)]}, "its pe_temperatureH is "),
        ({"backbone": torch.ones(2)}, "its backbone is a value of type Tensor"),
        ({"backbone": "swin_L_384_22k"}, "its backbone is 'swin_L_384_22k'; here there are resnet50"),
    ],
)
def test_networks_that_are_not_here(args, message):
    with pytest.raises(CheckpointError, match=message):
        told_by_authors(args)


def test_one_temperature_is_enough():
    assert told_by_authors({"pe_temperatureH": 30}) == {"position_temperature": 30}
    assert told_by_authors({"pe_temperatureW": 20}) == {}


def test_what_the_authors_say_of_their_heads():
    both = {"dec_pred_class_embed_share": True, "dec_pred_bbox_embed_share": True}
    assert shares_told_by_authors(both) is True
    assert shares_told_by_authors(both | {"dec_pred_bbox_embed_share": False}) is False
    assert shares_told_by_authors({"dec_pred_class_embed_share": True}) is None
    for value in (torch.tensor([1, 2]), "yes", 1):
        with pytest.raises(CheckpointError, match=r"its dec_pred_bbox_embed_share is .*; it must be true or false"):
            shares_told_by_authors(both | {"dec_pred_bbox_embed_share": value})


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"position_temperature": 10**400}, "no such DINO can be: setting position_temperature is 10"),
        ({"num_queries": "11"}, "no such DINO can be: setting num_queries is '11'"),
        ({"num_queries": 900}, "its settings and its tensors disagree: num_queries is 900 and 11"),
        ({"num_heads": 5}, "no such DINO can be: hidden_dim 64 cannot be split over num_heads 5"),
        ({"dropout": "x"}, "no such DINO can be: .*dropout"),
        ({"num_heads": 64}, "attention weights cannot be those of 64 heads and 4 levels"),
    ],
)
def test_what_cannot_both_be_right(small_dino, told, message):
    with pytest.raises(CheckpointError, match=message):
        found(weights_of(small_dino), told)


def test_a_file_without_label_table_is_a_model_without_denoising(small_dino):
    config = replace(small_dino, denoising_queries=0)
    assert found(weights_of(config), {"num_heads": 8, "denoising_queries": 100, "box_noise": 0.4}).config == config
    kept = found(weights_of(small_dino), {"num_heads": 8, "denoising_queries": 0}).config
    assert kept.denoising_queries == DINOConfig().denoising_queries


def test_tensors_without_which_nothing_is_known(small_dino):
    weights = weights_of(small_dino)
    del weights["pyramid.level_embed"]
    with pytest.raises(CheckpointError, match=r"no such DINO can be: pyramid\.level_embed"):
        found(weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "mobilenetv2_100"}, "no backbone mobilenetv2_100; it has resnet50"),
        ({"features": "per_image"}, "no features='per_image'"),
        ({"position_offset": -0.5}, "no position_offset=-0.5"),
        ({"head_eps": 1e-5}, "no head_eps=1e-05"),
        ({"proposals": "distinct"}, "no proposals='distinct'"),
        ({"denoising_queries": 0}, "no denoising_queries=0: a label table is missing"),
        ({"backbone": "resnet152"}, "no backbone resnet152; it has resnet50, resnet101"),
        ({"backbone": "resnext50_32x4d"}, "no backbone resnext50_32x4d; it has resnet50"),
        *(({"num_levels": n}, f"no two-stage num_levels={n}; it has 3, 4 and 5") for n in (1, 2, 6)),
        ({"hybrid_queries": 9}, "no hybrid_queries=9 and query_groups=1, and no place for their tensors"),
        ({"query_groups": 2}, "no hybrid_queries=0 and query_groups=2"),
    ],
)
def test_models_that_the_authors_code_does_not_have(settings, message):
    with pytest.raises(CheckpointError, match=message):
        to_authors_args(DINOConfig(**settings))


@pytest.mark.parametrize("settings", [{"num_levels": 3}, {"num_levels": 5}, {"backbone": "resnet101.tv_in1k"}])
def test_models_that_the_authors_code_has(settings):
    args = to_authors_args(DINOConfig(**settings))
    assert args["return_interm_indices"] == ([0, 1, 2, 3] if args["num_feature_levels"] == 5 else [1, 2, 3])
