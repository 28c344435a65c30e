"""Settings of a published DINO: what arguments and tensors tell, and where they cannot both be right."""

from dataclasses import replace

import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DINOConfig
from deformable_detr.weights.dino.settings import dino_settings, to_authors_args, told_by_authors, told_by_openmmlab

MMDET = """
model = dict(
    positional_encoding=dict(num_feats=128, normalize=True, offset={offset}, temperature={temperature}),
    dn_cfg=dict(
        label_noise_scale=0.5,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=300)))
"""


def found(weights, told=None, source="authors", shared_heads=True):
    return dino_settings(weights, source, told or {}, shared_heads=shared_heads)


def test_arguments_and_tensors_together_tell_everything(small_dino, weights_of):
    config = replace(
        small_dino, num_heads=4, position_temperature=33.0, denoising_queries=7, box_noise=0.4, dropout=0.2
    )
    told = told_by_authors(to_authors_args(config))
    assert found(weights_of(config), told) == (config, ())


def test_without_arguments_the_rest_is_as_published(small_dino, weights_of):
    config = replace(small_dino, hidden_dim=64, num_heads=8, encoder_points=3)
    settings = found(weights_of(config))
    assert settings.config == config
    assert settings.assumed == ("num_heads", "dilation", "position_temperature")


@pytest.mark.parametrize(
    ("source", "temperature", "offset", "head_eps"),
    [("authors", 20, 0, 1e-3), ("detrex", 10_000, -0.5, 1e-3), ("openmmlab", 20, 0, 1e-5)],
)
def test_what_each_code_does_differently(small_dino, weights_of, source, temperature, offset, head_eps):
    config = found(weights_of(small_dino), {"num_heads": 8}, source).config
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
    assert told_by_openmmlab(None) == told_by_openmmlab({"cfg": 5}) == told_by_openmmlab({"cfg": "x"}) == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"two_stage_type": "no"}, "its two_stage_type is 'no'; here there is 'standard' alone"),
        ({"embed_init_tgt": False}, "its embed_init_tgt is False"),
        ({"num_patterns": 3}, "its num_patterns is 3"),
        ({"pe_temperatureH": 20, "pe_temperatureW": 10}, "pe_temperatureH and pe_temperatureW differ"),
        ({"backbone": "swin_L_384_22k"}, "its backbone is 'swin_L_384_22k'; here there are resnet50"),
    ],
)
def test_networks_that_are_not_here(args, message):
    with pytest.raises(CheckpointError, match=message):
        told_by_authors(args)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"num_queries": 900}, "its settings and its tensors disagree: num_queries is 900 and 11"),
        ({"num_heads": 5}, "no such DINO can be: hidden_dim 64 cannot be split over num_heads 5"),
        ({"dropout": "x"}, "no such DINO can be: .*dropout"),
        ({"num_heads": 64}, "attention weights cannot be those of 64 heads and 4 levels"),
    ],
)
def test_what_cannot_both_be_right(small_dino, weights_of, told, message):
    with pytest.raises(CheckpointError, match=message):
        found(weights_of(small_dino), told)


def test_a_file_without_label_table_is_a_model_without_denoising(small_dino, weights_of):
    config = replace(small_dino, denoising_queries=0)
    assert found(weights_of(config), {"num_heads": 8, "denoising_queries": 100, "box_noise": 0.4}).config == config
    kept = found(weights_of(small_dino), {"num_heads": 8, "denoising_queries": 0}).config
    assert kept.denoising_queries == DINOConfig().denoising_queries


def test_tensors_without_which_nothing_is_known(small_dino, weights_of):
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
        ({"hybrid_queries": 9}, "no hybrid_queries=9 and query_groups=1, and no place for their tensors"),
        ({"query_groups": 2}, "no hybrid_queries=0 and query_groups=2"),
        ({"num_levels": 6}, "no num_levels=6; it has 1, 3, 4 and 5"),
    ],
)
def test_models_that_the_authors_code_does_not_have(settings, message):
    with pytest.raises(CheckpointError, match=message):
        to_authors_args(DINOConfig(**settings))
